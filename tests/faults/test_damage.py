"""Damaged zoos (rows D1-D4): every fault is found and named, loading refuses it, and a repair is undone by a build."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crash import TINY, Builders, fault_random, lane, tree
from hostile import replace_file, rewrite_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from zootools import open_zoo
from zootools.errors import BusyError, DamagedZooError, SpecError, ZooError
from zootools.filesystem.lock import FolderLock
from zootools.storage.build_state import ZooFolder
from zootools.storage.manifest import read_manifest
from zootools.storage.manifest_checks import stored_spec
from zootools.storage.reopening import reopen
from zootools.storage.shards import read_info
from zootools.storage.tables import metadata_table
from zootools.verify import UNLISTED, faults, repair

SHARD = "checkpoints/stack-00001/epoch-0002.safetensors"
RECORD = ".work/stack-00001.record"


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    def copy(zoo: Path) -> Path:
        shutil.copytree(zoo, tmp_path / "zoo")
        return tmp_path / "zoo"

    return copy


def is_read(name: str) -> bool:
    """Return whether `open_zoo` and `weights` read a file of a finished zoo (not README.md and data/)."""
    return name in ("zoo.json", "spec.yaml") or name.startswith(("checkpoints/", "metadata/"))


def load(folder: Path) -> None:
    open_zoo(folder, include_diverged=True).weights()


# --- D1 ------------------------------------------------------------------------------------------------


def flipped(data: bytes, position: int, bit: int) -> bytes:
    bad = bytearray(data)
    bad[position] ^= 1 << bit
    return bytes(bad)


def test_d1_every_flipped_bit_is_found_and_never_loaded(finished: Path, copy_of: Callable[[Path], Path]) -> None:
    """One bit of every file at a time: each must be refused when it alone is bad, and all be found together."""
    random, zoo, flips, loaded = fault_random("D1"), copy_of(finished), 0, 0
    names = sorted(name for name in tree(zoo) if name != "zoo.json")
    while flips < lane(800, 20_000):
        bad, good = {}, {name: (zoo / name).read_bytes() for name in [*names, "zoo.json"]}
        for name, data in good.items():
            bad[name] = flipped(data, random.randrange(len(data)), random.randrange(8))
            if is_read(name):
                (zoo / name).write_bytes(bad[name])
                with pytest.raises(DamagedZooError, match=Path(name).name.replace(".", r"\.")):
                    load(zoo)
                (zoo / name).write_bytes(good[name])
                loaded += 1
        (zoo / "zoo.json").write_bytes(bad["zoo.json"])
        assert [fault.name for fault in faults(zoo)] == ["zoo.json"]
        (zoo / "zoo.json").write_bytes(good["zoo.json"])
        # Without the specification there is no card to compare with, so one of the two is bad at a time.
        spared = random.choice(["spec.yaml", "README.md"])
        together = [name for name in names if name != spared]
        for name in together:
            (zoo / name).write_bytes(bad[name])
        assert sorted(fault.name for fault in faults(zoo)) == together
        for name in together:
            (zoo / name).write_bytes(good[name])
        flips += len(together) + 1
    assert list(faults(zoo)) == []
    load(zoo)
    print(f"D1: {flips} flipped bits: all found by verify; {loaded} in files that open_zoo reads: all refused")


def test_d1_flipped_bits_of_an_unfinished_zoo_are_found_and_never_resumed_from(
    unfinished: Path, copy_of: Callable[[Path], Path]
) -> None:
    """Plan, records with their optimizer state, images and shards; the lock file holds nothing but a message."""
    random, zoo = fault_random("D1 unfinished"), copy_of(unfinished)
    files = [p for p in sorted(zoo.rglob("*")) if p.is_file() and p.name not in ("build.json", "lock")]
    assert {RECORD, ".work/plan.json", ".work/images.safetensors"} <= {p.relative_to(zoo).as_posix() for p in files}
    for _ in range(lane(200, 5000)):
        path = random.choice(files)
        name, good = path.relative_to(zoo).as_posix(), path.read_bytes()
        position, bit = random.randrange(len(good)), random.randrange(8)
        path.write_bytes(flipped(good, position, bit))
        assert name in [fault.name for fault in faults(zoo)], (name, position, bit)
        if path.suffix == ".record":
            with pytest.raises(DamagedZooError):
                ZooFolder(zoo).state_bytes(int(path.stem[-5:]))
        path.write_bytes(good)
    assert list(faults(zoo)) == []


def test_loading_without_verification_is_a_choice(finished: Path, copy_of: Callable[[Path], Path]) -> None:
    zoo = copy_of(finished)
    (zoo / SHARD).write_bytes(flipped((zoo / SHARD).read_bytes(), -2, 0))
    with pytest.raises(DamagedZooError, match="sha256"):
        load(zoo)
    assert len(open_zoo(zoo, verify=False).weights()) == 24


def test_a_shard_that_changes_after_it_was_read_is_noticed(finished: Path, copy_of: Callable[[Path], Path]) -> None:
    zoo = copy_of(finished)
    opened = open_zoo(zoo)
    opened.weights()
    (zoo / SHARD).write_bytes(flipped((zoo / SHARD).read_bytes(), -2, 0))
    with pytest.raises(DamagedZooError, match="sha256"):
        opened.weights()


# --- D2 ------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 7)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero_page(path: Path) -> None:
    data = path.read_bytes()
    start = len(data) // 2
    path.write_bytes(data[:start] + bytes(min(4096, len(data) - start)) + data[start + 4096 :])


def delete(path: Path) -> None:
    path.unlink()


def pointer(path: Path) -> None:
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere.safetensors"))
    path.symlink_to(path.with_name("elsewhere.safetensors"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


TABLE = "metadata/train-00000-of-00001.parquet"
DATA = "data/train-00000-of-00001.parquet"
CHANGED = "its bytes have changed"
CASES: list[tuple[str, Callable[[Path], None], str]] = [
    *[(name, truncate, "bytes, expected") for name in (SHARD, TABLE, DATA, "spec.yaml")],
    ("zoo.json", truncate, "not valid JSON"),
    ("README.md", truncate, "is not the card"),
    *[(name, extend, "bytes, expected") for name in (SHARD, TABLE, DATA, "spec.yaml")],
    ("zoo.json", extend, "not valid JSON"),
    ("README.md", extend, "is not the card"),
    *[(name, empty, "has 0 bytes") for name in (SHARD, TABLE, DATA, "spec.yaml")],
    ("zoo.json", empty, "not valid JSON"),
    ("README.md", empty, "is not the card"),
    *[(name, zero_page, CHANGED) for name in (SHARD, TABLE, DATA, "spec.yaml")],
    ("zoo.json", zero_page, "not valid JSON"),
    ("README.md", zero_page, "is not the card"),
    *[(name, delete, "is missing") for name in (SHARD, TABLE, DATA, "spec.yaml", "README.md")],
    *[(name, pointer, "is a Git LFS pointer") for name in (SHARD, TABLE, DATA)],
    ("zoo.json", pointer, "not valid JSON"),
    *[(name, link, "is a link") for name in (SHARD, TABLE, DATA, "spec.yaml", "README.md")],
    *[(name, folder, "is a folder, not a plain file") for name in (SHARD, TABLE, DATA)],
]


@pytest.mark.parametrize(("name", "damage", "words"), CASES)
def test_d2_damage_is_named_with_its_file(
    finished: Path, copy_of: Callable[[Path], Path], name: str, damage: Callable[[Path], None], words: str
) -> None:
    zoo = copy_of(finished)
    damage(zoo / name)
    found = {fault.name: fault.what for fault in faults(zoo)}
    found.pop(str(Path(name).with_name("elsewhere.safetensors")), None)
    assert list(found) == [name]
    assert words in found[name]
    if is_read(name):
        with pytest.raises(DamagedZooError):
            load(zoo)


def test_d2_two_shards_in_each_others_place_are_both_named(finished: Path, copy_of: Callable[[Path], Path]) -> None:
    zoo = copy_of(finished)
    other = SHARD.replace("0002", "0003")
    first, second = (zoo / SHARD).read_bytes(), (zoo / other).read_bytes()
    (zoo / SHARD).write_bytes(second)
    (zoo / other).write_bytes(first)
    assert [fault.name for fault in faults(zoo)] == [SHARD, other]


def test_d2_a_file_beside_the_zoo_and_a_table_of_another_build_are_named(
    finished: Path, copy_of: Callable[[Path], Path], builders: Builders, spec: Path, tmp_path: Path
) -> None:
    zoo = copy_of(finished)
    shutil.copy(zoo / SHARD, zoo / "checkpoints/stack-00001/epoch-0099.safetensors")
    assert [(f.name, f.what) for f in faults(zoo)] == [
        ("checkpoints/stack-00001/epoch-0099.safetensors", "is not in the manifest")
    ]
    (spec.parent / "other.yaml").write_text(TINY.replace("1.0e-2", "2.0e-2"))
    assert builders.build(spec.parent / "other.yaml", tmp_path / "other") == 0
    shutil.copy(tmp_path / "other" / TABLE, zoo / TABLE)
    assert TABLE in [fault.name for fault in faults(zoo)]


def test_d2_intact_files_that_do_not_fit_each_other_are_named(finished: Path, copy_of: Callable[[Path], Path]) -> None:
    """All hashes are right, but the table says that the models have other scores than the shards do."""
    zoo = copy_of(finished)
    table = pq.read_table(zoo / TABLE)
    column = table.column_names.index("test_loss")
    pq.write_table(table.set_column(column, "test_loss", pa.array([0.5] * len(table))), zoo / TABLE)
    replace_file(zoo, TABLE, (zoo / TABLE).read_bytes())
    assert any("the column test_loss is not what the shards" in fault.what for fault in faults(zoo))


# --- D3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        [SHARD],
        [SHARD, SHARD.replace("stack-00001", "stack-00000")],
        [TABLE],
        ["README.md"],
        ["spec.yaml"],
        ["zoo.json"],
        [SHARD, TABLE, DATA, "README.md", "spec.yaml"],
    ],
    ids=lambda names: "+".join(Path(name).name for name in names) or "nothing",
)
@pytest.mark.parametrize("damage", [zero_page, delete, link])
def test_d3_a_repaired_zoo_is_built_again_with_the_same_bytes(
    finished: Path,
    copy_of: Callable[[Path], Path],
    builders: Builders,
    spec: Path,
    damaged: list[str],
    damage: Callable[[Path], None],
) -> None:
    if damaged == ["zoo.json"] and damage is not zero_page:
        pytest.skip("without zoo.json a folder is not a zoo")
    zoo = copy_of(finished)
    before = {path: path.stat().st_mtime_ns for path in zoo.rglob("*.safetensors")}
    for name in damaged:
        damage(zoo / name)
    dropped = {fault.name for fault in repair(zoo) if fault.what != UNLISTED}
    # Without the specification a card cannot be compared with it, so it is always written again.
    assert dropped == set(damaged) - ({"README.md"} if "spec.yaml" in damaged else set())
    for elsewhere in zoo.rglob("elsewhere.*"):
        elsewhere.unlink()
    untouched = [path for path in before if path.relative_to(zoo).as_posix() not in damaged]
    assert all(path.stat().st_mtime_ns == before[path] for path in untouched)
    if damaged:
        assert not any((zoo / name).exists() for name in damaged)
    assert builders.build(spec, zoo) == 0, Path(f"{zoo}.log").read_text()
    assert tree(zoo) == tree(finished)


@pytest.mark.parametrize(
    "damaged",
    [[RECORD], [".work/plan.json"], [".work/images.safetensors"], [SHARD.replace("0002", "0001")], [RECORD, SHARD]],
    ids=lambda names: "+".join(Path(name).name for name in names),
)
@pytest.mark.parametrize("damage", [zero_page, truncate])
def test_d3_a_repaired_unfinished_zoo_resumes_to_the_same_bytes(
    unfinished: Path,
    finished: Path,
    copy_of: Callable[[Path], Path],
    builders: Builders,
    spec: Path,
    damaged: list[str],
    damage: Callable[[Path], None],
) -> None:
    zoo = copy_of(unfinished)
    for name in damaged:
        if (zoo / name).exists():
            damage(zoo / name)
    assert repair(zoo)
    assert builders.build(spec, zoo) == 0, Path(f"{zoo}.log").read_text()
    assert tree(zoo) == tree(finished)


def test_d3_a_table_that_was_changed_together_with_its_hash_is_derived_again(
    finished: Path, copy_of: Callable[[Path], Path], builders: Builders, spec: Path
) -> None:
    """Zeroed weights in what ``load_dataset`` reads, one table that is not listed any more, and one too many."""
    zoo = copy_of(finished)
    table = pq.read_table(zoo / DATA)
    size = table.schema.field("weights").type.list_size
    zeros = pa.array([[0.0] * size] * len(table), table.schema.field("weights").type)
    sink = io.BytesIO()
    pq.write_table(table.set_column(table.num_columns - 1, table.schema.field("weights"), zeros), sink)
    replace_file(zoo, DATA, sink.getvalue())
    replace_file(zoo, EXTRA := "data/validation-00000-of-00007.parquet", sink.getvalue())
    rewrite_manifest(zoo, lambda manifest: manifest["files"].pop(TABLE))
    found = repair(zoo)
    assert {fault.name for fault in found} == {DATA, EXTRA, TABLE}
    assert "the column weights is not what the shards" in next(f.what for f in found if f.name == DATA)
    assert not any((zoo / name).exists() for name in (DATA, EXTRA, "zoo.json"))
    assert builders.build(spec, zoo) == 0, Path(f"{zoo}.log").read_text()
    assert tree(zoo) == tree(finished)


def spoil_shard(zoo: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a committed shard of an unfinished zoo, and its size and sha256 in the record."""
    folder, name = ZooFolder(zoo), SHARD.replace("0002", "0001")
    record, state = folder.read_record(1), folder.state_bytes(1)
    assert record is not None
    data = change((zoo / name).read_bytes())
    record.shards[name] = folder.write(name, data)
    folder.write_record(1, record, state)


def swap_ids(data: bytes) -> bytes:
    ids = re.findall(rb"[0-9a-f]{16}", data)
    return data.replace(ids[0], b"_" * 16).replace(ids[1], ids[0]).replace(b"_" * 16, ids[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-4] + b"\x00\x00\xc0\x7f", "not finite"),
        (lambda data: data + b"tail", "expected one behind the other up to the end"),
        (lambda data: data.replace(b"test_accuracy", b"test_accurate"), "found the scores"),
        (swap_ids, "not those of its stack"),
    ],
)
def test_d3_a_shard_that_was_changed_together_with_its_record_is_trained_again(
    unfinished: Path,
    finished: Path,
    copy_of: Callable[[Path], Path],
    builders: Builders,
    spec: Path,
    change: Callable[[bytes], bytes],
    words: str,
) -> None:
    zoo = copy_of(unfinished)
    spoil_shard(zoo, change)
    (fault,) = faults(zoo)
    assert fault.name == SHARD.replace("0002", "0001")
    assert words in fault.what
    if change is not swap_ids:
        with pytest.raises(DamagedZooError):
            load(zoo)
    assert repair(zoo) == [fault]
    assert builders.build(spec, zoo) == 0, Path(f"{zoo}.log").read_text()
    assert tree(zoo) == tree(finished)


def test_d3_files_that_do_not_belong_to_the_zoo_are_left_alone(finished: Path, copy_of: Callable[[Path], Path]) -> None:
    zoo = copy_of(finished)
    (zoo / "thesis.tex").write_text("do not lose me")
    assert [fault.name for fault in repair(zoo)] == ["thesis.tex"]
    assert (zoo / "thesis.tex").read_text() == "do not lose me"
    assert (zoo / "zoo.json").exists()
    assert not (zoo / ".work").exists()


def test_d3_a_build_alone_makes_what_somebody_has_deleted(
    finished: Path, copy_of: Callable[[Path], Path], builders: Builders, spec: Path
) -> None:
    zoo = copy_of(finished)
    (zoo / SHARD).unlink()
    (zoo / "spec.yaml").unlink()
    assert builders.build(spec, zoo) == 0
    assert tree(zoo) == tree(finished)


def test_d3_no_repair_while_a_builder_is_at_work_or_with_another_specification(
    finished: Path, copy_of: Callable[[Path], Path], builders: Builders, spec: Path
) -> None:
    zoo = copy_of(finished)
    with FolderLock(ZooFolder(zoo).lock), pytest.raises(BusyError):
        repair(zoo)
    (zoo / "spec.yaml").unlink()
    repair(zoo)
    other = spec.parent / "another.yaml"
    other.write_text(TINY.replace("epochs: 3", "epochs: 4"))
    assert builders.build(other, zoo) == DamagedZooError.exit_code
    with pytest.raises(ZooError):
        load(zoo)


# --- D4 ------------------------------------------------------------------------------------------------


@settings(max_examples=lane(30, 300), deadline=None, derandomize=True)
@given(order=st.permutations(range(8)))
def test_d4_an_index_rebuilt_from_shards_in_any_order_is_the_stored_one(finished: Path, order: list[int]) -> None:
    zoo = open_zoo(finished, include_diverged=True)
    from zootools.spec.model_configs import expand

    models = {model.model_id: model for model in expand(zoo.spec)}
    names = sorted(path.relative_to(finished).as_posix() for path in finished.glob("checkpoints/*/*"))
    shards = [(int(names[i][18:23]), read_info(finished, names[i])) for i in order]
    table = metadata_table(zoo.spec, models, shards, zoo.stopped)
    key = [("stack", "ascending"), ("epoch", "ascending"), ("row", "ascending")]
    assert table.sort_by(key).equals(zoo.metadata)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_d4_all_tables_rebuilt_from_a_journal_in_any_order_have_the_stored_bytes(
    finished: Path, copy_of: Callable[[Path], Path], builders: Builders, spec: Path, order: tuple[int, int]
) -> None:
    """Nothing is left but shards and records, of which each is canonical by itself: the same Parquet files come out."""
    zoo = ZooFolder(copy_of(finished))
    manifest = read_manifest(zoo.path)
    zoo.write_plan(reopen(zoo, manifest, stored_spec(zoo.path, manifest)))
    for stack in order:
        record = zoo.read_record(stack)
        assert record is not None
        (zoo.path / zoo.record_name(stack)).unlink()
        zoo.write_record(stack, record)
    for name in ("zoo.json", "README.md", "spec.yaml", "data", "metadata"):
        path = zoo.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert builders.build(spec, zoo.path) == 0
    assert tree(zoo.path) == tree(finished)


def test_d4_derived_tables_are_made_again_with_the_same_bytes(
    finished: Path, copy_of: Callable[[Path], Path], builders: Builders, spec: Path
) -> None:
    zoo = copy_of(finished)
    shutil.rmtree(zoo / "data")
    shutil.rmtree(zoo / "metadata")
    assert builders.build(spec, zoo) == 0
    assert tree(zoo) == tree(finished)


def test_a_folder_without_a_zoo_is_not_repaired(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="holds no zoo"):
        repair(tmp_path)
    assert list(tmp_path.iterdir()) == []


def interrupt_verification(zoo: Path) -> None:
    """Verify a zoo, and be interrupted when it first tells how far it is."""

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(faults(zoo, interrupt))


def test_an_interrupted_verification_is_resumed(
    finished: Path, copy_of: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    zoo = copy_of(finished)
    interrupt_verification(zoo)
    (notes,) = (tmp_path / "cache").rglob("*.json")
    intact = json.loads(notes.read_bytes())["intact"]
    assert set(intact) <= set(json.loads((zoo / "zoo.json").read_bytes())["files"])
    # What has changed since is read again, what has not is not.
    name = next(iter(intact))
    (zoo / name).write_bytes(flipped((zoo / name).read_bytes(), -1, 0))
    assert name in [fault.name for fault in faults(zoo)]
    assert not notes.exists()


def test_x3_a_cache_that_cannot_be_written_stops_no_verification(
    finished: Path, copy_of: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no folder").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no folder"))
    zoo = copy_of(finished)
    interrupt_verification(zoo)
    assert list(faults(zoo)) == []


def test_a_spec_that_is_another_ones_is_refused(finished: Path, builders: Builders, spec: Path) -> None:
    other = spec.parent / "longer.yaml"
    other.write_text(TINY.replace("epochs: 3", "epochs: 4"))
    assert builders.build(other, finished) == SpecError.exit_code
