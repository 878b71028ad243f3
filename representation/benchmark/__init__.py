"""The benchmark: tasks on pinned populations, methods behind one protocol, and their results."""
