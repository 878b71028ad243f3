"""The paper's tables and figures again: `zootools reproduce`."""

from representation.reproduction.run import reproduce

__all__ = ["reproduce"]
