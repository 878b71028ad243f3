"""The interface of backends: objects that train the models of a zoo on one device.

A new backend is one module, with a trainer and a class that has the members of `StandardBackend`, and one row of
`zootools.training.table.BACKENDS`. A backend of your own, given to `zootools.build` as an object, needs no row.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from zootools.architectures import Schema
from zootools.images.datasets import ImageData
from zootools.spec import Training
from zootools.spec.model_configs import ModelConfig
from zootools.training.evaluation import Scores
from zootools.training.group import Group, Tick
from zootools.training.repeatable import make_products_repeatable

make_products_repeatable()


class Trainer(Protocol):
    """Trains several models of one structure side by side, each as if it were alone."""

    group: Group
    """The models with their data; the first ``count`` are trained, the others fill a fixed width."""
    count: int

    @property
    def weights(self) -> Tensor:
        """The flat weights, float32 ``[count, parameters]``, in the order of the schema."""

    def train_epoch(self, epoch: int, tick: Tick = ...) -> None:
        """Train every model over its share of the images once; epochs count from 1."""

    def evaluate(self) -> dict[str, Scores]:
        """Score the current models on the ``train``, ``validation`` (if any) and ``test`` images."""

    def save(self) -> dict[str, Tensor]:
        """Return the state that `restore` needs: tensors whose first dimension is ``count``."""

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Continue from the state that `save` returned."""


class Backend(Protocol):
    """Trains the models of a zoo on one device. An object of your own with these members can be given to `build`.

    The backend is pickled and sent to the workers, which import its module.
    """

    @property
    def device(self) -> str:
        """The device of the images in the workers, as torch names it: ``cpu``, ``cuda``."""

    @property
    def name(self) -> str:
        """The name in build.json."""

    @property
    def reason(self) -> str:
        """The reason of the choice, in half a sentence."""

    def fingerprint(self) -> dict[str, object]:
        """Return what decides the bits of a model beside its specification, as values that JSON can store.

        Two builds with one fingerprint are equal byte for byte; with two fingerprints they are only close.
        """

    def trainers(
        self, schema: Schema, models: Sequence[ModelConfig], images: ImageData, training: Training
    ) -> Sequence[Trainer]:
        """Return trainers for all the models, in their order."""


@runtime_checkable
class StandardBackend(Backend, Protocol):
    """A backend that also tells the width of its trainers, from which the memory of a worker is estimated."""

    def width(self, schema: Schema) -> int:
        """Return how many models one trainer trains side by side; one with fewer takes as much memory."""


@runtime_checkable
class MixingBackend(StandardBackend, Protocol):
    """A backend whose trainers take models of any activations and optimizers, so that a stack has its `width`."""

    @property
    def mixed(self) -> bool:
        """True."""


def library_versions() -> dict[str, object]:
    """Return the part of a fingerprint that all backends on this machine share."""
    import numpy
    import pyarrow

    return {"threads": 1, "numpy": numpy.__version__, "pyarrow": pyarrow.__version__}
