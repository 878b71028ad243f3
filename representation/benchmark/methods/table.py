"""All methods of the benchmark."""

from representation.benchmark.methods.linear import (
    PaperLayerStatistics,
    PrincipalComponents,
    UnterthinerLayerStatistics,
    Weights,
)
from representation.benchmark.methods.method import Method

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Weights, PaperLayerStatistics, UnterthinerLayerStatistics, PrincipalComponents)
}
"""The methods by name. An addition is one module and one row."""
