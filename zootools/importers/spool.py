"""The blocks of an import that is under way, in ``.work/import`` of its zoo's folder.

A block is two files: its weights as plain float32 values, and then its table as Arrow data, which commits it. An
interrupted import resumes after the last committed block, and no reader takes the folder for a zoo: it has neither
zoo.json nor a plan.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from zootools.errors import DamagedZooError
from zootools.filesystem.inside import open_inside, read_inside, remove_tree_inside
from zootools.hashing import pretty_json
from zootools.importers.importer import Block, LeftOut
from zootools.spec.sections import Section
from zootools.storage.build_state import IMPORT, ZooFolder
from zootools.storage.hashed_json import add_hash, read_hashed, validate
from zootools.storage.imported import SourceFiles
from zootools.storage.records import Digest, LayerSchema
from zootools.storage.verified_files import unreadable

FOLDER = ".work/import"
MAX_TABLE = 1 << 30
"""Bytes of the table of one block."""
FINITE = "__finite__"
"""Column of a stored table: whether the weights of a row are finite."""


class Begin(Section):
    """What an import was begun with; another one does not resume it."""

    kind: str
    source: SourceFiles
    layer_schema: LayerSchema
    options: dict[str, str]
    """The options as texts (`zootools.importers.options.described`)."""
    sha256: Annotated[Digest, Field(exclude=True)] = "0" * 64


@dataclass
class Spool:
    """The stored blocks of an import."""

    zoo: ZooFolder
    size: int
    """Number of parameters of a model."""
    tables: list[pa.Table] = field(default_factory=list)
    """The table of every block, with the column `FINITE`."""
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def opened(cls, zoo: ZooFolder, begin: Begin) -> Self:
        """Return the blocks that an interrupted import has stored; those of another import are removed first."""
        spool = cls(zoo, begin.layer_schema.size)
        before: Begin | None = None
        with suppress(FileNotFoundError, DamagedZooError):
            before = validate(Begin, read_hashed(zoo.path, IMPORT), zoo.path / IMPORT)
        if before is None or before.model_dump() != begin.model_dump():
            spool.remove()
            zoo.write(IMPORT, pretty_json(add_hash(begin.model_dump())))
        while zoo.has(_name(len(spool.tables), "arrow")):
            spool._take(_read_table(zoo.path, _name(len(spool.tables), "arrow")))
        return spool

    @property
    def rows(self) -> int:
        """The number of stored checkpoints."""
        return sum(table.num_rows for table in self.tables)

    def add(self, block: Block) -> None:
        """Store a block; it is on the disk when this returns."""
        weights = np.ascontiguousarray(block.weights, np.float32)
        if weights.shape != (block.table.num_rows, self.size):
            expected = (block.table.num_rows, self.size)
            raise AssertionError(f"an importer returned weights {weights.shape}, expected {expected}")
        number = len(self.tables)
        with self.zoo.file(_name(number, "weights")) as file:
            file.write(weights.data)
        finite = pa.array(np.isfinite(weights).all(axis=1), pa.bool_())
        about = {"left_out": json.dumps(block.left_out), "notes": json.dumps(list(block.notes))}
        table = block.table.append_column(FINITE, finite).replace_schema_metadata(about)
        data = BytesIO()
        with pa.ipc.new_stream(data, table.schema) as writer:
            writer.write_table(table)
        self.zoo.write(_name(number, "arrow"), data.getvalue())
        self._take(table)

    def _take(self, table: pa.Table) -> None:
        about = table.schema.metadata
        self.left_out += [LeftOut(*entry) for entry in json.loads(about[b"left_out"])]
        self.notes += [note for note in json.loads(about[b"notes"]) if note not in self.notes]
        self.tables.append(table.replace_schema_metadata(None))

    def gather(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the weights of rows of the population, float32 ``[len(rows), parameters]``; only these are read."""
        result = np.empty((len(rows), self.size), np.float32)
        starts = np.cumsum([0, *(table.num_rows for table in self.tables)])
        blocks = np.searchsorted(starts, rows, side="right") - 1
        for block in np.unique(blocks).tolist():
            name = _name(block, "weights")
            places = np.flatnonzero(blocks == block)
            try:
                with open_inside(self.zoo.path, name) as file:
                    for place in places.tolist():
                        offset = int(rows[place] - starts[block]) * self.size * 4
                        if os.preadv(file.fileno(), [memoryview(result[place]).cast("B")], offset) != 4 * self.size:
                            raise DamagedZooError("has been cut short during the import", path=self.zoo.path / name)
            except OSError as error:
                raise DamagedZooError(unreadable(error), path=self.zoo.path / name) from error
        return result

    def remove(self) -> None:
        """Remove all blocks."""
        remove_tree_inside(self.zoo.path, FOLDER)


def is_begun(zoo: ZooFolder) -> bool:
    """Whether a folder has an import that is under way or was interrupted."""
    return zoo.has(IMPORT)


def _name(block: int, ending: str) -> str:
    return f"{FOLDER}/block-{block:06d}.{ending}"


def _read_table(folder: Path, name: str) -> pa.Table:
    try:
        return pa.ipc.open_stream(read_inside(folder, name, MAX_TABLE)).read_all()
    except (OSError, pa.ArrowException) as error:
        raise DamagedZooError(f"cannot be read ({error}); remove {FOLDER} to begin anew", path=folder / name) from error
