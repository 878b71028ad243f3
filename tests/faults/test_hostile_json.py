"""JSON of somebody else in every file of a zoo that holds any: refused with file and field, repaired, built again."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from crash import TINY, Builders, lane, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import make_spec

from zootools import open_zoo
from zootools.errors import DamagedZooError, SpecError, ZooError
from zootools.hashing import canonical_json, pretty_json
from zootools.json_reader import MAX_DEPTH, parse_json
from zootools.spec import parse_spec, parse_stored_spec
from zootools.spec.model_configs import count_models, expand
from zootools.storage.build_state import ZooFolder
from zootools.storage.finish import finish_zoo
from zootools.storage.manifest import read_manifest
from zootools.storage.records import Plan, StackRecord
from zootools.storage.shards import ShardInfo, read_info, shard_bytes
from zootools.storage.status import status
from zootools.storage.tables import accuracy_summary
from zootools.storage.unhashed import read_build_log
from zootools.verify import faults, repair

SHARD = "checkpoints/stack-00000/epoch-0001.safetensors"
RECORD = ".work/stack-00000.record"
PLAN = ".work/plan.json"


# --- how a stranger writes -------------------------------------------------------------------------------

MARK = "replace me"
RAW = [
    "1e400", "-1e400", "NaN", "Infinity", "-0.0", "1E5", "9" * 5000, "1" + "0" * 400, '"\\ud800"', '"\\udfff x"',
    "[" * 200 + "]" * 200, "[" * 3000 + "]" * 3000, '{"a":1,"a":2}', '{"":{}}', '"\\u0000\\u001b[2J"',
]  # fmt: skip
"""JSON texts that no value of Python makes, or that are odd in another way."""
HARMLESS = ("-0.0", "1E5", "1" + "0" * 400, '{"":{}}', '"\\u0000\\u001b[2J"')

_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 12),
    st.sampled_from([2**31, 2**63, 2**64, -(10**30), 10**30, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "x", "0" * 16, "f" * 64, "../up", "\u202e", "train"]),
)
_values = st.one_of(
    st.recursive(
        _leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text("abé", max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.sampled_from([("raw", text) for text in RAW]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything inside a value but the seal."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key != "sha256" or path:
            yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = MARK if isinstance(new, tuple) else new
    return copy


def text_of(value: Any, new: Any, write: Callable[[Any], bytes]) -> bytes:
    raw = new[1] if isinstance(new, tuple) else json.dumps(MARK)
    return write(value).replace(json.dumps(MARK).encode(), raw.encode())


def sealed(value: Any, new: Any, write: Callable[[Any], bytes]) -> bytes:
    """The text of a value with its own hash, computed over the texts that no value has as well."""
    content = {key: item for key, item in value.items() if key != "sha256"}
    digest = hashlib.sha256(text_of(content, new, lambda item: canonical_json(item).encode())).hexdigest()
    return text_of({**content, "sha256": digest}, new, write)


def change_json(zoo: Path, name: str, path_of: Callable[[Any], tuple[Any, ...]], new: Any) -> None:
    """Put a value into zoo.json, the plan or build.json; `path_of` chooses where."""
    value = json.loads((zoo / name).read_bytes())
    value = replaced(value, path_of(value), new)
    write = text_of if name == "build.json" else sealed
    (zoo / name).write_bytes(write(value, new, pretty_json))


def change_record(zoo: Path, path_of: Callable[[Any], tuple[Any, ...]], new: Any) -> None:
    line, _, state = (zoo / RECORD).read_bytes().partition(b"\n")
    value = json.loads(line)
    value = replaced(value, path_of(value), new)
    (zoo / RECORD).write_bytes(sealed(value, new, lambda item: canonical_json(item).encode()) + b"\n" + state)


def change_shard(zoo: Path, path_of: Callable[[Any], tuple[Any, ...]], new: Any) -> None:
    """Put a value into a shard's metadata, and size and hash of the shard into what names it."""
    data = (zoo / SHARD).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["zootools"])
    about = replaced(about, path_of(about), new)
    header["__metadata__"]["zootools"] = text_of(about, new, lambda item: canonical_json(item).encode()).decode()
    text = json.dumps(header, separators=(",", ":")).encode()
    data = len(text).to_bytes(8, "little") + text + data[8 + length :]
    (zoo / SHARD).write_bytes(data)
    info = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if (zoo / "zoo.json").exists():
        change_json(zoo, "zoo.json", lambda value: ("files", SHARD), info)
    else:
        change_record(zoo, lambda value: ("shards", SHARD), info)


def use(zoo: Path) -> None:
    """All that reads a zoo; whatever is raised must be a refusal."""
    opened = open_zoo(zoo, include_diverged=True)
    json.dumps([opened.counts.model_dump(), accuracy_summary(opened.metadata), opened.spec.dump()]).encode()
    opened.weights()


FILES = ["zoo.json", "build.json", SHARD, "unfinished " + PLAN, "unfinished " + RECORD, "unfinished " + SHARD]


@pytest.mark.parametrize("file", FILES)
def test_random_json_is_refused_and_a_repair_lets_a_build_restore_every_byte(
    memory: Path, builders: Builders, spec: Path, finished: Path, unfinished: Path, file: str
) -> None:
    good, found_some = tree(finished), 0

    @settings(max_examples=lane(4, 300), deadline=None, derandomize=True, database=None)
    @given(new=_values, choice=st.integers(0, 2**30))
    def attempt(new: Any, choice: int) -> None:
        nonlocal found_some
        zoo = memory / "zoo"
        shutil.rmtree(zoo, ignore_errors=True)
        shutil.copytree(unfinished if file.startswith("unfinished") else finished, zoo)
        name = file.removeprefix("unfinished ")

        def path_of(value: Any) -> tuple[Any, ...]:
            found = [path for path in places(value) if not {"fingerprint", "fingerprints"} & set(path[:1])]
            return found[choice % len(found)]

        if name == SHARD:
            change_shard(zoo, path_of, new)
        elif name == RECORD:
            change_record(zoo, path_of, new)
        else:
            change_json(zoo, name, path_of, new)
        found = []
        for act in (lambda: use(zoo), lambda: status(zoo), lambda: found.extend(faults(zoo))):
            try:
                act()
            except ZooError as error:
                str(error).encode()
        dropped = repair(zoo)
        assert sorted(map(str, dropped)) == sorted(map(str, found))
        "\n".join(map(str, dropped)).encode()
        if not found:
            return
        found_some += 1
        assert builders.build(spec, zoo) == 0, (found, Path(f"{zoo}.log").read_text())
        built = tree(zoo)
        assert {key: built.get(key) for key in good} == good, found
        read_build_log(zoo)

    attempt()
    assert found_some


# --- one place at a time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", RAW)
def test_what_json_and_python_disagree_on_is_refused_or_read_as_it_is(text: str) -> None:
    data = f'{{"key": {text}}}'.encode()
    if text in HARMLESS:
        assert parse_json(data, "a file") == json.loads(data)
        return
    with pytest.raises(DamagedZooError, match="a file: is not valid JSON") as caught:
        parse_json(data, "a file")
    assert len(str(caught.value)) < 400


def test_json_is_read_as_deep_as_it_may_be_and_no_deeper() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "a file") is not None
    with pytest.raises(DamagedZooError, match="nested deeper than"):
        parse_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "a file")


@pytest.mark.parametrize("data", [b"[]", b"{}", b"{", b'{"sessions": 3}', b'{"sessions": [3]}', b"\xff", b"[" * 10_000])
def test_a_damaged_build_log_is_named_dropped_and_begun_again(
    tmp_path: Path, builders: Builders, spec: Path, finished: Path, unfinished: Path, data: bytes
) -> None:
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    shutil.copytree(finished, whole)
    shutil.copytree(unfinished, begun)
    for zoo in (whole, begun):
        (zoo / "build.json").write_bytes(data)
        assert [fault.name for fault in faults(zoo)] == ["build.json"]
        open_zoo(zoo)
    # A build that finishes starts a new log and reports it.
    assert builders.build(spec, begun) == 0
    assert "build.json" in Path(f"{begun}.log").read_text()
    assert len(read_build_log(begun)) == 1
    assert [fault.name for fault in repair(whole)] == ["build.json"]
    assert builders.build(spec, whole) == 0
    assert tree(whole) == tree(begun) == tree(finished)
    assert not list(faults(whole))


def test_a_plan_of_other_models_is_refused_before_anything_is_trained(
    tmp_path: Path, builders: Builders, spec: Path, finished: Path, unfinished: Path
) -> None:
    zoo = tmp_path / "zoo"
    shutil.copytree(unfinished, zoo)
    change_json(zoo, PLAN, lambda value: ("stacks", 0, 0), "0" * 16)
    assert [fault.name for fault in faults(zoo)] == [PLAN]
    assert builders.build(spec, zoo) == DamagedZooError.exit_code
    assert "zootools repair" in Path(f"{zoo}.log").read_text()
    repair(zoo)
    assert builders.build(spec, zoo) == 0
    assert tree(zoo) == tree(finished)


# --- names that this version does not know -------------------------------------------------------------------


def later_zoo(source: Path, out: Path, **names: str) -> None:
    """Write a zoo as a later version would, which knows an architecture or activation that this one does not."""
    old = open_zoo(source, include_diverged=True)
    values = old.spec.dump()
    if "architecture" in names:
        values["architecture"] = {"name": names["architecture"], "blocks": [{"width": 5}]}
    renamed = {"relu": names.get("activation", "relu")}
    values["grid"]["activation"] = [renamed.get(name, name) for name in values["grid"]["activation"]]
    stored = parse_stored_spec(values, "spec")
    later = {(model.seed, model.hyperparameters.activation): model.model_id for model in expand(stored)}
    ids = {
        model.model_id: later[
            model.seed, renamed.get(model.hyperparameters.activation, model.hyperparameters.activation)
        ]
        for model in expand(old.spec)
    }
    manifest, zoo = read_manifest(source), ZooFolder(out)
    records = []
    for number, stack in enumerate(manifest.stacks):
        shards = {}
        for name in (name for name in manifest.files if name.startswith(f"checkpoints/stack-{number:05d}/")):
            info = read_info(source, name)
            rows = old.where((pc.field("stack") == number) & (pc.field("epoch") == info.epoch))
            info = ShardInfo(info.epoch, [ids[model] for model in info.model_ids], info.properties)
            shards[name] = zoo.write(name, shard_bytes(old.schema, rows.weights().numpy(), info))
        fingerprint = manifest.fingerprints[stack.fingerprint]
        records.append(StackRecord(fingerprint=fingerprint, epoch=stack.epoch, done=True, shards=shards))
    stacks = [[ids[model] for model in stack.models] for stack in manifest.stacks]
    finish_zoo(zoo, Plan(stored, old.schema, manifest.images_sha256, stacks), records)


def test_a_zoo_of_an_architecture_that_is_not_known_is_read_by_its_schema(
    tmp_path: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zoo = tmp_path / "zoo"
    later_zoo(finished, zoo, architecture="resnet")
    with caplog.at_level("INFO", logger="zootools"):
        opened = open_zoo(zoo)
    assert "architecture 'resnet'" in caplog.text
    assert opened.notes == ["architecture 'resnet' is not known to this version of zootools"]
    assert opened.weights().shape[1] == opened.schema.size
    opened.module(opened.models[0], 1)
    assert list(faults(zoo)) == []
    with pytest.raises(SpecError, match="resnet"):
        parse_spec(opened.spec.dump(), "spec")


def test_weights_of_an_activation_that_is_not_known_are_read_and_its_modules_refused_by_name(
    tmp_path: Path, finished: Path
) -> None:
    zoo = tmp_path / "zoo"
    later_zoo(finished, zoo, activation="snake")
    opened = open_zoo(zoo)
    assert opened.notes == ["activation 'snake' is not known to this version of zootools"]
    row = next(row for row in opened.metadata.to_pylist() if row["activation"] == "snake")
    assert opened.state_dict(row["model_id"], 1)
    with pytest.raises(SpecError, match="activation: found 'snake'"):
        opened.module(row["model_id"], 1)
    assert list(faults(zoo)) == []


def test_a_zoo_of_unknown_names_is_not_built_upon(
    tmp_path: Path, builders: Builders, spec: Path, finished: Path
) -> None:
    zoo = tmp_path / "zoo"
    later_zoo(finished, zoo, architecture="resnet")
    assert builders.build(spec, zoo) == SpecError.exit_code
    assert "architecture" in Path(f"{zoo}.log").read_text()


# --- what it costs --------------------------------------------------------------------------------------------

LIMITED = """
import json, resource, sys
from pathlib import Path
import zootools.cli
from zootools.errors import ZooError
from zootools.storage.manifest import read_manifest
results = {}
for zoo in sorted(Path(sys.argv[1]).iterdir()):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    room = (100 << 20) + 20 * (zoo / "zoo.json").stat().st_size
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    try:
        read_manifest(zoo)
        results[zoo.name] = "accepted"
    except ZooError as error:
        results[zoo.name] = f"refused: {error}"
    except BaseException as error:
        results[zoo.name] = f"crashed: {type(error).__name__}: {error}"
print(json.dumps(results))
"""


def hostile_manifests() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Manifests of some megabytes whose hash is right, each made to cost more."""
    many = 30_000
    info = {"size": 1, "sha256": "0" * 64}
    return {
        "files": lambda m: m["files"].update({f"checkpoints/x/{i}.safetensors": info for i in range(many)}),
        "files that are none": lambda m: m["files"].update({f"{i}.json": [] for i in range(many)}),
        "stacks of nothing": lambda m: m.update(stacks=[{}] * many),
        "models": lambda m: m["stacks"][0].update(models=[[]] * many),
        "stopped": lambda m: m["stacks"][0].update(stopped={str(i): {} for i in range(many)}),
        "keys": lambda m: m.update({str(i): 0 for i in range(many)}),
        "keys inside": lambda m: m["counts"].update({str(i): 0 for i in range(many)}),
        "accuracies": lambda m: m.update(test_accuracy={str(i): [] for i in range(many)}),
        "fingerprints": lambda m: m.update(fingerprints=[[]] * many),
        "layers": lambda m: m["schema"].update(layers=[{}] * many),
        "lists": lambda m: m.update(name=[[]] * 700_000),
        "an object of many keys": lambda m: m.update(name={str(i): 0 for i in range(260_000)}),
    }


def test_a_manifest_costs_a_multiple_of_its_size_at_most(tmp_path: Path, tiny_zoo: Path) -> None:
    for case, change in hostile_manifests().items():
        manifest = json.loads((tiny_zoo / "zoo.json").read_bytes())
        change(manifest)
        (tmp_path / case).mkdir()
        (tmp_path / case / "zoo.json").write_bytes(sealed(manifest, None, pretty_json))
    words = [sys.executable, "-c", LIMITED, str(tmp_path)]
    run = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads(run.stdout)
    # That these files cannot be is seen when the shards are known (`check_file_set`).
    assert results.pop("files") == "accepted"
    assert {case: text for case, text in results.items() if not text.startswith("refused")} == {}
    assert {case: text for case, text in results.items() if len(text) > 1000} == {}


def test_models_are_counted_by_arithmetic() -> None:
    many = {"random": {"per_configuration": 100_000, "low": 1, "high": 100_000}}
    assert count_models(make_spec(seeds=many, grid={**make_spec().dump()["grid"], "lr": [1e-3]})) == 400_000
    sample = {"count": 20, "l2": {"log_uniform": [1e-6, 1e-2]}}
    for changes in ({}, {"models": 5}, {"sample": sample}, {"sample": sample, "models": 7}):
        specification = make_spec(**changes)
        assert count_models(specification) == len(expand(specification))
    twice = make_spec(sample={"count": 30, "dropout": {"choice": [0.0, 0.5]}})
    with pytest.raises(SpecError, match="occurs twice"):
        count_models(twice)


@pytest.mark.parametrize("command", [["check"], ["build", "--dry-run"]])
def test_a_short_specification_of_a_million_models_is_not_expanded(tmp_path: Path, command: list[str]) -> None:
    """A million models take half a gigabyte; the count takes nothing."""
    (tmp_path / "many.yaml").write_text(TINY.replace("range: [1, 3]", "range: [1, 500000]"))
    script = (
        "import resource, sys, zootools.cli, zootools.storage.tables;"
        "import zootools.building.builder, zootools.spec.model_configs;"
        "from pathlib import Path;"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2) if sys.argv[1] == 'check' else None;"
        "zootools.spec.model_configs.expand = zootools.building.builder.expand = None;"
        "zootools.cli.main(prog_name='zootools')"
    )
    words = [sys.executable, "-c", script, command[0], "many.yaml", *command[1:], "--json"]
    run = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout)["models"] == 1_000_000
