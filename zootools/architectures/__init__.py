"""Architectures as layer schemas, and the networks that follow from a schema."""

from zootools.architectures.registry import build_schema
from zootools.architectures.schema import MAX_PARAMETERS, Layer, Parameter, PermutationGroup, Schema

__all__ = ["MAX_PARAMETERS", "Layer", "Parameter", "PermutationGroup", "Schema", "build_schema"]
