"""Refusals before training: `build`, `build --dry-run` and `check` give the same ones, in the same words."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import own_backends
import pytest
import torch
from click.testing import CliRunner
from crash import CNN, TINY, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import SERVERS

from zootools import ZooSpec, build, open_zoo
from zootools.building.builder import preview
from zootools.building.options import BuildKeywords, BuildOptions
from zootools.building.planning import check_spec
from zootools.building.preflight import stack_bytes, workers_that_fit
from zootools.choices import DEVICES, MAX_WORKERS
from zootools.cli import main
from zootools.engines.table import ENGINES
from zootools.errors import SpecError, StorageError, ZooError
from zootools.filesystem.files import write_durably
from zootools.images.sets import IMAGE_SETS
from zootools.images.shapes import check_images
from zootools.memory import memory_limit
from zootools.progress import Progress
from zootools.spec import load_spec, parse_spec
from zootools.storage.build_state import ZooFolder
from zootools.storage.manifest import read_manifest
from zootools.storage.reopening import reopen
from zootools.storage.status import status
from zootools.training.table import BACKENDS, choose_backend


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("specs")
    for name, text in {"tiny": TINY, "cnn": CNN}.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, specs: Path) -> Path:
    """A finished zoo, trained with PyTorch."""
    out = tmp_path_factory.mktemp("zoos") / "tiny"
    build(load_spec(specs / "tiny.yaml"), out, backend="torch", quiet=True, workers=1)
    return out


def run(*words: str | Path) -> Any:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(word) for word in words])


# --- arguments -----------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"engine": "slurm"}, "engine: found 'slurm'; allowed: local, ray"),
    ({"engine": "Local"}, "did you mean 'local'"),
    ({"engine": ""}, "allowed: local, ray"),
    ({"engine": None}, "engine: expected one of local, ray, found None"),
    ({"backend": "natve"}, "backend: found 'natve'; did you mean 'native'"),
    ({"backend": "pytorch"}, "did you mean 'torch'"),
    ({"backend": None}, "backend NoneType: lacks fingerprint(), trainers(), device, name, reason"),
    ({"backend": own_backends.Mute()}, "backend Mute: lacks trainers(), reason"),
    ({"backend": own_backends.Own}, "found the class Own, expected an object of it"),
    ({"backend": own_backends.Stuck()}, "backend Stuck: cannot be sent to the workers"),
    ({"backend": own_backends.Vague()}, r"backend Vague: fingerprint\(\) must return a dict that JSON can store"),
    (
        {"backend": own_backends.Own(), "device": "cuda"},
        "backend Own: computes on the device 'cpu', not on the given device 'cuda'",
    ),
    ({"device": "gpu"}, "device: found 'gpu'; did you mean 'cuda'"),
    ({"device": "cuda:1"}, "did you mean 'cuda'"),
    ({"device": torch.device("cpu")}, "device: expected one of auto, cpu, cuda, found device"),
    ({"workers": 0}, "workers: expected a whole number from 1 to 1024, found 0"),
    ({"workers": -1}, "found -1"),
    ({"workers": MAX_WORKERS + 1}, "found 1025"),
    ({"workers": 2.0}, r"found 2\.0"),
    ({"workers": "2"}, "found '2'"),
    ({"workers": True}, "found True"),
    ({"address": "auto"}, "address 'auto': the local engine has none; --address goes with --engine ray"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_an_argument_that_is_wrong_is_refused_with_what_is_allowed(
    tmp_path: Path, specs: Path, arguments: dict[str, Any], message: str
) -> None:
    spec = load_spec(specs / "tiny.yaml")
    for function in (build, preview):
        with pytest.raises(ZooError, match=message.replace("()", r"\(\)")) as caught:
            function(spec, tmp_path / "zoo", **arguments)
        assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_specification_is_refused(tmp_path: Path, specs: Path) -> None:
    for wrong in ("tiny.yaml", specs / "tiny.yaml", {}, None):
        with pytest.raises(SpecError, match=r"expected a ZooSpec, as zootools\.load_spec returns, found"):
            build(wrong, tmp_path / "zoo")  # type: ignore[arg-type]
    spec = load_spec(specs / "tiny.yaml")
    for name, value in (("models", 0), ("training", spec.training.model_copy(update={"epochs": 0}))):
        with pytest.raises(SpecError, match=name):
            build(spec.model_copy(update={name: value}), tmp_path / "zoo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "word", "message"),
    [
        ("--engine", "raye", "did you mean 'ray'"),
        ("--engine", "slurm", "allowed: local, ray"),
        ("--backend", "natve", "did you mean 'native'"),
        ("--device", "gpu", "did you mean 'cuda'"),
        ("--workers", "0", "not in the range"),
        ("--workers", "1.5", "not a valid integer"),
        ("--models", "0", "not in the range"),
        ("--epochs", "0", "not in the range"),
        ("--epochs", "-3", "not in the range"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"], ["--dry-run", "--json"]])
def test_a_wrong_option_leaves_stdout_empty_and_nothing_behind(
    tmp_path: Path, specs: Path, option: str, word: str, message: str, more: list[str]
) -> None:
    done = run("build", specs / "tiny.yaml", "--out", tmp_path / "zoo", option, word, *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_offers_what_the_library_takes() -> None:
    build_command = main.commands["build"]
    choices = {option.name: getattr(option.type, "choices", None) for option in build_command.params}
    assert [choices[name] for name in ("device", "backend", "engine")] == [DEVICES, tuple(BACKENDS), tuple(ENGINES)]


# --- backends of one's own -----------------------------------------------------------------------------


def test_a_backend_of_ones_own_is_used(tmp_path: Path, specs: Path, tiny: Path) -> None:
    """It trains as torch does, so the shards are equal; and only it has this fingerprint."""
    spec, out = load_spec(specs / "tiny.yaml"), tmp_path / "zoo"
    assert preview(spec, out, backend=own_backends.Own()).size.models == 6
    manifest = build(spec, out, backend=own_backends.Own(), workers=np.int64(1), quiet=True)  # type: ignore[arg-type]
    assert manifest.fingerprints == [{"backend": "own", "version": 1}]
    shards, theirs = ({k: v for k, v in tree(folder).items() if "checkpoints" in k} for folder in (out, tiny))
    assert shards == theirs
    assert json.loads((out / "build.json").read_text())["sessions"][0]["backend"] == "own"


def test_the_trainers_of_a_backend_have_what_the_protocol_says(specs: Path) -> None:
    """The two backends that there are, against the names in the protocols."""
    from zootools.training import backend as module

    spec = load_spec(specs / "tiny.yaml")
    schema = check_spec(spec)
    for name in ("torch", "native"):
        chosen = choose_backend(name, "cpu", schema)
        wanted = {part for part in vars(module.Backend) if not part.startswith("_")}
        assert wanted == {"device", "name", "reason", "fingerprint", "trainers"}
        assert all(hasattr(chosen, part) for part in wanted)
        assert chosen.width(schema) >= 1
    with pytest.raises(SpecError, match="did you mean 'native'"):
        choose_backend("natve", "cpu", schema)


def test_a_new_backend_is_a_row_of_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, specs: Path, tiny: Path
) -> None:
    monkeypatch.setitem(BACKENDS, "toy", lambda population: own_backends.Toy())
    manifest = build(load_spec(specs / "tiny.yaml"), tmp_path / "zoo", backend="toy", quiet=True)
    assert manifest.fingerprints == [{"backend": "toy"}]
    with pytest.raises(SpecError, match="did you mean 'toy'"):
        build(load_spec(specs / "tiny.yaml"), tmp_path / "other", backend="tony")


def test_the_keywords_of_a_build_are_the_fields_of_its_options(specs: Path, tmp_path: Path) -> None:
    assert list(BuildKeywords.__annotations__) == [field.name for field in fields(BuildOptions)]
    with pytest.raises(TypeError, match="unexpected keyword argument 'devize'"):
        build(load_spec(specs / "tiny.yaml"), tmp_path / "zoo", devize="cpu")  # type: ignore[call-arg]


SCRIPT = """
import sys
from pathlib import Path
from zootools import build, load_spec
print("run", flush=True)
{}
build(load_spec(Path({spec!r})), {out!r}, backend={backend}, workers=1, quiet=True)
print("built")
"""
OWN = "from own_backends import Own\n\nclass Mine(Own):\n    pass\n"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "stdin"])
def test_a_script_without_a_guard_builds(tmp_path: Path, specs: Path, how: str) -> None:
    """Workers do not run it again."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format("", spec=str(specs / "tiny.yaml"), out=str(tmp_path / "zoo"), backend="'torch'"))
    words = [sys.executable, str(path)] if how == "script" else [sys.executable, "-"]
    with path.open() as text:
        done = subprocess.run(words, stdin=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "run\nbuilt\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("guard", [True, False])
def test_a_backend_in_a_script_needs_a_guard(tmp_path: Path, specs: Path, guard: bool) -> None:
    path, out = tmp_path / "script.py", tmp_path / "zoo"
    text = SCRIPT.format(OWN, spec=str(specs / "tiny.yaml"), out=str(out), backend="Mine()")
    path.write_text(text.replace("build(load", "if __name__ == '__main__':\n    build(load") if guard else text)
    environment = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{SERVERS}"}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment)
    if guard:
        assert done.returncode == 0, done.stderr
        assert open_zoo(out).counts.ok == 6
    else:
        assert 'a script needs `if __name__ == "__main__":`' in done.stderr
        assert "died" not in done.stderr
        assert (status(out).counts.failed, status(out).counts.missing) == (0, 6)


# --- what `build` refuses, `--dry-run` refuses ---------------------------------------------------------


def refusals(tmp_path: Path, specs: Path, tiny: Path) -> Iterator[tuple[str, Path, list[str], str]]:
    """Yield what is wrong, the folder, further options, and a part of the message."""
    yield "other epochs", tiny, ["--epochs", "4"], "zoo of another specification"
    yield "another network", tiny, ["--set", "architecture.hidden=[6]"], "architecture: "
    yield "fewer models", tiny, ["--models", "2"], "can grow, but not shrink"
    yield (
        "grown under another fingerprint",
        tiny,
        ["--set", "seeds.range=[1, 4]", "--backend", "native"],
        ("backend: 'torch' there, 'native' now"),
    )
    begun = tmp_path / "begun"
    zoo = ZooFolder(begun)
    begun.mkdir()
    (begun / "thesis.tex").write_text("do not lose me")
    yield "other files", begun, [], "holds files but no zoo"
    file = tmp_path / "file"
    file.write_text("x")
    yield "a file", file, [], f"{file} is not a folder"
    yield "below a file", file / "zoo" / "deeper", [], f"{file} is not a folder"
    broken = ZooFolder(tmp_path / "broken")
    write_durably(broken.plan, b"{}")
    yield "a broken plan", broken.path, [], "plan.json"
    new = tmp_path / "new"
    yield (
        "too many images",
        new,
        ["--set", "images={name: digits, train: 1200, validation: 98}"],
        ("train + validation asks for 1,298 images, but digits has 1,297"),
    )
    yield (
        "too many test images",
        new,
        ["--set", "images={name: usps, train: 5, test: 2008}"],
        ("test asks for 2,008 images, but usps has 2,007"),
    )
    yield "too large a crop", new, ["--set", "images={name: mnist, train: 5, crop: 29}"], "larger than the images"
    wide = ["--set", "architecture.hidden=[3100, 3100]"]
    yield "too many workers", new, [*wide, "--workers", "1024"], "1024 workers take at least 37"
    if memory_limit() < 800e9:
        many = [*wide, "--set", "seeds.range=[1, 5000]", "--epochs", "999"]
        yield "too large stacks", new, many, "a stack of 2,048 models x 9,672,000 parameters takes at least 792.3 GB"
        large = "images={name: svhn, train: 73257, test: 26032, size: 1024, greyscale: true}"
        yield "too large images", new, ["--set", large], "99,289 images of 1 x 1024 x 1024 take at least 832.9 GB"
    assert not zoo.work.exists()


ABOUT_THIS_MACHINE = {
    "grown under another fingerprint",
    "too many workers",
    "too large stacks",
    "too large images",
}
"""The refusals that depend on the machine, which `check` does not look at."""


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the paths below a folder, with the times of their last changes."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def refusal(stderr: str) -> str:
    """Return what a command has printed on stderr, without the lines that say what a build is doing."""
    doing = ("zootools: kernel: ", "backend ", "images: ", "plan: ", "training: ")
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith(doing))


def test_a_dry_run_and_check_refuse_what_a_build_refuses(tmp_path: Path, specs: Path, tiny: Path) -> None:
    """The same code and the same words; they write nothing."""
    tried = 0
    for what, out, options, message in refusals(tmp_path, specs, tiny):
        before = snapshot(tmp_path), snapshot(tiny)
        words = ["build", specs / "tiny.yaml", "--out", out, "--json", "--backend", "torch", *options]
        dry = run(*words, "--dry-run")
        assert (snapshot(tmp_path), snapshot(tiny)) == before, what
        assert (dry.stdout, message in dry.stderr) == ("", True), (what, dry.output)
        assert "Traceback" not in dry.stderr
        changes = {"--epochs": "training.epochs=", "--models": "models="}
        pairs = [(changes.get(key, ""), value) for key, value in zip(options[::2], options[1::2], strict=True)]
        sets = [word for change, value in pairs for word in ("--set", f"{change}{value}")]
        if what not in ABOUT_THIS_MACHINE:
            checked = run("check", specs / "tiny.yaml", "--out", out, "--json", *sets)
            assert (checked.exit_code, checked.stdout, checked.stderr) == (dry.exit_code, "", dry.stderr), what
            assert (snapshot(tmp_path), snapshot(tiny)) == before, what
        done = run(*words)
        assert snapshot(tiny) == before[1], what
        assert (done.exit_code, done.stdout) == (dry.exit_code, ""), what
        assert refusal(done.stderr) == refusal(dry.stderr), what
        assert dry.exit_code in (2, 3, 74)
        tried += 1
    assert tried >= 13


def test_what_a_folder_has_is_counted_before_the_build(tmp_path: Path, specs: Path, tiny: Path) -> None:
    grown = ["--set", "seeds.range=[1, 4]", "--out"]
    for options, counts in (
        ([*grown, tmp_path / "new"], (0, 8)),
        (["--out", tiny], (6, 0)),
        ([*grown, tiny], (6, 2)),
    ):
        found = json.loads(run("check", specs / "tiny.yaml", *options, "--json").stdout)
        assert (found["there"], found["to_train"]) == counts
    shown = run("build", specs / "tiny.yaml", *grown, tiny, "--backend", "torch", "--dry-run").stdout
    assert f"{tiny}: 6 there, 2 to train" in shown
    # Of two stacks one is to be trained again.
    begun = tmp_path / "begun"
    shutil.copytree(tiny, begun)
    zoo, spec = ZooFolder(begun), load_spec(specs / "tiny.yaml")
    plan = reopen(zoo, read_manifest(begun), spec)
    zoo.write_plan(plan)
    record = zoo.read_record(0)
    assert record is not None
    zoo.restart_stack(0, record)
    found = preview(spec, begun, backend="torch").present
    assert found is not None
    assert (found.there, found.to_train, found.model_epochs) == (3, 3, 9)


def test_a_build_says_what_it_does_also_with_json(tmp_path: Path, specs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # which has no kernel yet
    out = tmp_path / "zoo"
    done = run("build", specs / "tiny.yaml", "--out", out, "--workers", "1", "--backend", "native", "--json")
    assert json.loads(done.stdout)["ok"] == 6
    said = done.stderr.splitlines()
    assert "kernel: compiling the one of mlp" in said[0]
    assert said[1].startswith("backend native: ")
    assert said[2] == "images: reading tetris"
    assert said[3] == "plan: 6 models; 0 of 2 stacks are trained, of at most 3 models"
    assert said[-1].startswith("training: 18 of 18 model-epochs")


@pytest.mark.slow
def test_a_dry_run_approves_what_the_build_takes(tmp_path: Path, specs: Path, tiny: Path) -> None:
    for out, options in (
        (tmp_path / "new" / "zoo", []),
        (tiny, []),
        (tiny, ["--set", "seeds.range=[1, 4]"]),
        (tiny, ["--set", "seeds.range=[1, 4]", "--backend", "native", "--allow-fingerprint-change"]),
    ):
        before = snapshot(tmp_path), snapshot(tiny)
        done = run("build", specs / "tiny.yaml", "--out", out, "--dry-run", "--json", "--backend", "torch", *options)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["models"] in (6, 8)
        assert (snapshot(tmp_path), snapshot(tiny)) == before


@pytest.mark.slow
def test_a_dry_run_compares_the_images_that_are_at_hand(tmp_path: Path) -> None:
    """The folder holds other pictures than when the zoo was started."""
    from PIL import Image

    data, out, path = tmp_path / "data", tmp_path / "zoo", tmp_path / "own.yaml"
    for part in ("train", "test"):
        for number, kind in enumerate(("cat", "dog")):
            (data / "pets" / part / kind).mkdir(parents=True)
            for shade in (50, 90):
                Image.new("L", (8, 8), shade + number).save(data / "pets" / part / kind / f"{shade}.png")
    images = "images: {name: image_folder, folder: pets, train: 4, size: 8, greyscale: true}"
    path.write_text(
        "\n".join([*TINY.replace("epochs: 3", "epochs: 1").splitlines()[:2], images, *TINY.splitlines()[3:]])
    )
    words = ["build", path, "--data", data, "--out", out, "--json", "--backend", "torch", "--workers", "1"]
    asked = run(*words, "--dry-run")
    assert asked.exit_code == 0, asked.output
    built = run(*words)
    assert built.exit_code == 0, built.output
    Image.new("L", (8, 8), 7).save(data / "pets/train/cat/50.png")
    grown = [*words, "--set", "seeds.range=[1, 4]"]
    dry, done = run(*grown, "--dry-run"), run(*grown)
    assert dry.exit_code == done.exit_code == 2
    assert "the images differ from those that this zoo was begun with" in dry.stderr
    assert refusal(dry.stderr) == refusal(done.stderr)
    (data / "pets/train/cat/50.png").unlink()
    for command in (["check", path, "--data", data], words):
        few = run(*command)
        assert (few.exit_code, few.stdout) == (2, "")
        assert "train + validation asks for 4 images, but image_folder has 3" in few.stderr


@pytest.mark.parametrize("name", sorted(IMAGE_SETS.keys() - {"tetris"}))
def test_more_images_than_a_data_set_has_are_refused_without_reading_any(
    tmp_path: Path, specs: Path, name: str
) -> None:
    train, test = IMAGE_SETS[name].counts
    change = f"images={{name: {name}, train: {train}, validation: 0, test: {test}, size: 28}}"
    assert run("check", specs / "cnn.yaml", "--set", change, "--data", tmp_path).exit_code == 0
    for more, text in (("validation: 0", "validation: 1"), (f"test: {test}", f"test: {test + 1}")):
        done = run("check", specs / "cnn.yaml", "--set", change.replace(more, text), "--data", tmp_path, "--json")
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"but {name} has {train if 'validation' in more else test:,}" in done.stderr


def test_the_size_of_digits_is_as_loaded() -> None:
    from zootools.images.datasets import load_images
    from zootools.spec import DatasetImages

    train, test = IMAGE_SETS["digits"].counts
    images = DatasetImages(name="digits", train=train)
    check_images(images)
    assert (len(load_images(images).train), len(load_images(images).test)) == (train, test)


# --- memory --------------------------------------------------------------------------------------------


def big(hidden: list[int], **changes: Any) -> ZooSpec:
    values = {**load_spec_values(), "architecture": {"name": "mlp", "hidden": hidden}, **changes}
    return parse_spec(values, "big")


def load_spec_values() -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(TINY.replace("1.0e-2", "0.01")))


def test_workers_are_as_many_as_the_memory_suffices_for() -> None:
    schema = check_spec(big([1000, 1000]))
    one = stack_bytes(16, schema, 16)
    assert one == 4 * schema.size * 10 * 16
    assert stack_bytes(1, schema, 16) == 4 * schema.size * (5 * 16 + 5)
    assert workers_that_fit(None, 4, 1, schema, 1) == 4
    fit = memory_limit() // one
    assert workers_that_fit(None, fit + 5, 16, schema, 16) == fit
    assert workers_that_fit(fit, 1, 16, schema, 16) == fit
    with pytest.raises(StorageError, match=rf"use --workers {fit}, or fewer"):
        workers_that_fit(fit + 1, 1, 16, schema, 16)
    models = memory_limit() // stack_bytes(1, schema) + 1
    with pytest.raises(
        StorageError, match=rf"a stack of {models:,} models x {schema.size:,} parameters takes at least"
    ):
        workers_that_fit(None, 1, models, schema, 1)


# --- progress ------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


SHARES = st.floats(min_value=0, max_value=1.5, allow_nan=False)
STACKS = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 40)), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(STACKS, st.integers(1, 40), st.lists(st.tuples(st.integers(0, 5), SHARES), max_size=15), st.booleans())
def test_progress_never_decreases_and_ends_at_the_whole(
    stacks: list[tuple[int, int]], epochs: int, ticks: list[tuple[int, float]], terminal: bool
) -> None:
    """Ticks in any order: a stack that is retried restarts before the epoch that it had reached."""
    sizes, done = [size for size, _ in stacks], [min(part, epochs) for _, part in stacks]
    out = Terminal() if terminal else io.StringIO()
    with redirect_stderr(out), Progress(sizes, epochs, done) as progress:
        shown = [progress.share]
        for stack, share in ticks:
            progress.update(stack % len(stacks), share * epochs)
            shown.append(progress.share)
        assert shown == sorted(shown)
        assert shown[0] >= 0
        assert shown[-1] <= 1
        for stack in range(len(stacks)):
            for step in range(1, 8):
                progress.update(stack, epochs * step / 7)
        assert progress.share == 1
    total = sum(sizes) * epochs
    if terminal:
        bar = out.getvalue().split("\r")[-1]
        assert "100%|" in bar
        assert f"| {total}/{total} model-epochs" in bar
    elif shown[0] < 1:
        assert f"training: {total} of {total} model-epochs in " in out.getvalue()
        assert "about 0s left" in out.getvalue().splitlines()[-1] or "left" not in out.getvalue().splitlines()[-1]


def test_the_time_left_is_that_of_this_session_without_its_start() -> None:
    """Resumed at nine tenths, started slowly, and then one hundredth done in one hundredth of a second."""
    out = io.StringIO()
    with redirect_stderr(out), Progress([100], 10, [9]) as progress:
        time.sleep(0.3)
        progress.update(0, 9.0)
        time.sleep(0.05)
        progress.update(0, 9.5)
        left = progress.seconds_left()
        assert left is not None
        assert 0 < left < 0.3, "what is left takes as long as what was done since the first news"
        progress.update(0, 10)
        assert progress.seconds_left() == 0


def test_a_resumed_build_whose_models_have_all_diverged_ends_at_the_whole(
    tmp_path: Path, specs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ["grid.lr=[100.0]", "grid.weight_decay=[100.0]", "grid.optimizer=[sgd]", "training.epochs=30"]
    manifest = build(load_spec(specs / "tiny.yaml", wild), tmp_path / "zoo", backend="torch", workers=1)
    assert manifest.counts.diverged > 0
    assert "training: 180 of 180 model-epochs" in capsys.readouterr().err
