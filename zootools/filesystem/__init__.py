"""Files and folders: paths that never leave their folder, durable writes, locks."""
