"""Populations of other tools, made into zoos of ours: one importer for each format behind one protocol, one writer.

An importer (`zootools.importers.importer.Importer`) reads a format and yields blocks of checkpoints; everything else,
from the folder of the zoo to its card, is made by `zootools.importers.importing.import_zoo` in the same way for all.
"""
