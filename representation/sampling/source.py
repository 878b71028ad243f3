"""The networks of a zoo that a density is fitted to, and how they were trained. What cannot be sampled is refused."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from representation.derived import known_images
from representation.errors import PlacedError
from representation.sampling.networks import Trainer
from zootools.errors import StorageError
from zootools.images.datasets import load_images
from zootools.images.shapes import has_images
from zootools.paths import data_folder
from zootools.spec import Hyperparameters, Images, Training
from zootools.training.table import choose_backend
from zootools.zoo import Zoo

SCORES = ("validation_accuracy", "test_accuracy")
"""By which the best checkpoints are chosen: the first that the zoo has."""


@dataclass(frozen=True)
class Source:
    """What is sampled from."""

    zoo: Zoo
    """The whole zoo."""
    chosen: Zoo
    """The checkpoints that the density is fitted to: of the train split, of at least two models."""
    others: Zoo
    """The checkpoints under the same condition of the other splits."""
    images: Images
    training: Training
    """How the networks of the zoo were trained."""
    hyperparameters: Hyperparameters
    """Those of the most accurate of the chosen checkpoints."""

    @classmethod
    def of(cls, zoo: Zoo, where: str | None, best: float) -> "Source":
        """Choose checkpoints; read no weights.

        Args:
            zoo: the zoo.
            where: a condition on the metadata; by default all epochs but 0.
            best: the share with the highest accuracy that is kept.

        Raises SpecError for a zoo of which it is not known how to train its networks, and if fewer than two models, or
        networks of several activations, are chosen.
        """
        images, training = _training_of(zoo)
        met = zoo.where(where or "epoch > 0")
        score = next((name for name in SCORES if name in zoo.metadata.column_names), None)
        if score is None:
            raise PlacedError(zoo.folder, f"has no column {' or '.join(SCORES)}, by which the best networks are chosen")
        train = met.split("train")
        accuracy = train.metadata[score].fill_null(0).to_numpy()
        kept = np.argsort(-accuracy, kind="stable")[: math.ceil(best * len(train))]
        chosen = zoo_rows(train, np.sort(kept))
        models = len(chosen.models)
        if models < 2:
            asked = f"where {where!r}, " if where else ""
            raise PlacedError(
                zoo.folder,
                f"nothing to sample from: {len(chosen)} checkpoints of {models} models are left ({asked}the best "
                f"{best:g} of the train split, which has {len(zoo.split('train').models)} models); expected two models "
                "or more",
            )
        hyperparameters = _hyperparameters(zoo, train.metadata.slice(int(kept[0]), 1))
        activations = sorted(set(chosen.metadata["activation"].to_pylist()))
        if len(activations) > 1:
            raise PlacedError(
                zoo.folder,
                f"the chosen networks have the activations {', '.join(activations)}; choose one of them, such as "
                f"--where \"activation == '{hyperparameters.activation}'\"",
            )
        return cls(zoo, chosen, met.where(pc.field("split") != "train"), images, training, hyperparameters)

    def model_numbers(self) -> npt.NDArray[np.int64]:
        """Return the number of the model of each of the chosen checkpoints, int64 ``[n]``."""
        encoded = self.chosen.metadata["model_id"].combine_chunks().dictionary_encode()
        return encoded.indices.to_numpy().astype(np.int64)

    def trainer(self, data: Path | None, epochs: int) -> Trainer:
        """Return what runs networks of this kind, and trains them for some epochs.

        Raises StorageError if the files of the images are not there.
        """
        if not has_images(self.images, data):
            raise StorageError(
                f"no images at hand: the files of {self.images.name} are not in {data_folder(data)}, and sampled "
                "networks are always evaluated; name their folder with --data"
            )
        schema, training = self.zoo.schema, self.training
        backend = choose_backend("auto", "cpu", schema, training.batch_size, self.hyperparameters)
        return Trainer(schema, self.hyperparameters, load_images(self.images, data), training, backend, epochs)


def zoo_rows(zoo: Zoo, rows: npt.NDArray[np.int64]) -> Zoo:
    """Return some checkpoints of a zoo."""
    return replace(zoo, metadata=zoo.metadata.take(pa.array(rows)))


def _training_of(zoo: Zoo) -> tuple[Images, Training]:
    """Return the images and the training of a zoo. Raises SpecError if they are not known."""
    images = known_images(zoo)
    parent = zoo.imported.parent if zoo.imported is not None else None
    training = zoo.stored_spec.training if zoo.stored_spec is not None else parent.training if parent else None
    if images is None or training is None:
        raise PlacedError(
            zoo.folder,
            "it is not known how its networks were trained (batch size, images), so samples cannot be trained on; "
            "expected a zoo that zootools built, or aligned copies of one",
        )
    return images, training


def _hyperparameters(zoo: Zoo, row: pa.Table) -> Hyperparameters:
    (values,) = row.select([name for name in Hyperparameters.model_fields if name in row.column_names]).to_pylist()
    try:
        return Hyperparameters(**values)
    except ValidationError as error:
        detail = error.errors()[0]
        raise PlacedError(zoo.folder, f"{detail['loc'][0]}: {detail['msg']}; the networks cannot be trained") from None
