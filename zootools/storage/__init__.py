"""The files of a zoo: shards, tables, card and manifest, and the state of an unfinished build."""
