"""Training one stack of a zoo over its epochs: scores, divergence, and the state for a resume."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zootools.architectures import Schema
from zootools.images.datasets import ImageData
from zootools.spec import Training
from zootools.spec.model_configs import ModelConfig
from zootools.storage.records import Stop
from zootools.storage.shards import ShardInfo
from zootools.training.backend import Backend
from zootools.training.evaluation import Scores
from zootools.training.group import Tick


class StackRun:
    """The models of one stack, trained in groups by the trainers of a backend, without the diverged ones.

    A model diverges when a weight or a loss is no longer finite. It keeps its earlier checkpoints, is listed in
    `stopped` with the epoch and the reason, and does not affect the others: no operation mixes models.
    """

    def __init__(
        self,
        schema: Schema,
        models: Sequence[ModelConfig],
        images: ImageData,
        training: Training,
        backend: Backend,
    ) -> None:
        self.models = list(models)
        self.epoch = 0
        self.stopped: dict[str, Stop] = {}
        self._trainers = backend.trainers(schema, self.models, images, training)
        self._groups = [trainer.group.models[: trainer.count] for trainer in self._trainers]

    @property
    def all_stopped(self) -> bool:
        """Whether all models have diverged."""
        return len(self.stopped) == len(self.models)

    def train_epoch(self, tick: Tick = lambda share: None) -> None:
        """Train every model that has not diverged for one more epoch."""
        self.epoch += 1
        for index, (group, trainer) in enumerate(zip(self._groups, self._trainers, strict=True)):
            if all(model.model_id in self.stopped for model in group):
                continue
            trainer.train_epoch(
                self.epoch,
                lambda share, index=index: tick((index + share) / len(self._groups)),  # type: ignore[misc]
            )
            finite = torch.isfinite(trainer.weights).all(dim=1).tolist()
            self._stop(group, finite, "non-finite weights")

    def checkpoint(self) -> tuple[npt.NDArray[np.float32], ShardInfo]:
        """Score the models that have not diverged; return their weights ``[models, parameters]`` and scores."""
        weights, ids, properties = [], list[str](), dict[str, list[Any]]()
        for group, trainer in zip(self._groups, self._trainers, strict=True):
            if all(model.model_id in self.stopped for model in group):
                continue
            scores = trainer.evaluate()
            for name, score in scores.items():
                self._stop(group, np.isfinite(score.loss).tolist(), f"non-finite {name} loss")
            alive = [row for row, model in enumerate(group) if model.model_id not in self.stopped]
            weights.append(trainer.weights[alive].cpu().numpy())
            ids += [group[row].model_id for row in alive]
            for name, values in _columns(scores).items():
                properties.setdefault(name, []).extend(values[row] for row in alive)
        flat = np.concatenate(weights) if weights else np.empty((0, 0), np.float32)
        return flat, ShardInfo(self.epoch, ids, properties)

    def save(self) -> dict[str, Tensor]:
        """Return weights and optimizer state of all models; `epoch` and `stopped` complete the state."""
        saved = [trainer.save() for trainer in self._trainers]
        names = dict.fromkeys(name for part in saved for name in part)

        def of(name: str) -> Tensor:
            # The trainers of other optimizers have no such state.
            return torch.cat([part.get(name, torch.zeros_like(part["weights"])) for part in saved])

        return {name: of(name) for name in names}

    def restore(self, saved: dict[str, Tensor], epoch: int, stopped: dict[str, Stop]) -> None:
        """Continue from the state that `save` returned."""
        self.epoch, self.stopped = epoch, dict(stopped)
        start = 0
        for trainer in self._trainers:
            trainer.restore({name: tensor[start : start + trainer.count] for name, tensor in saved.items()})
            start += trainer.count

    def _stop(self, group: Sequence[ModelConfig], finite: Sequence[bool], reason: str) -> None:
        for model, good in zip(group, finite, strict=True):
            if not good:
                self.stopped.setdefault(model.model_id, Stop(self.epoch, reason))


def _columns(scores: dict[str, Scores]) -> dict[str, list[Any]]:
    """Return the scores by the names of their columns in the metadata of a zoo (docs/zoo-format.md)."""
    columns: dict[str, list[Any]] = {}
    for name, score in scores.items():
        columns[f"{name}_loss"] = score.loss.tolist()
        columns[f"{name}_accuracy"] = score.accuracy.tolist()
    gap = scores["train"].accuracy - scores["test"].accuracy
    # Accuracies are ratios of counts; rounding to twelve digits removes only the error of the subtraction.
    columns["generalization_gap"] = gap.round(12).tolist()
    columns["test_f1"] = scores["test"].f1.tolist()
    return columns
