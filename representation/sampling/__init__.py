"""New networks from old ones: densities over a zoo, networks drawn from them, and the audit of what was drawn."""
