"""Zoos from strangers (rows Z1-Z5): no code is executed, nothing outside is touched, false claims are refused."""

import hashlib
import io
import json
import random as random_module
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crash import counted, fault_random, lane
from hostile import SHARD, TABLE, copy_zoo, read_everything, replace_file, rewrite_manifest
from hostile_files import CANARY, hostile_repositories
from samples import SERVERS, needs_strace

from zootools import open_zoo
from zootools.errors import DamagedZooError, ZooError
from zootools.storage.file_rules import check_file_names
from zootools.storage.manifest import read_manifest
from zootools.storage.table_reader import read_metadata
from zootools.storage.verified_files import FileInfo, VerifiedFiles
from zootools.verify import repair

# --- Z1 ------------------------------------------------------------------------------------------------

WATCH = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
folder = Path(sys.argv[1])
from hostile import read_everything
import zootools.storage.card, zootools.verify, jinja2.ext, safetensors.torch, pyarrow.parquet
from zootools.errors import ZooError
read_everything(Path(sys.argv[3]))  # all imports are done now

opened, forbidden = set(), []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode()
        opened.add(path)
        if path.startswith(str(folder)) and path.endswith((".pkl", ".pt", ".bin", ".npy", ".py")):
            forbidden.append([event, path])
    elif event in ("pickle.find_class", "subprocess.Popen", "os.system", "socket.connect", "os.exec", "os.posix_spawn"):
        forbidden.append([event, str(arguments)[:200]])
    elif event == "import" and str(arguments[1]).startswith(str(folder)):
        forbidden.append([event, str(arguments)[:200]])
sys.addaudithook(watch)
results = {}
for zoo in sorted(folder.glob("zoo-*")):
    try:
        read_everything(zoo)
        results[zoo.name] = "accepted"
    except ZooError as error:
        results[zoo.name] = f"refused: {error}"
    except BaseException as error:
        results[zoo.name] = f"crashed: {type(error).__name__}: {error}"
print(json.dumps({"results": results, "forbidden": forbidden}))
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    assert len(hostile_repositories(tiny_zoo, folder)) == 30
    return folder


def watched(folder: Path, zoo: Path, *wrapper: str) -> dict[str, Any]:
    words = [*wrapper, sys.executable, "-c", WATCH, str(folder), str(SERVERS), str(zoo)]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout))


def test_z1_hostile_repositories_are_refused_and_execute_nothing(hostile: Path, tiny_zoo: Path) -> None:
    report = watched(hostile, tiny_zoo)
    assert {zoo: text for zoo, text in report["results"].items() if not text.startswith("refused")} == {}
    assert report["forbidden"] == []
    assert not (hostile / CANARY).exists()


@needs_strace
def test_z1_no_library_opens_an_unlisted_file_or_starts_a_program(
    hostile: Path, tiny_zoo: Path, tmp_path: Path
) -> None:
    """Rust and C++ open files without Python's knowledge, so the system is asked as well."""
    log = tmp_path / "log"
    watched(hostile, tiny_zoo, "strace", "-f", "-y", "-o", str(log), "-e", "trace=openat,open,execve")
    lines = [line for line in log.read_text(errors="replace").splitlines() if str(hostile) in line]
    assert len(lines) > 100
    assert not [line for line in lines if "execve(" in line and "-c" not in line]
    unlisted = (".pkl", ".pt", ".bin", ".npy", ".py")
    assert not [line for line in lines if any(f'{ending}"' in line for ending in unlisted) and "= -1" not in line]
    writing = [line for line in lines if "O_WRONLY" in line or "O_RDWR" in line or "O_CREAT" in line]
    assert writing == []


# --- Z2 ------------------------------------------------------------------------------------------------

PARTS = [
    "..",
    ".",
    "",
    "a",
    "checkpoints",
    "data",
    ".git",
    "~",
    "C:",
    "con",
    "NUL.json",
    "x\\y",
    "ü",
    "a b",
    "\0",
    "x" * 201,
]
ENDINGS = [".json", ".safetensors", ".parquet", ".py", "", ".json/", "\n"]


def test_z2_no_name_in_a_manifest_reaches_out_of_its_folder(tmp_path: Path, tiny_zoo: Path) -> None:
    random, accepted = fault_random("Z2"), 0
    for _ in range(lane(5000, 100_000)):
        name = "/".join(random.choices(PARTS, k=random.randint(1, 9))) + random.choice(ENDINGS)
        name = random.choice(["", "/", "//server/share/", "\\\\"]) + name
        try:
            check_file_names("zoo", [name])
        except DamagedZooError:
            continue
        accepted += 1
        inside = (tmp_path / name).resolve().relative_to(tmp_path.resolve())
        assert inside.as_posix() == name
    assert accepted
    before = {path for path in tmp_path.parent.rglob("*") if tmp_path not in (path, *path.parents)}
    zoo = copy_zoo(tiny_zoo, tmp_path / "zoo")
    for name in ("../escape.json", "/tmp/escape.json", "data/../../escape.json", "C:\\escape.json", ".work/x.json"):
        info = {"size": 1, "sha256": "0" * 64}
        rewrite_manifest(copy_zoo(tiny_zoo, zoo), lambda m, n=name, i=info: m["files"].update({n: i}))  # type: ignore[misc]
        with pytest.raises(DamagedZooError, match="not allowed in a zoo"):
            open_zoo(zoo)
        assert [fault.name for fault in repair(zoo)] == ["zoo.json"]
    assert {path for path in tmp_path.parent.rglob("*") if tmp_path not in (path, *path.parents)} == before


@pytest.mark.parametrize("bad", ["../../../secret.safetensors", "checkpoints/stack-00000/../../../x", "zoo.json"])
def test_z2_no_record_of_an_unfinished_zoo_reaches_out_of_its_folder(tmp_path: Path, tiny_zoo: Path, bad: str) -> None:
    from zootools.storage.build_state import ZooFolder
    from zootools.storage.manifest_checks import stored_spec
    from zootools.storage.reopening import reopen

    zoo = ZooFolder(copy_zoo(tiny_zoo, tmp_path / "zoo"))
    manifest = read_manifest(zoo.path)
    plan = reopen(zoo, manifest, stored_spec(zoo.path, manifest))
    zoo.write_plan(plan)
    record = zoo.read_record(0)
    assert record is not None
    record.shards[bad] = FileInfo(1, "0" * 64)
    zoo.write_record(0, record)
    with pytest.raises(DamagedZooError, match="not a shard of this stack"):
        open_zoo(zoo.path)


# --- Z3 ------------------------------------------------------------------------------------------------


LIMITED = """
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hostile import *
from hostile_files import hostile_shards, hostile_tables
from zootools.errors import ZooError
zoo, work, what = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
read_everything(zoo)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)
name = SHARD if what == "hostile_shards" else TABLE
results = {}
for case, data in globals()[what]((zoo / name).read_bytes()).items():
    replace_file(copy_zoo(zoo, work), name, data)
    begun = time.monotonic()
    try:
        read_everything(work)
        results[case] = "accepted"
    except ZooError as error:
        results[case] = f"refused: {error}"
    except BaseException as error:
        results[case] = f"crashed: {type(error).__name__}: {error}"
print(json.dumps({"results": results, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def within_limits(what: str, zoo: Path, work: Path) -> dict[str, str]:
    """Read hostile files in a process that may take 2 GB more than an ordinary zoo took."""
    words = [sys.executable, "-c", LIMITED, str(SERVERS), str(zoo), str(work), what]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    print(f"{what}: {len(report['results'])} files, peak {report['peak'] / 1e6:.0f} MB")
    return dict(report["results"])


def test_z3_hostile_shards_are_refused_within_two_gigabytes(tmp_path: Path, tiny_zoo: Path) -> None:
    results = within_limits("hostile_shards", tiny_zoo, tmp_path / "zoo")
    assert len(results) == 40
    accepted = {case: text for case, text in results.items() if not text.startswith("refused")}
    assert accepted == {}


def test_z3_mutated_shards_are_read_as_they_are_or_refused(memory: Path, tiny_zoo: Path) -> None:
    """Without hashes, so that the mutations reach the parser: right, refused, or other finite numbers."""
    random, zoo, wanted = fault_random("Z3"), copy_zoo(tiny_zoo, memory / "zoo"), lane(2000, 10_000_000)
    good = (zoo / SHARD).read_bytes()
    length = int.from_bytes(good[:8], "little") + 8
    opened, refused = open_zoo(zoo, verify=False), 0
    import pyarrow.compute as pc

    opened = opened.where((pc.field("stack") == 0) & (pc.field("epoch") == 1))
    for _ in counted(wanted, "Z3"):
        (zoo / SHARD).write_bytes(mutated(good, length, random))
        try:
            assert opened.weights().shape == (len(opened), 100)
        except DamagedZooError:
            refused += 1
    assert refused
    print(f"Z3: {wanted} mutated headers, {refused} refused, no other exception")


def mutated(good: bytes, length: int, random: random_module.Random) -> bytes:
    """Change one to four bytes or spans of the first ``length`` bytes."""
    data = bytearray(good)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(min(length, len(data)))  # what was cut out before may have made it shorter
        match random.randrange(4):
            case 0:
                data[at] = random.randrange(256)
            case 1:
                data[at] ^= 1 << random.randrange(8)
            case 2:
                del data[at : at + random.randint(1, 16)]
            case _:
                data[at:at] = data[(start := random.randrange(length)) : start + random.randint(1, 16)]
    return bytes(data)


# --- Z4 ------------------------------------------------------------------------------------------------


def test_z4_hostile_tables_are_refused_within_two_gigabytes(tmp_path: Path, tiny_zoo: Path) -> None:
    results = within_limits("hostile_tables", tiny_zoo, tmp_path / "zoo")
    assert len(results) == 36
    accepted = {case: text for case, text in results.items() if not text.startswith("refused")}
    assert accepted == {}


def test_z4_a_small_file_that_unpacks_to_gigabytes_is_refused_by_its_pages() -> None:
    """The footer claims few rows, but the pages unpack to 800 MB."""
    from zootools.storage.parquet_guard import check_pages

    sink = io.BytesIO()
    pq.write_table(pa.table({"x": pa.array(np.zeros(100_000_000))}), sink, compression="zstd", use_dictionary=False)
    data = sink.getvalue()
    assert len(data) < 1_000_000
    with pytest.raises(ValueError, match="but can have 1000"):
        check_pages(data, values=1000)
    check_pages(data, values=100_000_000)


def test_z4_a_column_of_two_types_is_refused(tiny_zoo: Path, tmp_path: Path) -> None:
    """pyarrow ends the process when it is asked for the statistics of such a column."""
    zoo = copy_zoo(tiny_zoo, tmp_path / "zoo")
    good = (zoo / TABLE).read_bytes()
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    # The type of the pages of texts, field 1 of ColumnMetaData before the list of encodings, becomes an unknown one.
    bad = good[:footer] + good[footer:].replace(b"\x15\x0c\x19", b"\x15\x40\x19")
    assert bad != good
    (zoo / TABLE).write_bytes(bad)
    with pytest.raises(DamagedZooError, match="two types"):
        open_zoo(zoo, verify=False)


def test_z4_mutated_tables_are_read_or_refused(memory: Path, tiny_zoo: Path) -> None:
    """Nine of ten by `read_metadata` alone, which is what `open_zoo` reads a table with."""
    random, zoo, wanted, refused = fault_random("Z4"), copy_zoo(tiny_zoo, memory / "zoo"), lane(500, 1_000_000), 0
    good, manifest, spec = (zoo / TABLE).read_bytes(), read_manifest(zoo), open_zoo(zoo).spec
    files = VerifiedFiles(zoo, manifest.files, verify=False)
    for number in counted(wanted, "Z4"):
        (zoo / TABLE).write_bytes(mutated(good, len(good), random))
        try:
            if number % 10:
                read_metadata(files, spec, manifest.splits.by_name(), manifest.classes)
            else:
                open_zoo(zoo, verify=False)
        except DamagedZooError:
            refused += 1
    assert refused
    print(f"Z4: {wanted} mutated tables, {refused} refused, no other exception")


def test_z4_mutated_parquet_files_of_others_are_read_or_refused(memory: Path, tiny_zoo: Path) -> None:
    """Parquet files that zootools did not write, with a layer schema; every other mutation is in the footer."""
    random, wanted, refused, zoo = fault_random("Z4 foreign"), lane(500, 1_000_000), 0, open_zoo(tiny_zoo)
    columns = {"accuracy": zoo.metadata["test_accuracy"], "weights": pa.array(list(zoo.weights().numpy()))}
    path = memory / "weights.parquet"
    pq.write_table(pa.table(columns), path)
    good = path.read_bytes()
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    for number in counted(wanted, "Z4, of others"):
        start = footer if number % 2 else 0
        path.write_bytes(good[:start] + mutated(good[start:], len(good) - start, random))
        try:
            open_zoo(path, schema=zoo.schema)
        except ZooError:
            refused += 1
    assert refused
    print(f"Z4: {wanted} mutated Parquet files of others, {refused} refused, no other exception")


# --- Z5 ------------------------------------------------------------------------------------------------


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of one value deep inside a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        inner: Any = manifest
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def take(*path: str | int) -> Callable[[dict[str, Any]], None]:
    """Return the removal of one value deep inside a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        inner: Any = manifest
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]

    return change


def swap_models(manifest: dict[str, Any]) -> None:
    ids = manifest["stacks"][0]["models"]
    ids[0], ids[1] = ids[1], ids[0]


def enormous(manifest: dict[str, Any]) -> None:
    big = {"size": 5 << 30, "sha256": "0" * 64}
    manifest["files"].update({f"data/{i}.parquet": big for i in range(50)})


LIES: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    ("format", put("format", value=2)),
    ("format", put("format", value="1")),
    ("format", take("format")),
    ("name", put("name", value="../up")),
    ("name", put("name", value=7)),
    ("name", take("name")),
    ("extra", put("extra", value=1)),
    ("schema", take("schema")),
    ("schema", put("schema", value=[])),
    ("layer schema", put("schema", "layers", value=[])),
    ("layer schema", put("schema", "layers", 0, "outputs", value=10**9)),
    ("layer schema", put("schema", "layers", 0, "kind", value="exec")),
    ("layer schema", put("schema", "layers", 0, "name", value="__import__('os')")),
    ("layer schema", put("schema", "layers", 0, "bias", value="no")),
    ("layer schema", put("schema", "input_shape", value=[1, 4, -4])),
    ("classes", put("classes", value=5)),
    ("classes", put("classes", value=10**9)),
    ("images_sha256", put("images_sha256", value="0")),
    ("counts", take("counts")),
    ("counts", put("counts", "ok", value=11)),
    ("counts.ok", put("counts", "ok", value=-12)),
    ("counts.ok", put("counts", "ok", value=12.0)),
    ("counts.ok", put("counts", "ok", value=True)),
    ("counts", put("counts", "failed", value=1)),
    ("counts.expected", put("counts", "expected", value=10**12)),
    ("counts", put("counts", "diverged", value=1)),
    ("counts.checkpoints", put("counts", "checkpoints", value=10**12)),
    ("checkpoints", put("counts", "checkpoints", value=35)),
    ("splits", put("splits", "train", value=0)),
    ("splits", put("splits", "holdout", value=0)),
    ("test_accuracy", put("test_accuracy", "0", value=[0.0, 0.1, 0.2, 0.3, 1.5])),
    ("test_accuracy", put("test_accuracy", "0", value=[0.5])),
    ("test_accuracy", put("test_accuracy", value="high")),
    ("fingerprints", put("fingerprints", value=[])),
    ("fingerprint", put("stacks", 0, "fingerprint", value=3)),
    ("stacks", put("stacks", value=[])),
    ("stacks.0.models", put("stacks", 0, "models", value=[])),
    ("stacks.0.models", put("stacks", 0, "models", 0, value="../../etc/passwd")),
    ("model_id", put("stacks", 0, "models", 0, value="0" * 16)),
    ("duplicate model", lambda m: m["stacks"][0]["models"].append(m["stacks"][0]["models"][0])),
    ("model_id", swap_models),
    ("stacks.0.epoch", put("stacks", 0, "epoch", value=-1)),
    ("counts.diverged", put("stacks", 0, "stopped", value={"0" * 16: {"epoch": 1, "reason": "x"}})),
    ("stacks.0.stopped", put("stacks", 0, "stopped", value={"x": {"epoch": 1}})),
    ("files", take("files")),
    ("files: spec.yaml", take("files", "spec.yaml")),
    ("epoch-0001", take("files", SHARD)),
    ("epoch-0077", lambda m: m["files"].update({SHARD.replace("0001", "0077"): m["files"][SHARD]})),
    ("metadata/train", take("files", TABLE)),
    ("size", put("files", SHARD, "size", value=-1)),
    ("10000000000 bytes", put("files", SHARD, "size", value=10**10)),
    ("expected 5", put("files", SHARD, "size", value=5)),
    ("sha256", put("files", SHARD, "sha256", value="0" * 64)),
    ("sha256", put("files", SHARD, "sha256", value="x")),
    ("more than the", enormous),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(LIES)))
def test_z5_a_misleading_manifest_is_refused_with_its_field(tmp_path: Path, tiny_zoo: Path, number: int) -> None:
    field, change = LIES[number]
    zoo = copy_zoo(tiny_zoo, tmp_path / "zoo")
    rewrite_manifest(zoo, change)
    with pytest.raises(DamagedZooError) as caught:
        read_everything(zoo)
    assert field in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"sha256": "x"}', b"[" * 100_000, b'{"a": 1, "a": 2}', b"1" * 5000],
)
def test_z5_files_that_are_not_a_manifest_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "zoo.json").write_bytes(data)
    with pytest.raises(DamagedZooError, match=r"zoo\.json"):
        open_zoo(tmp_path)


def test_z5_a_manifest_of_ten_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "zoo.json").open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(DamagedZooError, match="more than the"):
        open_zoo(tmp_path)


def test_right_hashes_do_not_make_wrong_contents_acceptable(tmp_path: Path, tiny_zoo: Path) -> None:
    zoo = copy_zoo(tiny_zoo, tmp_path / "zoo")
    manifest = json.loads((zoo / "zoo.json").read_bytes())
    assert hashlib.sha256((zoo / SHARD).read_bytes()).hexdigest() == manifest["files"][SHARD]["sha256"]
    # The third model claims another split: hashes are right, the specification says otherwise.
    table = pq.read_table(zoo / TABLE)
    seeds = [seed + 1 for seed in table["seed"].to_pylist()]
    column = table.column_names.index("seed")
    sink = io.BytesIO()
    pq.write_table(table.set_column(column, "seed", [pa.array(seeds, pa.int64())]), sink)
    replace_file(zoo, TABLE, sink.getvalue())
    with pytest.raises(ZooError, match="the column seed is not what"):
        read_everything(zoo)
