"""Zoos in object stores (``s3://``, ``gs://``, ``file://``): building there, and reading from there."""
