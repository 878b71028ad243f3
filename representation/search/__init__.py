"""Searches over recipes, with the trials on one machine or a cluster."""
