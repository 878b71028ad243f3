"""Zoos of Ray Tune in the layout of the ModelZooDataset (Schuerholt et al., 2022) and its relatives.

A trial is a folder with ``params.json``, ``result.json`` (a line of JSON for each iteration) and, for each epoch,
``checkpoint_000012/checkpoints``, a state dict of `torch.save`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from zootools.architectures import Layer, Schema, build_schema
from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError, did_you_mean
from zootools.filesystem.inside import is_file_inside, names_inside
from zootools.hub.foreign import read_schema
from zootools.importers.importer import Block, Facts, ImportOptions, LeftOut, rows_per_block
from zootools.importers.options import existing
from zootools.importers.parameters import UnfitStateError, flatten
from zootools.importers.pickles import read_states
from zootools.importers.property_rows import table_of
from zootools.importers.ray_logs import (
    Property,
    Results,
    properties_of,
    read_parameters,
    read_results,
    unused_parameters,
)
from zootools.spec import Cnn, DatasetImages, Images

State = Mapping[str, npt.NDArray[Any]]

BLOCK_FILES = 2048
"""Files of a block at most: what an interruption of the import can cost."""
_CHECKPOINT = re.compile(r"(?:(.*)/)?checkpoint_(\d{1,6})/checkpoints", re.ASCII | re.DOTALL)
_DROPPED = 3.0
"""Variational dropout removes a weight whose log alpha is at least this (Molchanov et al., 2017)."""

NOTE = (
    "train_loss and train_accuracy are means over the batches of a training epoch, during which the weights change; "
    "they are not those of the checkpoint"
)
_IMAGES: tuple[tuple[str, Images], ...] = (
    ("/MNIST/", DatasetImages(name="mnist", train=50_000, validation=10_000, mean=0.1307, std=0.3081)),
    ("/F_MNIST/", DatasetImages(name="fashion_mnist", train=50_000, validation=10_000, mean=0.5, std=0.5)),
    (
        "/SVHN/",
        DatasetImages(name="svhn", train=60_000, validation=13_257, crop=28, greyscale=True, mean=0.5, std=0.5),
    ),
    ("/USPS/", DatasetImages(name="usps", train=6_000, validation=1_291, size=28, mean=0.1307, std=0.3081)),
    ("/CIFAR10/small/", DatasetImages(name="cifar10", train=42_000, validation=8_000, size=28, mean=0.5, std=0.5)),
    ("/CIFAR10/large/", DatasetImages(name="cifar10", train=42_000, validation=8_000, mean=0.5, std=0.5)),
    ("/STL-10/small/", DatasetImages(name="stl10", train=4_200, validation=800, size=28, mean=0.5, std=0.5)),
    ("/STL-10/large/", DatasetImages(name="stl10", train=4_200, validation=800, size=32, mean=0.5, std=0.5)),
)
"""The images of the published zoos, by the part of ``dataset::dump`` that names them."""


@dataclass(frozen=True)
class _Trial:
    folder: str
    """Relative to the folder of the zoo; empty if that is the trial itself."""
    model: str
    properties: dict[str, Property]
    checkpoints: dict[int, str]
    """The files of weights by epoch."""

    def inside(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name


class RayZoo:
    """The importer of zoos of Ray Tune."""

    options: ClassVar[frozenset[str]] = frozenset({"model_schema"})

    def open(self, path: Path, options: ImportOptions) -> "RayPopulation":
        """Find the trials below a folder, and read their parameters."""
        existing(path)
        if not path.is_dir():
            raise ZooNotFoundError(f"{path}: is not a folder; expected one with a folder for each trial")
        names = names_inside(path)
        checkpoints, links = _checkpoints(path, names)
        folders = list[str]()
        for name in names:
            if name == "params.json" or name.endswith("/params.json"):
                folders.append(name.removesuffix("params.json").removesuffix("/"))
        if not folders:
            raise ZooNotFoundError(
                f"{path}: no folder below it has a params.json; expected a folder for each trial, with params.json, "
                "result.json and checkpoint_000000/checkpoints"
            )
        left_out = [LeftOut(name, "is a link, which is not followed") for name in links]
        left_out += [
            LeftOut(file, "belongs to no trial: its folder has no params.json")
            for folder in sorted(checkpoints.keys() - {*folders})
            for file in checkpoints[folder].values()
        ]
        trials, all_parameters = list[_Trial](), list[dict[str, Any]]()
        for folder in folders:
            name = f"{folder}/params.json" if folder else "params.json"
            files = checkpoints.get(folder, {})
            try:
                parameters = read_parameters(path, name)
            except DamagedZooError as error:
                left_out.append(LeftOut(folder or path.name, f"its params.json {error.reason}"))
                continue
            if not files:
                left_out.append(LeftOut(folder or path.name, "has no checkpoints"))
                continue
            trials.append(_Trial(folder, folder or path.name, properties_of(parameters), dict(sorted(files.items()))))
            all_parameters.append(parameters)
        if not trials:
            reasons = [f"  {what}: {why}" for what, why in left_out]
            raise ZooNotFoundError(f"{path}: none of its {len(folders)} trials can be read", *reasons)
        unused = dict.fromkeys(entry for parameters in all_parameters for entry in unused_parameters(parameters))
        schema, runs = _schema(path, trials, all_parameters, options)
        return RayPopulation(path, schema, runs, trials, [*left_out, *unused], _images(all_parameters[0]))


class RayPopulation:
    """The trials of a folder."""

    def __init__(
        self,
        root: Path,
        schema: Schema,
        runs: bool,
        trials: Sequence[_Trial],
        left_out: Sequence[LeftOut],
        images: Images | None,
    ) -> None:
        self._root, self._schema, self._trials, self._left_out = root, schema, trials, left_out
        self._rows = [(trial, epoch) for trial in trials for epoch in trial.checkpoints]
        logs = [trial.inside(name) for trial in trials for name in ("params.json", "result.json")]
        weights = [trial.checkpoints[epoch] for trial, epoch in self._rows]
        self.facts = Facts(
            name=root.absolute().name,
            schema=schema,
            files=[root / name for name in (*logs, *weights) if is_file_inside(root, name)],
            root=root,
            checkpoints=len(self._rows),
            description="A zoo of Ray Tune in the layout of the ModelZooDataset.",
            images=images,
            runs=runs,
            notes=[NOTE],
        )

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Yield the checkpoints, trial by trial; a block has a fixed part of their files, read or not."""
        size = min(BLOCK_FILES, rows_per_block(self._schema))
        left = self._rows[start * size :]
        states = read_states([self._root / trial.checkpoints[epoch] for trial, epoch in left])
        for first in range(0, len(left), size):
            left_out = list(self._left_out) if not first and not start else []
            yield self._block(left[first : first + size], states, left_out)

    def _block(
        self, part: Sequence[tuple[_Trial, int]], states: Iterator[State | str], left_out: list[LeftOut]
    ) -> Block:
        weights, rows = np.empty((len(part), self._schema.size), np.float32), list[dict[str, Any]]()
        results = Results()
        for position, (trial, epoch) in enumerate(part):
            if position == 0 or trial is not part[position - 1][0]:
                results = read_results(self._root, trial.inside("result.json"))
            if epoch == next(iter(trial.checkpoints)):
                left_out += [*results.left_out, *_missing(trial, results)]
            state = next(states)
            try:
                if isinstance(state, str):
                    raise UnfitStateError(state)
                weights[len(rows)] = flatten(_pruned(state), self._schema)
            except UnfitStateError as error:
                left_out.append(LeftOut(trial.checkpoints[epoch], str(error)))
                continue
            scores = results.scores.get(epoch, {})
            rows.append({"model": trial.model, "epoch": epoch, **trial.properties, **scores})
        return Block(weights[: len(rows)], table_of(rows), left_out)


def _checkpoints(path: Path, names: Sequence[str]) -> tuple[dict[str, dict[int, str]], list[str]]:
    """Return the files of weights by the folder of their trial and by epoch, and those that are links.

    Raises SpecError for two files of one epoch.
    """
    found, links = dict[str, dict[int, str]](), list[str]()
    for name in names:
        if match := _CHECKPOINT.fullmatch(name):
            epochs, epoch = found.setdefault(match[1] or "", {}), int(match[2])
            if epoch in epochs:
                raise SpecError(f"{path}: {epochs[epoch]} and {name} are both epoch {epoch}; remove one of them")
            if (path / name).is_symlink():
                links.append(name)
            else:
                epochs[epoch] = name
    return found, links


def _missing(trial: _Trial, results: Results) -> Iterator[LeftOut]:
    """Yield the epochs of a trial that have a checkpoint or results, but not both."""
    for epoch in results.scores.keys() - trial.checkpoints.keys():
        yield LeftOut(f"{trial.model}: epoch {epoch}", "has results, but no checkpoint")
    for epoch in trial.checkpoints.keys() - results.scores.keys():
        yield LeftOut(f"{trial.model}: results of epoch {epoch}", "are missing in result.json; the weights are kept")


def _pruned(state: State) -> dict[str, npt.NDArray[Any]]:
    """Return the weights with which a sparse twin is evaluated: those that variational dropout removes are zero.

    Of a convolution the biases are removed in the same way, of a linear layer they are not. Other states are returned
    as they are.
    """
    result = {name: values for name, values in state.items() if ".log_sigma2" not in name}
    for name, sigma in state.items():
        prefix, _, ending = name.rpartition(".")
        kind = {"log_sigma2": "weight", "log_sigma2_bias": "bias"}.get(ending)
        values = result.get(f"{prefix}.{kind}")
        is_linear = result.get(f"{prefix}.weight", np.empty(0)).ndim == 2
        if values is None or values.shape != sigma.shape or (kind == "bias" and is_linear):
            continue
        log_alpha = sigma - 2 * np.log(np.abs(values) + np.float32(1e-15))
        result[f"{prefix}.{kind}"] = np.where(log_alpha >= _DROPPED, np.float32(0), values)
    return result


def _schema(
    path: Path, trials: Sequence[_Trial], parameters: Sequence[dict[str, Any]], options: ImportOptions
) -> tuple[Schema, bool]:
    """Return the layers of all models, and whether they are enough to run a network."""
    if options.model_schema is not None:
        return read_schema(options.model_schema)
    kinds = Counter((str(entry.get("model::type")), entry.get("model::channels_in", 1)) for entry in parameters)
    if len(kinds) > 1:
        texts = (f"{kind} on {channels} channels ({count} trials)" for (kind, channels), count in kinds.items())
        found = ", ".join(texts)
        raise SpecError(
            f"{path}: found {found}; a zoo has one architecture: give its layers with --schema, and the others are "
            "left out"
        )
    (kind, channels), _ = kinds.popitem()
    place = path / trials[0].inside("params.json")
    if type(channels) is not int or not 1 <= channels <= 1000:
        raise SpecError(f"{place}: model::channels_in: found {channels!r:.80}; expected a number of channels")
    if kind == "Resnet18":
        raise SpecError(f"{place}: model::type: found {kind}; networks with branches are not supported")
    if kind not in _ARCHITECTURES:
        raise SpecError(
            f"{place}: model::type: found {kind!r:.80}{did_you_mean(kind, _ARCHITECTURES)}; "
            "give the layers of others with --schema"
        )
    return _ARCHITECTURES[kind](channels), True


def _cnn_small(channels: int) -> Schema:
    return build_schema(Cnn(name="cnn_small"), (channels, 28, 28), 10)


def _cnn_medium(channels: int) -> Schema:
    """The network CNN2 of the ModelZooDataset: 3047 parameters on one channel."""
    layers = (
        Layer("conv1", "conv", channels, 6, kernel=5, max_pool=2, dropout=True),
        Layer("conv2", "conv", 6, 9, kernel=5, max_pool=2, dropout=True),
        Layer("conv3", "conv", 9, 6, kernel=2),
        Layer("fc1", "linear", 54, 20, dropout=True),
        Layer("fc2", "linear", 20, 10, activation=False),
    )
    return Schema("cnn_medium", (channels, 28, 28), layers)


def _cnn_large(channels: int) -> Schema:
    return build_schema(Cnn(name="cnn_large"), (channels, 32, 32), 10)


_ARCHITECTURES = {"CNN": _cnn_small, "CNN_ARD": _cnn_small, "CNN2": _cnn_medium, "CNN3": _cnn_large}
"""The architectures of the ModelZooDataset by their ``model::type``; the networks of the sparse twins end with _ARD."""


def _images(parameters: Mapping[str, Any]) -> Images | None:
    """Return the images of a published zoo, which the path of its copy of them names; None for others."""
    dump = f"/{str(parameters.get('dataset::dump', '')).replace('//', '/')}"
    return next((images for part, images in _IMAGES if part in dump), None)
