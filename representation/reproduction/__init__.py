"""Reproduction of the paper's tables and figures: `zootools reproduce`."""

from representation.reproduction.run import reproduce

__all__ = ["reproduce"]
