"""Reading a zoo: its metadata, its weights, runnable models.

>>> zoo = open_zoo("zoos/tetris_seed", split="test")
>>> zoo.metadata.num_rows, zoo.weights().shape
>>> zoo.module(zoo.models[0], epoch=75)
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zootools.architectures import Schema
from zootools.conditions import parse_condition
from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError, did_you_mean
from zootools.images.shapes import names_of_classes
from zootools.selection import Epoch, best_row, best_rows, full_id, last_rows, rows_at, unknown_model
from zootools.spec import ImageFacts, ZooSpec
from zootools.storage.build_state import PLAN, ZooFolder
from zootools.storage.imported import COLUMN_NAME, Imported
from zootools.storage.manifest import PAGE, Counts, Manifest, count_outcomes, read_manifest
from zootools.storage.manifest_checks import check_against_origin, check_tables, stored_origin
from zootools.storage.mapped_weights import MappedWeights, WeightRows
from zootools.storage.part import PART, Part, Selection, read_part
from zootools.storage.place import Place
from zootools.storage.records import Plan, Stop
from zootools.storage.shards import shard_name
from zootools.storage.table_reader import read_metadata
from zootools.storage.table_writer import add_weights
from zootools.storage.tables import SPLITS, check_scores, is_accuracy_summary, metadata_table
from zootools.storage.verified_files import FileInfo, VerifiedFiles
from zootools.text import printable

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from zootools.architectures.networks import Network
    from zootools.checkpoint_dataset import CheckpointDataset

_BLOCK = 256
"""Checkpoints that an iteration reads at a time."""


@dataclass(frozen=True, repr=False)
class Zoo:
    """The checkpoints of a zoo, or some of them. Weights are read when they are requested.

    ``zoo[0]`` is a checkpoint: a dictionary of its metadata and its ``weights``, float32 ``[parameters]``. ``zoo[:10]``
    is a zoo again. Iteration yields one checkpoint after the other.
    """

    folder: Path
    stored_spec: ZooSpec | None
    """The specification; None for a population that zootools did not build."""
    schema: Schema
    """The layers of every model."""
    metadata: pa.Table
    """One row per checkpoint: identity, hyper-parameters, losses, accuracies, F scores (docs/zoo-format.md)."""
    counts: Counts
    """The numbers of models and checkpoints of the whole zoo."""
    stopped: dict[str, Stop]
    """The diverged models of the whole zoo."""
    files: VerifiedFiles = field(default_factory=lambda: VerifiedFiles(Path(), {}), compare=False)
    """The shards, each compared with its sha256 before it is first read."""
    finished: bool = True
    place: Place | None = None
    """Where the zoo was found (`zootools.hub.locate`): its name and, if it came from a hub, its commit."""
    left_out: dict[str, str] = field(default_factory=dict, compare=False)
    """Columns of a population of another tool that were not read, and why (`zootools.hub.foreign`)."""
    imported: Imported | None = None
    """The record of the import of a zoo that zootools did not build; None for a built one."""
    part: Part | None = None
    """What the folder is a part of (`zootools.storage.part`); None for a whole zoo."""
    runs: bool = True
    """Whether the schema is enough to run a network; that of an index is not."""
    opened: int | None = field(default=None, repr=False, compare=False)
    """Number of checkpoints when `zootools.open.open_zoo` had opened the zoo, before any condition of its caller."""
    image_facts: ImageFacts = field(default_factory=ImageFacts, repr=False, compare=False)
    """What the files of the images say and the specification does not: names of classes, mean and standard deviation
    of each channel."""

    @property
    def spec(self) -> ZooSpec:
        """The specification. Raises SpecError for a population that zootools did not build."""
        if self.stored_spec is None:
            raise SpecError(f"{self.name}: was not built by zootools, and has no specification")
        return self.stored_spec

    @property
    def name(self) -> str:
        """The name in the specification or the record of the import; else that by which the zoo was opened."""
        if (origin := self.stored_spec or self.imported) is not None:
            return origin.name
        return self.place.name if self.place is not None else self.folder.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes of the images, in the order of the labels and of `test_f1`; empty if not known."""
        origin = self.stored_spec or self.imported
        return names_of_classes(origin and origin.images, self.image_facts, self.schema.classes)

    @property
    def notes(self) -> list[str]:
        """One sentence for every name in the specification that is unknown here, and one for a part of a zoo."""
        names = self.stored_spec.unknown_names if self.stored_spec is not None else []
        notes = [f"{name} is not known to this version of zootools" for name in names]
        if self.part is not None:
            notes.append(f"is a part of {self.part.zoo}: {self.part.selection}")
        return notes

    def __len__(self) -> int:
        return int(self.metadata.num_rows)

    def __repr__(self) -> str:
        size = f"{len(self.models):,} models, {len(self):,} checkpoints of {self.schema.size:,} weights"
        return printable(f"<Zoo {self.name}: {size}, in {self.folder}>")

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> "Zoo": ...

    def __getitem__(self, index: int | slice) -> "dict[str, Any] | Zoo":
        if isinstance(index, slice):
            return replace(self, metadata=self.metadata[index])
        place = range(len(self))[index]
        return next(iter(self[place : place + 1]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _BLOCK):
            block = self[start : start + _BLOCK]
            for row, weights in zip(block.metadata.to_pylist(), block.weights(), strict=True):
                yield row | {"weights": weights}

    @property
    def is_part(self) -> bool:
        """Whether these are not all checkpoints that were opened."""
        return len(self) != (self.counts.checkpoints if self.opened is None else self.opened)

    @cached_property
    def models(self) -> list[str]:
        """The ids of the models, in the order of their first checkpoint."""
        return list(pc.unique(self.metadata["model_id"]).to_pylist())

    def where(self, condition: str | pc.Expression) -> "Zoo":
        """Return the checkpoints for which a condition on metadata columns holds: a text, or an Arrow expression.

        ``zoo.where("epoch == 25 and test_accuracy > 0.9")`` (`zootools.conditions.parse_condition`), or
        ``zoo.where((pc.field("epoch") == 25) & (pc.field("test_accuracy") > 0.9))``.
        Raises SpecError for a text that is not a condition, and for columns or types that do not fit the zoo.
        """
        if isinstance(condition, str):
            condition = parse_condition(condition, self.metadata.schema)
        try:
            return replace(self, metadata=self.metadata.filter(condition))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise SpecError(f"where: {error}; columns: {', '.join(self.metadata.column_names)}") from error

    def select(self, only: Selection) -> "Zoo":
        """Return the chosen checkpoints. Raises SpecError for epochs of which none is stored, and as `where` does."""
        zoo = self
        if only.epochs is not None:
            stored = pc.unique(self.metadata["epoch"]).to_pylist()
            if not {*only.epochs} & {*stored}:
                shown = ", ".join(map(str, only.epochs))
                raise SpecError(f"{self.name}: epochs: found {shown:.80}; stored: {str(sorted(stored))[1:-1]:.200}")
            zoo = zoo.where(pc.field("epoch").isin(list(only.epochs)))
        return zoo if only.where is None else zoo.where(only.where)

    def split(self, name: str) -> "Zoo":
        """Return the checkpoints of one split: ``train``, ``validation`` or ``test``."""
        if name not in SPLITS:
            raise SpecError(f"split: found {name!r}{did_you_mean(name, SPLITS)}")
        return self.where(pc.field("split") == name)

    def with_column(self, name: str, values: Iterable[Any]) -> "Zoo":
        """Return the same checkpoints with one more column of metadata, which `where` and probes then know.

        Args:
            name: the new name: letters, digits and ``_``.
            values: one number, text or truth value for each checkpoint, in the order of `metadata`; None or NaN where
                it is not known. A sequence, an array, or a tensor on the CPU.

        Raises SpecError for a name that is taken, another number of values, or values of several types.
        """
        if not re.fullmatch(COLUMN_NAME, name):
            raise SpecError(f"with_column: found the name {name!r:.120}; expected letters, digits and _")
        if name in (*self.metadata.column_names, "weights"):
            raise SpecError(f"with_column: there is a column {name} already")
        try:
            column = pa.array(np.asarray(values) if hasattr(values, "__array__") else list(values))
        except (pa.ArrowException, TypeError, ValueError, RuntimeError) as error:
            raise SpecError(f"with_column: {name}: {error}") from error
        if len(column) != len(self):
            raise SpecError(f"with_column: {name}: found {len(column):,} values for {len(self):,} checkpoints")
        return replace(self, metadata=self.metadata.append_column(name, column))

    def mapped_weights(self) -> WeightRows:
        """Return the flat weights of all checkpoints, in the order of `metadata`, without reading them.

        `WeightRows.take` reads rows. The files of a zoo that is not on this machine are downloaded first. Raises
        SpecError for a part of a zoo that has metadata only.
        """
        if self.part is not None and not self.part.weights:
            raise SpecError(
                f"{self.folder}: has the metadata of {self.part.zoo} only; `zootools pull {self.part.zoo} "
                f"{self.folder}` fetches the weights"
            )
        table = self.metadata
        if self.place is not None and self.place.fetches:
            shards = table.group_by(["stack", "epoch"]).aggregate([]).to_pylist()
            self.place.fetch(shard_name(shard["stack"], shard["epoch"]) for shard in shards)
        return MappedWeights(self.files, self.schema, table["stack"], table["epoch"], table["row"])

    def weights(self) -> "Tensor":
        """Return the flat weights of all checkpoints, in the order of `metadata`.

        float32 ``[checkpoints, parameters]``, copied once from the mapped shards. The order inside a row is that of
        `Schema.parameters`. Raises DamagedZooError for a shard that is missing or was changed.
        """
        import torch

        return torch.from_numpy(self.mapped_weights().read_all())

    def dataset(self, columns: Sequence[str] = ()) -> "CheckpointDataset":
        """Return the checkpoints as a data set for ``torch.utils.data.DataLoader``, in the order of `metadata`.

        An item is a dictionary: ``weights``, float32 ``[parameters]``, and the values of ``columns``. A number that is
        not known is NaN. Weights are read when an item is requested, also by the workers of a loader, which open the
        files themselves; a copy of the data set for a worker contains no weights.

        Raises SpecError for a column that does not exist, or whose values a loader cannot collate; DamagedZooError,
        from the loader, for a shard that is missing or was changed.
        """
        from zootools.checkpoint_dataset import CheckpointDataset

        return CheckpointDataset(self.mapped_weights(), self.metadata, columns)

    def model_id(self, prefix: str) -> str:
        """Return the id of the only model whose id begins with ``prefix``.

        Raises ZooNotFoundError, with the candidates, if there are several, and with the most similar id if there is
        none.
        """
        if (found := full_id(self.models, prefix)) is None:
            raise ZooNotFoundError(f"{self.folder}: {unknown_model(self.models, prefix)}")
        return found

    def model(self, model_id: str) -> "Zoo":
        """Return the checkpoints of one model, by its id or the beginning of it that no other id has (`model_id`)."""
        return self.where(pc.field("model_id") == self.model_id(model_id))

    def last(self) -> "Zoo":
        """Return the last checkpoint of each model: the one at its largest epoch."""
        return replace(self, metadata=last_rows(self.metadata))

    def best(self, metric: str) -> "Zoo":
        """Return the best checkpoint of each model, the earliest of equal ones; models without any value have none.

        The best is the one with the lowest loss or error (`zootools.selection.lower_is_better`), the generalization
        gap closest to zero, the highest mean of the F scores (``test_f1``), the highest value of any other metric.
        Raises SpecError, with the nearest metric, for an unknown one.
        """
        return replace(self, metadata=best_rows(self.metadata, metric))

    def best_checkpoint(self, metric: str) -> "Zoo":
        """Return the one checkpoint with the best value of a metric (`best`): the earliest, then the smallest id.

        Raises SpecError, with the nearest metric, for an unknown one, and if no checkpoint has a value.
        """
        return replace(self, metadata=best_row(self.metadata, metric))

    def at(self, epoch: Epoch) -> "Zoo":
        """Return one checkpoint per model: at an epoch, ``"last"``, or ``"best"``; models without it have none.

        The best is that of `best` by the accuracy on the validation set, or on the test set without one.
        """
        return replace(self, metadata=rows_at(self.metadata, epoch))

    def to_dataset(self, weights: bool = True) -> "Dataset":
        """Return the checkpoints as a `datasets.Dataset`, in the order of `metadata`.

        If the zoo was opened with ``include_diverged=True``, a split of it has the features and rows of
        ``load_dataset(folder, "checkpoints", split=...)``; with ``weights=False``, those of the configuration
        ``metadata``. The weights come from the shards, so this works for unfinished zoos as well. The column
        ``weights`` (fixed-size lists of float32) is in memory, copied once from the shards.

        Raises DamagedZooError for a shard that is missing or was changed.
        """
        from datasets import Dataset

        table = self.metadata.combine_chunks()
        return Dataset(add_weights(table, self.weights().numpy()) if weights else table)

    def checkpoint(self, model_id: str, epoch: Epoch) -> "Zoo":
        """Return the one checkpoint of a model (`model`) at an epoch (`at`).

        Raises ZooNotFoundError with the stored epochs.
        """
        rows = self.model(model_id)
        chosen = rows.at(epoch)
        if not len(chosen):
            epochs = rows.metadata["epoch"].to_pylist()
            raise ZooNotFoundError(f"{self.folder}: model {rows.models[0]} has no epoch {epoch}; stored: {epochs}")
        return chosen

    def state_dict(self, model_id: str, epoch: Epoch) -> "dict[str, Tensor]":
        """Return the parameters of a checkpoint by name, as ``nn.Module.load_state_dict`` takes them."""
        flat = self.checkpoint(model_id, epoch).weights()[0]
        return {p.name: flat[p.offset : p.end].view(p.shape) for p in self.schema.parameters}

    def module(self, model_id: str, epoch: Epoch) -> "Network":
        """Return a runnable network with a checkpoint's weights, in evaluation mode.

        Raises SpecError for a population of another tool whose schema is an index, or whose activation is not known.
        """
        from zootools.architectures.networks import Network

        row = self.checkpoint(model_id, epoch).metadata.to_pylist()[0]
        if self.stored_spec is None:
            self._check_runs(row)
        network = Network(self.schema, row["activation"], row.get("dropout") or 0.0)
        network.load_state_dict(self.state_dict(model_id, epoch))
        return network.eval()

    def _check_runs(self, row: dict[str, Any]) -> None:
        """Raise SpecError unless the network of a row of another tool's metadata can be run."""
        from zootools.architectures.networks import ACTIVATIONS

        if not self.runs or "activation" not in row:
            raise SpecError(
                f"{self.name}: a network needs a layer schema (not only an index) and a column named activation"
            )
        place = f"{self.name}: model {row['model_id']}"
        if row["activation"] not in ACTIVATIONS:
            choices = did_you_mean(str(row["activation"]), ACTIVATIONS)
            raise SpecError(f"{place}: activation: found {row['activation']!r:.80}{choices}")
        dropout = row.get("dropout")
        if dropout is not None and not (isinstance(dropout, int | float) and 0 <= dropout < 1):
            raise SpecError(f"{place}: dropout: found {dropout!r:.80}; expected 0 <= dropout < 1")


def open_folder(folder: Path, verify: bool = True) -> Zoo:
    """Open a finished or unfinished zoo in a folder, with all its checkpoints; retry if a builder finishes it then.

    Raises what `zootools.open.open_zoo` raises.
    """
    store = ZooFolder(folder)
    while True:
        plan = store.read_plan()
        try:
            zoo = _open_finished(store.path, verify) if plan is None else _open_unfinished(store, plan, verify)
        except (DamagedZooError, ZooNotFoundError):
            if store.has(PLAN) == (plan is not None):
                raise
        else:
            if store.has(PLAN) == (plan is not None):
                return zoo


def _open_finished(folder: Path, verify: bool) -> Zoo:
    manifest = read_manifest(folder)
    origin, schema = stored_origin(folder, manifest), manifest.layer_schema
    keys = check_against_origin(manifest, origin, folder / "zoo.json")
    check_tables(manifest, folder / "zoo.json")
    files = VerifiedFiles(folder, manifest.files, verify)
    files.expect_rows(keys.shard_rows())
    metadata = read_metadata(files, origin, manifest.splits.by_name(), schema.classes, manifest.images.class_names)
    for name in ("model_id", "epoch", "stack", "row"):
        if not metadata[name].combine_chunks().equals(pa.array(getattr(keys, name), metadata.schema.field(name).type)):
            raise DamagedZooError(f"the metadata's column {name} is not what zoo.json makes", path=folder)
    if not is_accuracy_summary(manifest.test_accuracy, metadata):
        raise DamagedZooError("test_accuracy: is not that of the metadata", path=folder / "zoo.json")
    imported, part = manifest.imported, read_part(folder)
    if part is not None and part.manifest != manifest.sha256:
        raise DamagedZooError("is of another zoo than zoo.json", path=folder / PART)
    zoo = Zoo(
        folder,
        origin if isinstance(origin, ZooSpec) else None,
        schema,
        metadata,
        manifest.counts,
        manifest.stopped,
        files=files,
        finished=not manifest.is_partial,
        imported=imported,
        part=part,
        runs=imported is None or imported.runs,
        image_facts=manifest.images,
    )
    return zoo if part is None else zoo.select(part.selection)


def part_files(chosen: Zoo, manifest: Manifest, only: Selection) -> list[str]:
    """Return the files of a manifest that a part needs: those of the zoo as a whole, and shards of chosen checkpoints.

    A part has neither the tables with weights, which are derived from all shards, nor the interactive page.
    """
    shards = set[str]()
    if only.weights:
        pairs = chosen.metadata.group_by(["stack", "epoch"]).aggregate([]).to_pylist()
        shards = {shard_name(pair["stack"], pair["epoch"]) for pair in pairs}
    left_out = ("checkpoints/", "data/", PAGE)
    return [file for file in manifest.files if file in shards or not file.startswith(left_out)]


def _open_unfinished(store: ZooFolder, plan: Plan, verify: bool) -> Zoo:
    records, stopped, files = store.read_records(plan), dict[str, Stop](), dict[str, FileInfo]()
    for record in records:
        if record is not None:
            stopped |= record.stopped
            files |= record.shards
    shards = store.read_shards(plan, records)
    metadata = metadata_table(plan.spec, plan.models(), shards, stopped, plan.images.class_names)
    try:
        check_scores(metadata, plan.schema.classes)
    except ValueError as error:
        raise DamagedZooError(f"the scores in its shards: {error}", path=store.path) from error
    counts = Counts(**count_outcomes(plan, records).model_dump(), checkpoints=metadata.num_rows)
    checked = VerifiedFiles(store.path, files, verify)
    return Zoo(
        store.path,
        plan.spec,
        plan.schema,
        metadata,
        counts,
        stopped,
        files=checked,
        finished=False,
        image_facts=plan.images,
    )
