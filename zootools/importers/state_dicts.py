"""The kind ``state-dicts``: files with one state dict each, safetensors or pickles of torch, in a folder.

The properties come from a table, or from the paths of the files (`zootools.importers.properties`).
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from zootools.architectures import Schema
from zootools.errors import SpecError, StorageError, ZooNotFoundError
from zootools.importers.importer import Block, Facts, ImportOptions, LeftOut, rows_per_block
from zootools.importers.options import chosen_schema, existing
from zootools.importers.parameters import UnfitStateError, flatten
from zootools.importers.pickles import read_states
from zootools.importers.properties import PathPattern, PathTable, Values
from zootools.storage.file_rules import is_hidden

ENDINGS = (".safetensors", ".pt", ".pth")
BLOCK_FILES = 2048
"""Files of a block at most: what an interruption of the import can cost."""


class StateDicts:
    """An `zootools.importers.importer.Importer` of files with one state dict each."""

    options: ClassVar[frozenset[str]] = frozenset({"model_schema", "architecture", "properties", "path_pattern"})

    def open(self, path: Path, options: ImportOptions) -> "StateDictPopulation":
        """List the files, and find the properties of each. Raises what `zootools.importers.importer.Importer` raises.

        ``path`` is a folder, a file or a glob pattern. Two files of one model and epoch are refused by name.
        """
        schema, runs = chosen_schema(options)
        root, names = _files(path)
        pattern = PathPattern.parsed(options.path_pattern) if options.path_pattern is not None else None
        table = PathTable.read(options.properties, root) if options.properties is not None else None
        taken, left_out = _described(path, names, pattern, table)
        _check_once(path, taken)
        return StateDictPopulation(root, schema, runs, taken, left_out, options.properties)


def _files(path: Path) -> tuple[Path, list[str]]:
    """Return a folder, and the names of the files below it that a path means, sorted."""
    text = str(path)
    if not os.path.lexists(path) and glob.has_magic(text):
        parts = path.parts
        first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:first])
        found = (match.relative_to(root).as_posix() for match in root.glob("/".join(parts[first:])) if match.is_file())
        names = sorted(name for name in found if not is_hidden(name))
        if not names:
            raise ZooNotFoundError(f"{path}: no file matches this pattern")
        return root, names
    existing(path)
    if path.is_file():
        return path.parent, [path.name]

    def refuse(error: OSError) -> None:
        raise StorageError(f"{error.filename}: cannot be read ({error.strerror})") from error

    names = []
    for where, folders, files in os.walk(path, onerror=refuse):
        inside = Path(where).relative_to(path)
        folders[:] = [name for name in folders if not is_hidden(f"{(inside / name).as_posix()}/x")]
        names += [(inside / name).as_posix() for name in files if name.endswith(ENDINGS)]
    names = sorted(name for name in names if not is_hidden(name))
    if not names:
        raise ZooNotFoundError(f"{path}: holds no files that end in {', '.join(ENDINGS)}")
    return path, names


def _described(
    path: Path, names: Sequence[str], pattern: PathPattern | None, table: PathTable | None
) -> tuple[dict[str, Values], list[LeftOut]]:
    """Return the properties of every file that is imported, and the files that are not."""
    taken, left_out = dict[str, Values](), list[LeftOut]()
    for name in names:
        values: Values = {}
        if pattern is not None:
            matched = pattern.values(name)
            if matched is None:
                left_out.append(LeftOut(name, f"does not match the pattern {pattern.text}"))
                continue
            values |= matched
        if table is not None:
            row = table.rows.get(name)
            if row is None:
                left_out.append(LeftOut(name, f"has no row in {table.path.name}"))
                continue
            if both := sorted(key for key in row.keys() & values.keys() if pattern and key in pattern.types):
                raise SpecError(
                    f"{both[0]} is a column of {table.path} and a field of the pattern; expected one of them"
                )
            values |= row
        taken[name] = {"model": name, "epoch": 0, **values}
    if table is not None:
        left_out += [
            LeftOut(name, f"is a row of {table.path.name} without a file") for name in table.rows.keys() - {*names}
        ]
    if not taken:
        how = f"no path matches {pattern.text!r}" if pattern is not None else "no file has a row in the table"
        raise SpecError(f"{path}: {how}; the first of {len(names):,} files is {names[0]!r}")
    return taken, left_out


def _check_once(path: Path, taken: dict[str, Values]) -> None:
    """Raise SpecError for two files of one model and epoch."""
    seen: dict[tuple[str, int], str] = {}
    for name, values in taken.items():
        other = seen.setdefault((values["model"], values["epoch"]), name)
        if other != name:
            raise SpecError(
                f"{path}: the files {other!r} and {name!r} are both of the model {values['model']!r}, epoch "
                f"{values['epoch']}"
            )


@dataclass(frozen=True)
class StateDictPopulation:
    """A `zootools.importers.importer.Population` of files with one state dict each."""

    root: Path
    schema: Schema
    runs: bool
    taken: dict[str, Values]
    """The properties of the files, with ``model`` and ``epoch``, by their names below `root`."""
    left_out: Sequence[LeftOut]
    table: Path | None

    @cached_property
    def facts(self) -> Facts:
        """See `zootools.importers.importer.Population`."""
        files = [self.root / name for name in self.taken]
        return Facts(
            name=self.root.absolute().name,
            schema=self.schema,
            files=[*files, self.table] if self.table is not None else files,
            root=self.root,
            checkpoints=len(files),
            runs=self.runs,
        )

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Yield a block for every `BLOCK_FILES` files, or fewer of large networks."""
        size, names = min(BLOCK_FILES, rows_per_block(self.schema)), list(self.taken)
        left = names[start * size :]
        states = read_states([self.root / name for name in left])
        for first in range(0, len(left), size):
            flats, rows, left_out, kinds = [], [], list[LeftOut](), set[str]()
            if not first and not start:
                left_out += self.left_out
            for name, state in zip(left[first : first + size], islice(states, size), strict=False):
                try:
                    if isinstance(state, str):
                        raise UnfitStateError(state)
                    flats.append(flatten(state, self.schema))
                    kinds |= {str(values.dtype) for values in state.values() if values.dtype.kind == "f"}
                except UnfitStateError as error:
                    left_out.append(LeftOut(name, str(error)))
                else:
                    rows.append(self.taken[name])
            weights = np.stack(flats) if flats else np.empty((0, self.schema.size), np.float32)
            odd = sorted(kinds - {"float32"})
            notes = [f"weights that are stored as {', '.join(odd)} were converted to float32"] if odd else []
            yield Block(weights, _table(rows), left_out, notes)


def _table(rows: Sequence[Values]) -> pa.Table:
    """Return the properties of some files as a table."""
    names = dict.fromkeys(["model", "epoch", *(name for row in rows for name in row)])
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SpecError(f"the property {name!r} holds values of different kinds ({error!s:.200})") from error
    columns["model"], columns["epoch"] = columns["model"].cast(pa.string()), columns["epoch"].cast(pa.int64())
    return pa.table(columns)
