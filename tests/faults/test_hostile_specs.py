"""Specifications as nobody should write them (rows S1-S5): refused, fast, small, with their place; the rest builds."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from crash import TINY, Builders, fault_random, lane
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import SPEC_TEXT

from zootools.building.planning import plan_stacks, zoo_schema
from zootools.errors import SpecError, ZooError
from zootools.images.datasets import load_images
from zootools.spec import Activation, Init, load_spec, parse_spec
from zootools.spec.model_configs import expand

WriteSpec = Callable[..., Path]

# --- S1 ------------------------------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)

CORPUS: dict[str, bytes] = {
    "empty": b"",
    "spaces": b"   \n\n",
    "a word": b"word",
    "a number": b"7",
    "a list": b"[1, 2]",
    "null": b"~",
    "tab": b"name:\n\tx: 1\n",
    "tab before a key": b"\tname: x\n",
    "byte order mark alone": b"\xef\xbb\xbf",
    "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbfname: x\n",
    "NUL": b"name: a\x00b\n",
    "escape": b"name: \x1b[31m\n",
    "UTF-16": "name: x\n".encode("utf-16"),
    "UTF-32": "name: x\n".encode("utf-32"),
    "Latin-1": b"name: \xe9\n",
    "half a character": b"name: \xf0\x9f\n",
    "surrogate": b"name: \xed\xa0\x80\n",
    "half a surrogate pair": b'description: "\\ud800"\n',
    "half a surrogate pair as a key": b'"\\udfff": x\n',
    "binary": bytes(range(256)),
    "100,000 lists": b"a: " + b"[" * 100_000,
    "100,000 mappings": b"{a: " * 100_000,
    "100,000 questions": b"? " * 100_000,
    "100,000 dashes": b"- " * 100_000,
    "a million values": b"a: [" + b"1," * 400_000 + b"1]",
    "a line of a megabyte": b"name: " + b"x" * (1 << 20),
    "50 MB": b"# " + b"x" * (50 << 20),
    "50 MB of newlines": b"\n" * (50 << 20),
    "alias bomb": BOMB.encode(),
    "alias": b"a: &a 1\nb: *a\n",
    "alias of itself": b"a: &a [*a]\n",
    "alias without anchor": b"a: *nothing\n",
    "merge key": b"a: &a {x: 1}\nb: {<<: *a}\n",
    "merge key without alias": b"<<: {name: x}\n",
    "python object": b"name: !!python/object/apply:os.system [touch x]\n",
    "python name": b"name: !!python/name:os.system\n",
    "python module": b"name: !!python/module:os\n",
    "own tag": b"name: !mine x\n",
    "binary tag": b"name: !!binary aGk=\n",
    "tag directive": b"%TAG ! tag:example.com,2000:\n---\nname: !x y\n",
    "YAML 9.9": b"%YAML 9.9\n---\nname: x\n",
    "unknown directive": b"%FOO\n---\nname: x\n",
    "duplicate keys": b"name: x\nname: y\n",
    "duplicate keys inside": b"images: {name: tetris, name: digits}\n",
    "a list as key": b"? [a]\n: 1\n",
    "a mapping as key": b"? {a: 1}\n: 1\n",
    "an empty key": b": 1\n",
    "two documents": b"name: x\n---\nname: y\n",
    "unclosed list": b"a: [1, 2\n",
    "unclosed mapping": b"a: {b: 1\n",
    "unclosed quote": b'a: "b\n',
    "a quote too many": b"a: 'b''\n",
    "wrong indent": b"a:\n  b: 1\n c: 2\n",
    "two values": b"a: b: c\n",
    "percent": b"%\n",
    "at": b"@name: x\n",
    "backtick": b"`name`: x\n",
    "block text without end": b"a: |\n",
    "infinite number": b"name: 1e999\n",
    "a number of 10,000 digits": b"seeds: {fixed: [" + b"9" * 10_000 + b"]}\n",
    "environment": b"name: ${HOME}\n",
    "jinja": b"name: {{ 7 * 7 }}\n",
    "hydra": b"_target_: os.system\n",
    "auto_map": b"auto_map: {AutoModel: run.Model}\n",
    "include": b"name: !include /etc/passwd\n",
}

LIMITED = """
import json, resource, sys, time
from pathlib import Path
from zootools.cli import main
from zootools.errors import SpecError
from zootools.spec import load_spec
assert not {"torch", "datasets", "pyarrow"} & set(sys.modules)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
results = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    begun = time.process_time()
    try:
        load_spec(path)
        results[path.name] = ["accepted", 0]
    except SpecError as error:
        results[path.name] = [str(error), time.process_time() - begun]
    except BaseException as error:
        results[path.name] = [f"crashed: {type(error).__name__}: {error}", 0]
print(json.dumps(results))
"""


def test_s1_malformed_yaml_is_refused_within_200_megabytes(tmp_path: Path) -> None:
    for number, data in enumerate(CORPUS.values()):
        (tmp_path / f"{number:02d}.yaml").write_bytes(data)
    run = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = dict(zip(CORPUS, json.loads(run.stdout).values(), strict=True))
    assert len(results) >= 60
    assert {name: text for name, (text, _) in results.items() if not text.startswith(str(tmp_path))} == {}
    slowest = max(results, key=lambda name: results[name][1])
    print(f"S1: {len(results)} files refused; the slowest is {slowest!r} with {results[slowest][1]:.2f} s")


def test_s1_the_command_leaves_with_2_and_names_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(CORPUS["two values"])
    run = subprocess.run([sys.executable, "-m", "zootools", "check", str(path)], capture_output=True, text=True)
    assert run.returncode == 2
    assert f"{path}:1:5: not valid YAML" in run.stderr


def test_s1_mutated_specifications_are_read_or_refused(write_spec: WriteSpec) -> None:
    random, path, refused = fault_random("S1"), write_spec(), 0
    good = path.read_bytes()
    for _ in range(lane(1000, 100_000)):
        data = bytearray(good)
        for _ in range(random.randint(1, 5)):
            at = random.randrange(len(data))
            if random.random() < 0.5:
                data[at] = random.choice(b"\t\n []{}:,'\"&*!|>%@-?#\x00\xff09ae.")
            else:
                data[at:at] = random.choice([b"1e", b"- ", b"? ", b"---\n", b"<<: ", b"0x", b".inf", b"~"])
        path.write_bytes(data)
        try:
            load_spec(path)
        except SpecError:
            refused += 1
    assert refused


# --- S2 ------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, False, "no", "yes", "1", "1e-3", "", "nan", ".nan", ".inf", "adam", [], {}, [[]], {"a": 1},
    0, -1, -5, 1, 10**6, 10**30, -(10**30), 0.0, -0.0, 1e-3, 0.5, 1.0, 1.5, -1e-300, 1e-300, 1e300, "x" * 10_000,
]  # fmt: skip

PLACES: dict[tuple[str | int, ...], tuple[type, float, float]] = {
    ("images", "train"): (int, 1, 10_000_000),
    ("images", "size"): (int, 1, 1024),
    ("images", "mean"): (float, -10, 10),
    ("grid", "lr", 0): (float, 0, 100),
    ("grid", "weight_decay", 0): (float, 0, 100),
    ("grid", "dropout", 0): (float, 0, 1),
    ("seeds", "fixed", 0): (int, 0, 2**63),
    ("training", "epochs"): (int, 1, 100_000),
    ("training", "batch_size"): (int, 1, 65_536),
    ("split", "train"): (float, 0, 1),
}


def spec_values() -> dict[str, Any]:
    return {
        "name": "odd",
        "images": {"name": "digits", "train": 100, "size": 28, "mean": 0.0},
        "architecture": {"name": "cnn_small"},
        "grid": {
            "activation": ["tanh"],
            "init": ["normal"],
            "optimizer": ["sgd"],
            "lr": [0.1],
            "weight_decay": [0.1],
            "dropout": [0.1],
        },
        "seeds": {"fixed": [1]},
        "training": {"epochs": 1, "batch_size": 10},
        "split": {"train": 1.0, "validation": 0.0, "test": 0.0},
    }


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
def test_s2_an_odd_value_is_refused_with_its_key_or_taken_as_what_it_is(
    place: tuple[str | int, ...], value: Any
) -> None:
    kind, low, high = PLACES[place]
    values = spec_values()
    inner: Any = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        spec, refusal = parse_spec(values, "test"), None
    except SpecError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(place[0]) in refusal
        return
    read: Any = spec.model_dump()
    for key in place:
        read = read[key] if read is not None else None
    # None means "not given" where a key may be left out.
    assert read == value or (value is None and read is None)
    if value is not None:
        assert type(value) is not bool
        assert isinstance(value, int) or kind is float
        assert low <= value <= high


# --- S3 ------------------------------------------------------------------------------------------------


def test_s3_a_grid_of_ten_to_the_twelve_from_800_bytes_is_refused_by_arithmetic(tmp_path: Path) -> None:
    """Within 300 MB more than an empty process: nothing is expanded; the count is printed."""
    lists = ", ".join(f"{i / 1000:g}" for i in range(1, 32))
    text = TINY.replace("lr: [1.0e-2]", f"lr: [{lists}], weight_decay: [{lists}], l2: [{lists}]")
    (tmp_path / "grid.yaml").write_text(text.replace("range: [1, 3]", "range: [1, 20000000]"))
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "from zootools.cli import main; main(prog_name='zootools')"
    )
    words = [sys.executable, "-c", script, "check", str(tmp_path / "grid.yaml")]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert f"{2 * 31**3 * 20_000_000:,} models; at most 1,000,000 are allowed" in run.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("size: 28", "size: 4"), "leaves nothing of an input"),
        (("size: 28", "crop: 29"), "crop|leaves nothing"),
        (("[1.0e-3, 1.0e-4]", "[]"), "grid.lr"),
        (("{fixed: [1, 2]}", "{fixed: []}"), "seeds"),
        (("[tanh, relu]", "[tanh, tanh]"), "duplicate value"),
        (("{fixed: [1, 2]}", "{fixed: [2, 2]}"), "duplicate seed"),
        (("train: 100", "train: 0"), "images.train"),
        (("cnn_small}", "mlp, hidden: [4096, 4096, 4096]}"), "parameters; at most"),
        (("{epochs: 5, batch_size: 10}", "{epochs: 5, batch_size: 10}\nmodels: 99"), "makes only 16"),
    ],
)
def test_s3_what_cannot_be_is_refused_before_anything_is_trained(
    write_spec: WriteSpec, change: tuple[str, str], message: str
) -> None:
    import re

    def prepare() -> None:
        spec = load_spec(write_spec(change))
        zoo_schema(spec)
        expand(spec)
        load_images(spec.images)

    with pytest.raises(SpecError) as caught:
        prepare()
    assert re.search(message, str(caught.value))


@pytest.mark.parametrize("command", [["check"], ["build", "--dry-run"], ["build", "--out", "zoo"]])
def test_s3_a_refusal_needs_no_torch(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "bad.yaml").write_text(SPEC_TEXT.replace("size: 28", "size: 4"))
    script = (
        "import sys; sys.modules['torch'] = sys.modules['datasets'] = None;"
        "from zootools.cli import main; main(prog_name='zootools')"
    )
    words = [sys.executable, "-c", script, command[0], "bad.yaml", *command[1:]]
    run = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2, run.stderr
    assert "leaves nothing of an input" in run.stderr
    assert not (tmp_path / "zoo").exists()


# --- S4 ------------------------------------------------------------------------------------------------

_ACTIVATIONS = list(get_args(Activation))
_INITS = list(get_args(Init))


def _list(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=1, max_size=2, unique=True)


@st.composite
def specifications(draw: st.DrawFn) -> dict[str, Any]:
    """Anything that a specification may say, with little data."""
    tetris = draw(st.booleans())
    train = draw(st.integers(1, 12))
    extra = {"validation": draw(st.integers(0, 5))} if draw(st.booleans()) else {}
    if tetris:
        images = {"name": "tetris", "train": train, "test": draw(st.integers(1, 9)), "seed": draw(st.integers(0, 9))}
        images |= {"noise_train": draw(st.floats(0, 100)), "noise_test": draw(st.floats(0, 100))}
    else:
        images = {"name": "digits", "train": train, "test": draw(st.integers(1, 9)), "size": draw(st.integers(23, 34))}
    images |= {"mean": draw(st.floats(-10, 10)), "std": draw(st.floats(0.001, 10))}
    hidden = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    mlp = {"name": "mlp", "hidden": hidden, "bias": draw(st.booleans())}
    networks = [mlp] if tetris else [mlp, {"name": "cnn_small"}, {"name": "cnn_unterthiner"}]
    grid: dict[str, Any] = {
        "activation": draw(_list(st.sampled_from(_ACTIVATIONS))),
        "init": draw(_list(st.sampled_from(_INITS))),
        "optimizer": draw(_list(st.sampled_from(["adam", "sgd", "rmsprop"]))),
        "lr": draw(_list(st.floats(1e-300, 100))),
    }
    optional = {
        "weight_decay": st.floats(0, 100),
        "l2": st.floats(0, 100),
        "dropout": st.floats(0, 0.999),
        "train_fraction": st.floats(0.001, 1),
        "momentum": st.floats(0, 0.999),
        "init_std": st.floats(1e-9, 1000),
        "bias_init": st.floats(-1000, 1000),
    }
    for name, values in optional.items():
        if draw(st.booleans()):
            grid[name] = draw(_list(values))
    training = {"epochs": 1, "batch_size": draw(st.integers(1, 20))}
    if draw(st.booleans()):
        training["train_metrics_images"] = draw(st.integers(1, 20))
    return {
        "name": "generated",
        "images": images | extra,
        "architecture": draw(st.sampled_from(networks)),
        "grid": grid,
        "seeds": {"fixed": draw(st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=3, unique=True))},
        "training": training,
        "models": 2,
    }


@settings(
    max_examples=lane(40, 500),
    deadline=None,
    derandomize=True,
)
@given(values=specifications())
def test_s4_whatever_is_accepted_is_trained(values: dict[str, Any]) -> None:
    """Plan, train one epoch of two models, score them: only a ZooError may come of it."""
    from zootools.storage.shards import shard_bytes
    from zootools.training.stack import StackRun
    from zootools.training.table import choose_backend

    try:
        spec = parse_spec(values, "generated")
        schema, models = zoo_schema(spec), expand(spec)
        images = load_images(spec.images)
    except ZooError:
        return
    by_id = {model.model_id: model for model in models}
    backend = choose_backend("torch", "cpu", schema)
    for stack in plan_stacks(models, schema, 2):
        run = StackRun(schema, [by_id[model] for model in stack], images, spec.training, backend)
        for _ in range(2):
            weights, info = run.checkpoint()
            if info.model_ids:
                assert shard_bytes(schema, weights, info)
            if run.epoch == 0:
                run.train_epoch()


# --- S5 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("epochs: 3", "epochs: 4", "training: "),
        ("hidden: [5]", "hidden: [6]", "architecture: "),
        ("train: 40", "train: 41", "images: "),
        ("[tanh, relu]", "[tanh]", "grid: "),
        ("range: [1, 3]", "range: [2, 4]", "seeds: "),
    ],
)
def test_s5_a_build_is_not_resumed_with_another_specification(tmp_path: Path, old: str, new: str, named: str) -> None:
    """Neither with a finished zoo nor with one that is half done; what differs is shown."""
    server, out = Builders(), tmp_path / "zoo"
    try:
        (tmp_path / "first.yaml").write_text(TINY)
        (tmp_path / "second.yaml").write_text(TINY.replace(old, new))
        builder = server.start(tmp_path / "first.yaml", out, held=[1, str(tmp_path / "never")])
        while not list(out.glob(".work/*.record")):
            time.sleep(0.001)
        builder.kill()
        for _ in ("unfinished", "finished"):
            assert server.build(tmp_path / "second.yaml", out) == SpecError.exit_code
            assert named in Path(f"{out}.log").read_text()
            assert server.build(tmp_path / "first.yaml", out) == 0
    finally:
        server.close()
