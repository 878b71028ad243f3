"""The Small CNN Zoo (Unterthiner et al., 2020): ``weights.npy``, ``metrics.csv.gz`` and ``layout.csv``.

A row of the matrix and of the table is a checkpoint. ``layout.csv`` has the place of every variable of TensorFlow in a
row (`zootools.importers.tensorflow_layout`). The export ``numpy`` has the same files, and ``schema.json`` beside them.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from zootools.architectures import Layer, Schema
from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError, did_you_mean
from zootools.filesystem.inside import open_inside
from zootools.hub.foreign import read_schema
from zootools.importers.importer import Block, Facts, ImportOptions, LeftOut, rows_per_block
from zootools.importers.nfn_split import nfn_split
from zootools.importers.options import existing
from zootools.importers.small_cnn_metrics import Metrics, read_metrics
from zootools.importers.tensorflow_layout import LAYOUT, Variable, column_order, read_layout
from zootools.spec import DatasetImages, Images
from zootools.storage.verified_files import unreadable

WEIGHTS, SCHEMA = "weights.npy", "schema.json"
METRICS = ("metrics.csv.gz", "metrics.csv")

_SIDES = {"mnist": 28, "fashion_mnist": 28, "cifar10": 32, "svhn_cropped": 32}
"""The side of the images by ``config.dataset``."""
_IMAGES: dict[str, Images] = {
    "mnist": DatasetImages(name="mnist", train=60_000, mean=0.5, std=0.5),
    "fashion_mnist": DatasetImages(name="fashion_mnist", train=60_000, mean=0.5, std=0.5),
    "cifar10": DatasetImages(name="cifar10", train=50_000, greyscale=True, mean=0.5, std=0.5),
    "svhn_cropped": DatasetImages(name="svhn", train=73_257, greyscale=True, mean=0.5, std=0.5),
}
"""The images of the published zoos by ``config.dataset``: one channel, scaled to [-1, 1]."""


@dataclass(frozen=True)
class Matrix:
    """A two-dimensional file of numpy, read in parts."""

    root: Path
    name: str
    rows: int
    columns: int
    dtype: np.dtype[np.floating]
    offset: int
    """Where the values begin."""

    @classmethod
    def open(cls, root: Path, name: str) -> "Matrix":
        """Read the header. Raises DamagedZooError for another format, and for a file that is cut."""
        try:
            with open_inside(root, name) as file:
                major = np.lib.format.read_magic(file)[0]
                read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(file)
                offset = file.tell()
                size = file.seek(0, 2) - offset
        except OSError as error:
            raise DamagedZooError(unreadable(error), path=root / name) from error
        except ValueError as error:
            raise DamagedZooError(f"is not a matrix of numpy ({error!s:.200})", path=root / name) from error
        if len(shape) != 2 or fortran or dtype not in (np.float16, np.float32, np.float64):
            order = "columns first" if fortran else "rows first"
            raise DamagedZooError(
                f"found {dtype} {shape}, {order}; expected float32 (rows, parameters), rows first", path=root / name
            )
        if size != (expected := math.prod(shape) * dtype.itemsize):
            raise DamagedZooError(f"has {size:,} bytes of values; {shape} are {expected:,}", path=root / name)
        return cls(root, name, *shape, dtype, offset)

    def read(self, start: int, count: int) -> npt.NDArray[np.floating]:
        """Return some rows as they are in the file. Raises DamagedZooError."""
        values = np.empty((count, self.columns), self.dtype)
        try:
            with open_inside(self.root, self.name) as file:
                file.seek(self.offset + start * self.columns * self.dtype.itemsize)
                read = file.readinto(values.data.cast("B"))
        except OSError as error:
            raise DamagedZooError(unreadable(error), path=self.root / self.name) from error
        if read != values.nbytes:
            raise DamagedZooError("was cut while it was read", path=self.root / self.name)
        return values


class SmallCnnZoo:
    """The importer of the Small CNN Zoo."""

    options: ClassVar[frozenset[str]] = frozenset({"model_schema", "split"})

    def open(self, path: Path, options: ImportOptions) -> "SmallCnnPopulation":
        """Read the layout, the table, and the header of the matrix; compare their numbers of rows and columns."""
        if options.split not in (None, "nfn"):
            raise SpecError(f"split: found {options.split!r:.80}{did_you_mean(str(options.split), ('nfn',))}")
        existing(path)
        there = sorted(os.listdir(path)) if path.is_dir() else []  # noqa: PTH208 (names only)
        metrics_name = next((name for name in METRICS if name in there), METRICS[0])
        if missing := [name for name in (WEIGHTS, metrics_name, LAYOUT) if name not in there]:
            raise ZooNotFoundError(f"{path}: has no {missing[0]}; expected {WEIGHTS}, {METRICS[0]} and {LAYOUT}")
        variables, matrix = read_layout(path), Matrix.open(path, WEIGHTS)
        if matrix.columns != variables[-1].end:
            found = f"has {matrix.columns} columns; {LAYOUT} has {variables[-1].end}"
            raise DamagedZooError(found, path=path / WEIGHTS)
        metrics = read_metrics(path, metrics_name)
        if metrics.table.num_rows != matrix.rows:
            found = f"has {matrix.rows:,} rows; {metrics_name} has {metrics.table.num_rows:,}"
            raise DamagedZooError(found, path=path / WEIGHTS)
        files, notes = [path / name for name in (WEIGHTS, metrics_name, LAYOUT)], list[str]()
        schema, runs = _chosen_schema(path, options, there, metrics, variables)
        if options.model_schema is None and SCHEMA in there:
            files.append(path / SCHEMA)
        if options.split == "nfn":
            file, splits, note = nfn_split(path, there, metrics.table)
            metrics = replace(metrics, table=metrics.table.append_column("split", splits))
            files.append(file)
            notes.append(note)
        if matrix.dtype != np.float32:
            notes.append(f"the weights were {matrix.dtype}, and are stored as float32")
        facts = Facts(
            name=path.absolute().name,
            schema=schema,
            files=files,
            root=path,
            checkpoints=matrix.rows,
            description="The Small CNN Zoo of Unterthiner et al. (2020), or a zoo with the same files.",
            license="cc-by-4.0" if metrics.dataset in _IMAGES else "unknown",
            images=_IMAGES.get(metrics.dataset or ""),
            runs=runs,
            notes=notes,
        )
        return SmallCnnPopulation(facts, matrix, column_order(path, variables, schema), metrics)


class SmallCnnPopulation:
    """The rows of a matrix and of its table."""

    def __init__(self, facts: Facts, matrix: Matrix, columns: npt.NDArray[np.int64], metrics: Metrics) -> None:
        self.facts, self._matrix, self._columns, self._metrics = facts, matrix, columns, metrics

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Yield the rows in the order of the files."""
        size = rows_per_block(self.facts.schema)
        for number in range(start, math.ceil(self._matrix.rows / size)):
            first = number * size
            count = min(size, self._matrix.rows - first)
            with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite: the model has diverged
                weights = self._matrix.read(first, count).astype(np.float32, copy=False)
            left_out: Sequence[LeftOut] = self._metrics.left_out if number == 0 else ()
            yield Block(np.take(weights, self._columns, axis=1), self._metrics.table.slice(first, count), left_out)


def _chosen_schema(
    path: Path, options: ImportOptions, there: Sequence[str], metrics: Metrics, variables: Sequence[Variable]
) -> tuple[Schema, bool]:
    """Return the layers that the user gives, those of an export, or those of the published zoos."""
    if options.model_schema is not None or SCHEMA in there:
        return read_schema(options.model_schema or path / SCHEMA)
    if metrics.dataset not in _SIDES:
        raise SpecError(
            f"{path}: config.dataset: found {metrics.dataset!r:.80}{did_you_mean(str(metrics.dataset), _SIDES)}; "
            "give the layers of other networks with --schema"
        )
    return _published_schema(path, variables, _SIDES[metrics.dataset]), True


def _published_schema(path: Path, variables: Sequence[Variable], side: int) -> Schema:
    """Return the network of the published generator with the shapes of a layout.

    Strides are 2, dropout follows every convolution, and the last one is averaged over its pixels: none of it is in
    the files.
    """
    layers, kernels = list[Layer](), [variable for variable in variables if variable.is_kernel]
    convolutions = [variable for variable in kernels if len(variable.shape) == 4]
    for number, kernel in enumerate(kernels, 1):
        *size, inputs, outputs = kernel.shape
        bias = any(other.layer == kernel.layer and not other.is_kernel for other in variables)
        if len(kernel.shape) == 4 and size[0] == size[1]:
            last = kernel is convolutions[-1]
            layer = Layer(f"conv{number}", "conv", inputs, outputs, kernel=size[0], stride=2, bias=bias, dropout=True)
            layers.append(replace(layer, global_average_pool=last))
        elif len(kernel.shape) == 2:
            name, last = f"fc{number - len(convolutions)}", kernel is kernels[-1]
            layers.append(Layer(name, "linear", inputs, outputs, bias=bias, activation=not last, dropout=not last))
        else:
            found = f"{kernel.name}: found the shape {kernel.shape}; expected a square convolution or a dense layer"
            raise SpecError(f"{path / LAYOUT}: {found}")
    return Schema("cnn_unterthiner", (layers[0].inputs, side, side) if convolutions else (1, side, side), tuple(layers))
