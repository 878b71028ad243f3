"""The networks that learn representations: tokens, attention, and an encoder with its decoder and its files."""

from representation.encoders.encoder import Encoder

__all__ = ["Encoder"]
