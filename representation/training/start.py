"""What a training begins with: the encoder, its constants and linear maps that follow from the training weights."""

from torch import Tensor, nn

from representation.dataset import sample_rows
from representation.encoders.encoder import Architecture, Encoder
from representation.encoders.graph import NeuronGraph
from representation.encoders.standard import Standardiser
from representation.encoders.statistics import LayerStatistics
from representation.networks import Networks, in_parts, select
from representation.recipes import Recipe
from representation.training.linear_code import MOST_DIRECTIONS, LinearCode, linear_code
from zootools.architectures import Schema
from zootools.errors import SpecError

FITTED = 20_000
"""Most networks from which the constants of an encoder are computed."""


def start_encoder(schema: Schema, recipe: Recipe, weights: Networks, code: LinearCode | None = None) -> Encoder:
    """Return the encoder of a recipe before its first step; its random part is drawn from torch's global generator.

    Args:
        schema: the layers of the networks.
        recipe: the recipe; ``auto`` in it is replaced.
        weights: the training networks, float32 ``[n, N]``.
        code: their linear code of at least the length of z, if it is known already.

    Raises SpecError if the recipe begins with a linear code that would take too long to compute.
    """
    recipe = recipe.sized(schema.size)
    settings = recipe.encoder
    encoder = Encoder.build(schema, settings).to(weights.device)
    begin = None
    if settings.starts_from_pca:
        code = code or best_linear_code(schema, recipe, weights)
        if code is None:
            raise SpecError(
                f"encoder.start is pca: without permutations (augmentation.permute=false) the linear code of "
                f"{schema.size:,} weights takes too long (at most {MOST_DIRECTIONS:,}); use encoder.start=random"
            )
        begin = (code.mean, code.components[:, : settings.coded])
    encoder.start(_sample(weights), begin)
    return encoder


def best_linear_code(schema: Schema, recipe: Recipe, weights: Networks) -> LinearCode | None:
    """Return the best linear code of the length of z; None where it would take too long."""
    length = recipe.sized(schema.size).encoder.length
    return linear_code(weights, schema, length, permute=recipe.augmentation.permute)


class StatisticsPrediction(nn.Module):
    """A linear prediction of the statistics of a network's layers from its representation, and its errors."""

    def __init__(self, schema: Schema, settings: Architecture, weights: Networks) -> None:
        """Args: ``settings`` of the encoder, `sized`; ``weights`` ``[n, N]`` are the training networks."""
        super().__init__()
        some = _sample(weights)
        self.standardiser = Standardiser(schema.size).to(weights.device)
        self.standardiser.fit_layers(some, schema)
        self.statistics = LayerStatistics(NeuronGraph(schema), settings.compresses).to(weights.device)
        self.statistics.fit(self.standardiser(rows) for rows in in_parts(some))
        self.linear = nn.Linear(settings.compared, self.statistics.length)

    def forward(self, z: Tensor, weights: Tensor) -> Tensor:
        """Return the errors ``[copies * n, statistics]`` for z ``[copies * n, length]`` of networks ``[n, N]``."""
        targets = self.statistics(self.standardiser(weights))
        return self.linear(z).float() - targets.repeat(len(z) // len(targets), 1)


def _sample(weights: Networks) -> Networks:
    """Return at most `FITTED` of the training networks, always the same ones."""
    return weights if len(weights) <= FITTED else select(weights, sample_rows(len(weights), FITTED))
