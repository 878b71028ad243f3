"""All methods of the benchmark."""

from representation.benchmark.methods.encoded import EncoderLinear, EncoderMlp, EncoderTuned
from representation.benchmark.methods.flat import FlatMlp, PermutedMlp
from representation.benchmark.methods.functionals import NfnHnp, NfnNp
from representation.benchmark.methods.graph_network import NeuronGraphs
from representation.benchmark.methods.linear import (
    PaperLayerStatistics,
    PrincipalComponents,
    UnterthinerLayerStatistics,
    Weights,
)
from representation.benchmark.methods.method import Method
from representation.benchmark.methods.neuron_sets import DeepSets
from representation.benchmark.methods.probing import Probing
from representation.benchmark.methods.statnn import StatNN
from representation.benchmark.methods.transformer import Transformer
from representation.benchmark.methods.trees import Trees

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(Weights, PaperLayerStatistics, UnterthinerLayerStatistics, PrincipalComponents),
        *(Trees, StatNN, FlatMlp, PermutedMlp),
        *(DeepSets, NfnNp, NfnHnp, NeuronGraphs, Transformer, Probing),
        *(EncoderLinear, EncoderMlp, EncoderTuned),
    )
}
"""The methods by name. An addition is one module and one row."""
