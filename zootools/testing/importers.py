"""The tests of an importer: inherit from `ImporterTests` and define one fixture.

>>> class TestMyImporter(ImporterTests):
...     @pytest.fixture
...     def example(self, tmp_path: Path) -> ImporterExample:
...         path = tmp_path / "population"
...         weights, properties = write_my_format(path)  # without the code under test
...         return ImporterExample(MyImporter(), path, weights, properties, {"cut": cut_last_file}, write_many)
"""

import shutil
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from zootools.errors import DamagedZooError, SpecError, ZooError, ZooNotFoundError
from zootools.importers import importer as protocol
from zootools.importers.importer import Block, Facts, Importer, ImportOptions, Population, rows_per_block
from zootools.importers.importing import import_zoo
from zootools.importers.table import IMPORTERS
from zootools.open import open_zoo
from zootools.zoo import Zoo

KIND = "under-test"
"""The kind under which the importer is registered during a test."""
ROWS = 2
"""Checkpoints in a block during most tests, so that a small population has several."""
LARGE = 16 << 20
"""Bytes of weights of the population of `ImporterExample.write_large`."""

Key = tuple[str, int]
"""The name of a model in its population, and an epoch."""


@dataclass(frozen=True)
class ImporterExample:
    """A small population, and what is in it, known without the importer under test."""

    importer: Importer
    path: Path
    """The population: at least two models and five checkpoints, all of them complete and finite."""
    weights: Mapping[Key, npt.NDArray[np.float32]]
    """The flat weights that must be imported, float32 ``[parameters]`` in the order of `Schema.parameters`."""
    properties: Mapping[Key, Mapping[str, Any]]
    """The properties that must be imported, by the names of columns; None where a value is not known."""
    damages: Mapping[str, Callable[[Path], None]]
    """Functions that damage a copy of the population, by name: cut a file, exchange two. An import must then fail, or
    leave out what is damaged and count it; it must not import other weights."""
    write_large: Callable[[Path, int], None]
    """Writes a population with at least this number of bytes of weights, in many checkpoints, to a new path."""
    options: ImportOptions = field(default_factory=ImportOptions)


class ImporterTests:
    """The tests that every importer must pass.

    They cover the round trip of weights and properties, the identity of models, resuming, bounded memory, and damaged
    populations. A class that inherits from it defines the fixture `example`.
    """

    @pytest.fixture
    def example(self) -> ImporterExample:
        """The population to import; a class that inherits overrides it."""
        raise NotImplementedError("define the fixture `example`, which returns an ImporterExample")

    @pytest.fixture(autouse=True)
    def _registered(self, example: ImporterExample, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(IMPORTERS, KIND, lambda: example.importer)
        monkeypatch.setattr(protocol, "MAX_BLOCK_ROWS", ROWS)

    # --- the population ------------------------------------------------------------------------------------

    def test_facts_are_known_before_weights_are_read(self, example: ImporterExample) -> None:
        """The facts name existing files inside the population, and the right numbers."""
        facts = open_population(example).facts
        assert facts.files
        assert all(file.is_file() and file.is_relative_to(facts.root) for file in facts.files)
        assert facts.checkpoints in (None, len(example.weights))
        assert {len(values) for values in example.weights.values()} == {facts.schema.size}

    def test_the_blocks_have_all_weights_and_properties(self, example: ImporterExample) -> None:
        """Every checkpoint is in one block, bit for bit; blocks have the size and the types of the protocol."""
        population = open_population(example)
        blocks, copies = list[Block](), list[npt.NDArray[np.float32]]()
        for block in population.blocks():
            blocks.append(block)
            copies.append(block.weights.copy())
        found: dict[Key, npt.NDArray[np.float32]] = {}
        for block, copy in zip(blocks, copies, strict=True):
            np.testing.assert_array_equal(block.weights, copy, "a block was changed by the next one")
            assert block.weights.dtype == np.float32
            assert block.weights.shape == (block.table.num_rows, population.facts.schema.size)
            assert block.table.num_rows <= rows_per_block(population.facts.schema) == ROWS
            assert pa.types.is_string(block.table["model"].type) or not len(block.table)
            assert pa.types.is_integer(block.table["epoch"].type) or not len(block.table)
            for row, weights in zip(block.table.to_pylist(), block.weights, strict=True):
                key = (row["model"], row["epoch"])
                assert key not in found, f"{key} is in two blocks"
                found[key] = weights
                assert_properties(key, row, example.properties[key])
        assert_weights(found, example.weights)
        assert found.keys() == example.weights.keys()

    def test_the_sequence_of_blocks_can_be_entered_anywhere(self, example: ImporterExample) -> None:
        """``blocks(start)`` is the sequence without its first ``start`` blocks, also in a new population."""
        whole = list(open_population(example).blocks())
        assert len(whole) > 2
        for start in (1, len(whole) - 1, len(whole)):
            assert_equal_blocks(list(open_population(example).blocks(start)), whole[start:])

    # --- the zoo -------------------------------------------------------------------------------------------

    def test_the_zoo_has_the_weights_and_properties(self, example: ImporterExample, tmp_path: Path) -> None:
        """What `open_zoo` reads from the imported zoo is what was written."""
        run_import(example, tmp_path / "zoo")
        zoo = open_zoo(tmp_path / "zoo", include_diverged=True)
        keys = keys_of(zoo)
        assert_weights(dict(zip(keys, zoo.weights().numpy(), strict=True)), example.weights)
        assert sorted(keys) == sorted(example.weights)
        for key, row in zip(keys, zoo.metadata.to_pylist(), strict=True):
            assert_properties(key, row, example.properties[key])

    def test_an_import_does_not_depend_on_the_place(self, example: ImporterExample, tmp_path: Path) -> None:
        """A copy of the population elsewhere, imported elsewhere, has the same models and the same bytes."""
        copy = tmp_path / "elsewhere" / example.path.name
        copy.parent.mkdir()
        copy_population(example.path, copy)
        run_import(example, tmp_path / "one")
        run_import(example, tmp_path / "two", copy)
        assert contents(tmp_path / "one") == contents(tmp_path / "two")

    def test_an_interrupted_import_resumes(
        self, example: ImporterExample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It leaves no zoo; the same call finishes it, reads no block twice, and gives the same bytes."""
        run_import(example, tmp_path / "whole")
        flaky = InterruptedImporter(example.importer, stop=1)
        monkeypatch.setitem(IMPORTERS, KIND, lambda: flaky)
        with pytest.raises(KeyboardInterrupt):
            run_import(example, tmp_path / "stopped")
        assert_no_zoo(tmp_path / "stopped")
        flaky.stop = None
        run_import(example, tmp_path / "stopped")
        assert flaky.starts == [0, 1]
        assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")

    def test_memory_is_bounded(self, example: ImporterExample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reading all blocks of a large population takes a few times the memory of a block."""
        monkeypatch.setattr(protocol, "MAX_BLOCK_ROWS", 1 << 16)
        monkeypatch.setattr(protocol, "BLOCK_BYTES", LARGE // 16)
        example.write_large(tmp_path / "large", LARGE)
        tracemalloc.start()
        try:
            population = example.importer.open(tmp_path / "large", example.options)
            before = tracemalloc.get_traced_memory()[0]
            size = sum(block.weights.nbytes for block in population.blocks())
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert size >= LARGE
        assert peak < LARGE // 4

    # --- what is not a population --------------------------------------------------------------------------

    def test_a_damaged_population_gives_no_wrong_weights(self, example: ImporterExample, tmp_path: Path) -> None:
        """An import of it fails and leaves no zoo, or leaves out what is damaged and counts it."""
        assert example.damages
        for number, (name, damage) in enumerate(example.damages.items()):
            copy = tmp_path / str(number) / example.path.name
            copy.parent.mkdir()
            copy_population(example.path, copy)
            damage(copy)
            out = tmp_path / f"zoo-{number}"
            try:
                run_import(example, out, copy)
            except ZooError:
                assert_no_zoo(out)
                continue
            zoo = open_zoo(out, include_diverged=True)
            found = dict(zip(keys_of(zoo), zoo.weights().numpy(), strict=True))
            assert_weights(found, {key: example.weights[key] for key in found})
            assert zoo.imported is not None
            assert len(found) == len(example.weights) or zoo.imported.left_out, name

    def test_a_folder_without_a_population_is_refused(self, example: ImporterExample, tmp_path: Path) -> None:
        """So is a path at which there is nothing."""
        (tmp_path / "empty").mkdir()
        for path in (tmp_path / "empty", tmp_path / "nothing"):
            with pytest.raises((ZooNotFoundError, SpecError, DamagedZooError), match=path.name):
                run_import(example, tmp_path / "zoo", path)
            assert_no_zoo(tmp_path / "zoo")


class InterruptedImporter:
    """An importer whose populations raise KeyboardInterrupt before block ``stop``; ``starts`` lists the calls."""

    def __init__(self, importer: Importer, stop: int | None) -> None:
        self.options = importer.options
        self._importer, self.stop, self.starts = importer, stop, list[int]()

    def open(self, path: Path, options: ImportOptions) -> Population:
        """Open the population of the other importer."""
        return _InterruptedPopulation(self, self._importer.open(path, options))


class _InterruptedPopulation:
    def __init__(self, owner: InterruptedImporter, population: Population) -> None:
        self._owner, self._population = owner, population

    @property
    def facts(self) -> Facts:
        return self._population.facts

    def blocks(self, start: int = 0) -> Iterator[Block]:
        self._owner.starts.append(start)
        for number, block in enumerate(self._population.blocks(start), start):
            if number == self._owner.stop:
                raise KeyboardInterrupt
            yield block


def open_population(example: ImporterExample) -> Population:
    """Open the population of an example."""
    return example.importer.open(example.path, example.options)


def run_import(example: ImporterExample, out: Path, path: Path | None = None) -> None:
    """Import the population of an example, or another one, without re-evaluating its models."""
    values = {name: getattr(example.options, name) for name in example.options.model_fields_set}
    import_zoo(KIND, path or example.path, out, check=0, quiet=True, **values)


def copy_population(source: Path, target: Path) -> None:
    """Copy a file or a folder."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def keys_of(zoo: Zoo) -> list[Key]:
    """Return the name in its population and the epoch of each checkpoint."""
    column = "source_model" if "source_model" in zoo.metadata.column_names else "model_id"
    return list(zip(zoo.metadata[column].to_pylist(), zoo.metadata["epoch"].to_pylist(), strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a zoo by name, without build.json, which says when and where."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "build.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_no_zoo(folder: Path) -> None:
    """Assert that there is nothing that a reader opens."""
    with pytest.raises(ZooError):
        open_zoo(folder)
    assert not (folder / "zoo.json").exists()


def assert_weights(found: Mapping[Key, npt.NDArray[np.float32]], expected: Mapping[Key, npt.ArrayLike]) -> None:
    """Assert that the weights of the same checkpoints have the same bits."""
    for key, values in found.items():
        assert key in expected, f"{key} is not in the population"
        np.testing.assert_array_equal(values, expected[key], err_msg=str(key), strict=True)


def assert_properties(key: Key, row: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that a row has some properties; a missing column is one of nulls."""
    for name, value in expected.items():
        assert row.get(name) == value, f"{key}: {name}: {row.get(name)!r}, expected {value!r}"


def assert_equal_blocks(found: list[Block], expected: list[Block]) -> None:
    """Assert that two sequences of blocks are equal."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.weights, other.weights)
        assert one.table.equals(other.table)
        assert list(one.left_out) == list(other.left_out)
