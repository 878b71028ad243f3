"""The files of a zoo: shards, tables, card and manifest, and the state of a build that is not finished."""
