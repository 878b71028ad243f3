"""A transformer over neuron tokens, trained on labels: the architecture of the paper's encoder."""

from torch import nn

from representation.benchmark.methods.method import Examples
from representation.benchmark.methods.trained import TrainedMethod
from representation.encoders.attention import AttentionEncoder
from representation.encoders.standard import standardised
from representation.recipes import Attention

WIDTH, HEADS, BLOCKS, HIDDEN = 64, 4, 2, 128
"""Length of a token, attention heads, blocks, and units of the feed-forward part of a block."""


class Transformer(TrainedMethod):
    """The paper's encoder, trained on labels: a token for each neuron, learned positions; two blocks of width 64."""

    name, invariant = "transformer", False

    def network(self, train: Examples) -> nn.Module:
        settings = Attention(
            kind="attention",
            latent=self.problem.outputs,
            width=WIDTH,
            heads=HEADS,
            blocks=BLOCKS,
            hidden=HIDDEN,
        )
        return standardised(AttentionEncoder(self.problem.schema, settings), self.problem.schema, train.networks)
