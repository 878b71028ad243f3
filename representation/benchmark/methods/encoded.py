"""The self-supervised encoder of the recipe ``default``: with a linear probe, with a small network, and fine-tuned."""

import copy
import hashlib
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from representation.benchmark.methods.linear import LinearProbe
from representation.benchmark.methods.method import Examples, Method, Population, Problem
from representation.benchmark.methods.read_files import ReadsFiles
from representation.benchmark.methods.trained import TrainedMethod
from representation.encoders.encoder import Encoder
from representation.encoders.standard import Standardiser
from representation.networks import Networks, hash_networks, in_memory
from representation.recipes import bundled_recipes, load_recipe
from representation.training.trainer import EncoderTrainer
from zootools.architectures import Schema

HIDDEN = 128
"""Units of the small network on z."""
KEPT = 8
"""Encoders that are kept for other methods and tasks: those of a few seeds."""
_TRAINED: dict[tuple[Schema, int, str, str], tuple[Encoder, float]] = {}
"""Encoders and the processor seconds of their training, by schema, seed and hashes of the networks; oldest first."""


class Pretrained(ReadsFiles):
    """A method that begins with an encoder of the recipe ``default``."""

    files: ClassVar[tuple[Path, ...]] = (bundled_recipes()["default"],)


def pretrain(problem: Problem, train: Examples, validation: Examples) -> tuple[Encoder, float]:
    """Return an encoder that was trained on the weights of the training networks, without labels.

    The epoch with the lowest loss on the validation networks is kept; without any, the last one. Methods, and tasks of
    the same networks, share a training: the second value is its processor seconds if another run computed it, else 0.
    """
    judge = validation if len(validation) else train
    key = (problem.schema, problem.seed, _digest(train.networks), _digest(judge.networks))
    known = key in _TRAINED
    if not known:
        begun = time.process_time()
        encoder = _train(problem, train, judge)
        if len(_TRAINED) >= KEPT:
            del _TRAINED[next(iter(_TRAINED))]
        _TRAINED[key] = encoder, time.process_time() - begun
    encoder, seconds = _TRAINED[key]
    return copy.deepcopy(encoder), seconds if known else 0.0


def _train(problem: Problem, train: Examples, judge: Examples) -> Encoder:
    recipe, best, kept = load_recipe(str(Pretrained.files[0])), math.inf, None
    with torch.random.fork_rng(devices=[]):  # what is drawn afterwards does not depend on whether this was computed
        trainer = EncoderTrainer(
            problem.schema, train.networks, judge.networks, recipe, problem.seed, device=torch.device("cpu")
        )
        for _ in range(recipe.training.epochs):
            trainer.train_epoch()
            loss = trainer.validate()["total"]
            if loss < best:
                best, kept = loss, copy.deepcopy(trainer.encoder.state_dict())
    if kept is not None:
        trainer.encoder.load_state_dict(kept)
    return trainer.encoder.eval()


def _digest(networks: Networks) -> str:
    digest = hashlib.sha256()
    hash_networks(digest, networks)
    return digest.hexdigest()


def encoder_parameters(encoder: Encoder) -> int:
    """Return the number of parameters between weights and z."""
    decoding = ("decoder.", "paths.to_weights.")
    return sum(value.numel() for name, value in encoder.named_parameters() if not name.startswith(decoding))


class EncoderLinear(Pretrained, LinearProbe):
    """A linear probe of z."""

    name: ClassVar[str] = "encoder"
    trains: ClassVar[bool] = True
    invariant: ClassVar[bool] = False

    def fit(self, train: Examples, validation: Examples) -> None:
        self._encoder, self.shared_seconds = pretrain(self.problem, train, validation)
        super().fit(train, validation)

    def features(self, population: Population) -> Networks:
        return self._encoder.embed(population.networks)

    @property
    def parameters(self) -> int:
        return super().parameters + encoder_parameters(self._encoder)


class _Probe(TrainedMethod):
    """A small network on features in the place of the weights."""

    name, invariant = "probe", False

    def network(self, train: Examples) -> nn.Module:
        features = in_memory(train.networks)
        standardiser = Standardiser(features.shape[1])
        standardiser.fit(features)
        return nn.Sequential(
            *(standardiser, nn.Linear(features.shape[1], HIDDEN), nn.ReLU()), nn.Linear(HIDDEN, self.problem.outputs)
        )


class EncoderMlp(Pretrained, Method):
    """A network of one hidden layer on z."""

    name: ClassVar[str] = "encoder-MLP"
    trains: ClassVar[bool] = True
    invariant: ClassVar[bool] = False

    def fit(self, train: Examples, validation: Examples) -> None:
        self._encoder, self.shared_seconds = pretrain(self.problem, train, validation)
        self._probe = _Probe(self.problem)
        encoded = [replace(part, networks=self._encoder.embed(part.networks)) for part in (train, validation)]
        self._probe.fit(*encoded)

    def predict(self, population: Population) -> Tensor:
        return self._probe.predict(replace(population, networks=self._encoder.embed(population.networks)))

    @property
    def parameters(self) -> int:
        return self._probe.parameters + encoder_parameters(self._encoder)


class EncoderTuned(Pretrained, TrainedMethod):
    """The encoder and a linear layer on z, both trained on the labels after the training without them."""

    name, invariant = "encoder-tuned", False
    epochs, lr = 10, 3e-4

    def fit(self, train: Examples, validation: Examples) -> None:
        self._encoder, self.shared_seconds = pretrain(self.problem, train, validation)
        super().fit(train, validation)

    def network(self, train: Examples) -> nn.Module:
        return nn.Sequential(self._encoder, nn.Linear(self._encoder.architecture.length, self.problem.outputs))

    @property
    def parameters(self) -> int:
        head = sum(parameter.numel() for parameter in self.module[1].parameters())  # type: ignore[index]
        return head + encoder_parameters(self._encoder)
