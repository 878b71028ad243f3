"""The audit of networks that were drawn from a density: how near they are to the networks that it was fitted to."""

from typing import Annotated

from pydantic import Field

from zootools.hashing import pretty_json
from zootools.spec.sections import Section

AUDIT = "audit.json"
"""The file of a zoo with its audit."""

_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=0, le=10**9)]
_Words = Annotated[str, Field(pattern=r"^[A-Za-z0-9 .()-]{1,60}$")]


class AuditRow(Section):
    """Networks of one kind, compared with the training networks: those that the density was fitted to."""

    networks: _Words
    """Where they come from."""
    count: _Count
    accuracy: _Share
    """Mean test accuracy."""
    accuracy_std: _Positive
    """Its standard deviation over the networks."""
    distance: _Positive
    """Median of the Euclidean distance to the nearest training network modulo permutation; of a training network that
    of another model."""
    closest: _Positive
    """The smallest of these distances."""
    overlap: _Share
    """Mean overlap (intersection over union) of the misclassified test images with those of this nearest network."""
    highest_overlap: _Share
    """Mean of the highest overlap with any training network."""
    diversity: _Share
    """Mean share of the test images that two of the networks put into different classes."""


class Curve(Section):
    """Test accuracies of networks over the epochs of a training."""

    networks: _Words
    count: _Count
    epochs: Annotated[list[_Count], Field(max_length=100_001)]
    """Epochs since the given weights."""
    mean: Annotated[list[_Share], Field(max_length=100_001)]
    std: Annotated[list[_Positive], Field(max_length=100_001)]


class Audit(Section):
    """The whole audit."""

    images: _Count
    """Number of test images."""
    nearer: _Share
    """Share of the samples that are nearer to a training network than half of the training networks are to each
    other."""
    rows: Annotated[list[AuditRow], Field(min_length=1, max_length=20)]
    """The samples first."""
    curves: Annotated[list[Curve], Field(max_length=20)] = Field(default_factory=list)
    """Accuracies while the samples, and networks to compare them with, are trained for equally many steps."""

    def to_bytes(self) -> bytes:
        """Return the bytes of `AUDIT`."""
        return pretty_json(self.dump())
