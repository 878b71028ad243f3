"""The command line as a user meets it: output, exit codes, errors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TINY = """
name: tiny
images: {name: tetris, train: 40, test: 50, noise_train: 0.2, noise_test: 0.8}
architecture: {name: mlp, hidden: [5], bias: false}
grid: {activation: [tanh], init: [uniform], optimizer: [adam], lr: [1.0e-2]}
seeds: {range: [1, 4]}
training: {epochs: 2, batch_size: 4}
"""


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    words = [sys.executable, "-m", "zootools", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a specification, and the zoo that `build` makes of it by default."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(TINY)
    built = run("build", "tiny.yaml", cwd=folder)
    assert built.returncode == 0, built.stderr
    assert "4 models = 4 ok + 0 diverged" in built.stdout
    assert "model-epochs" in built.stderr
    return folder


@pytest.mark.slow
def test_reading_commands_print_one_json_object(folder: Path) -> None:
    zoo = folder / "zoos" / "tiny"
    info = json.loads(run("info", zoo, "--json").stdout)
    assert (info["expected"], info["checkpoints"], info["parameters"]) == (4, 12, 100)
    assert json.loads(run("status", zoo, "--json").stdout)["state"] == "finished"
    assert json.loads(run("verify", zoo, "--json").stdout)["faults"] == []
    assert json.loads(run("check", folder / "tiny.yaml", "--json").stdout)["models"] == 4
    assert len(json.loads(run("specs", "--json").stdout)) == 17
    assert json.loads(run("doctor", "--json").stdout)["problems"] == []
    dry = json.loads(run("build", folder / "tiny.yaml", "--dry-run", "--json").stdout)
    assert (dry["models"], dry["checkpoints"]) == (4, 12)
    assert dry["estimated_seconds"] >= 0


@pytest.mark.slow
def test_one_model_is_shown_and_exported(folder: Path) -> None:
    from safetensors.torch import load_file

    from zootools import open_zoo

    zoo = open_zoo(folder / "zoos" / "tiny")
    model = zoo.models[0]
    shown = json.loads(run("show", zoo.folder, model, "--json").stdout)
    assert [row["epoch"] for row in shown["epochs"]] == [0, 1, 2]
    exported = run("export", zoo.folder, "--model", model, "--epoch", "2", "-o", folder / "one.safetensors")
    assert exported.returncode == 0, exported.stderr
    stored = zoo.state_dict(model, 2)
    assert {name: t.tolist() for name, t in load_file(folder / "one.safetensors").items()} == {
        name: t.tolist() for name, t in stored.items()
    }


def test_a_model_is_shown_with_the_scores_of_each_epoch(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from zootools import build, open_zoo
    from zootools.cli import main
    from zootools.spec import load_spec

    (tmp_path / "validated.yaml").write_text(TINY.replace("test: 50,", "test: 50, validation: 30,"))
    build(load_spec(tmp_path / "validated.yaml"), tmp_path / "zoo", workers=1, quiet=True)
    table = open_zoo(tmp_path / "zoo").metadata.to_pylist()
    model = table[0]["model_id"]
    shown = json.loads(CliRunner().invoke(main, ["show", str(tmp_path / "zoo"), model, "--json"]).stdout)
    scores = ("train_loss", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
    for epoch in shown["epochs"]:
        (row,) = (row for row in table if (row["model_id"], row["epoch"]) == (model, epoch["epoch"]))
        assert {name: epoch[name] for name in scores} == {name: row[name] for name in scores}
    assert len({epoch["validation_loss"] for epoch in shown["epochs"]}) == 3
    # What is said of the model as a whole is the same at every epoch.
    for name, value in shown.items():
        if name in table[0]:
            assert {row[name] for row in table if row["model_id"] == model} == {value}
    lines = CliRunner().invoke(main, ["show", str(tmp_path / "zoo"), model]).stdout.splitlines()
    heading = next(line for line in lines if line.split()[:1] == ["epoch"]).split()
    assert "validation_accuracy" in heading
    assert {len(line.split()) for line in lines[-3:]} == {len(heading)}


@pytest.mark.slow
def test_a_dry_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    assert run("build", folder / "tiny.yaml", "--dry-run", cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_overrides_are_recorded(folder: Path, tmp_path: Path) -> None:
    arguments = ("--models", "2", "--epochs", "1", "--set", "grid.lr=[0.1]", "--json")
    built = run("build", folder / "tiny.yaml", "--out", tmp_path / "z", *arguments)
    assert json.loads(built.stdout)["checkpoints"] == 4
    recorded = (tmp_path / "z" / "spec.yaml").read_text()
    assert "models: 2" in recorded
    assert "epochs: 1" in recorded
    assert "0.1" in recorded


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("build", "tetris_sed"), 2, "did you mean 'tetris_seed'"),
        (("build", "tiny.yaml", "--set", "training.epoch=3"), 2, "did you mean 'epochs'"),
        (("build", "tiny.yaml", "--set", "seeds.range=[1, 1000000000000]"), 2, "1,000,000,000,000 models"),
        (("build", "tiny.yaml", "--device", "cuda", "--out", "x"), 2, "no CUDA device"),
        (("check", "cnn.yaml"), 2, "leaves nothing of an input"),
        (("biuld", "tiny.yaml"), 2, "Did you mean"),
        (("info", "nowhere"), 2, "nowhere: there is no such folder"),
        (("info", "zoos"), 2, "no finished zoo"),
        (("build", "tiny.yaml", "--out", "tiny.yaml/zoo"), 2, "tiny.yaml is not a folder"),
        (("show", "zoos/tiny", "x"), 2, "no model 'x'"),
        (("build", "mnist_seed", "--data", "empty", "--out", "x", "--models", "1"), 74, "could not be downloaded"),
    ],
)
def test_bad_input_is_one_clear_error(folder: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("a machine without CUDA is needed to see the refusal of --device cuda")
    cnn = TINY.replace("{name: mlp, hidden: [5], bias: false}", "{name: cnn_small}")
    (folder / "cnn.yaml").write_text(cnn)
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    words = [sys.executable, "-m", "zootools", *arguments]
    refused = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)
    assert refused.returncode == code, refused.stderr
    assert text in refused.stderr
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""


def test_a_damaged_zoo_leaves_with_exit_code_3(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "zoo"
    shutil.copytree(folder / "zoos" / "tiny", copy)
    (copy / "data").rename(copy / "date")
    checked = run("verify", copy)
    assert checked.returncode == 3
    assert re.search(r"data/\w+-00000-of-00001\.parquet: is missing", checked.stderr)


def test_help_imports_neither_torch_nor_datasets() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from zootools.cli import main;"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0;"
        "names = ('torch', 'datasets', 'pyarrow', 'numpy', 'pydantic', 'huggingface_hub');"
        "print(*[name for name in names if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == ""


def test_info_of_a_folder_imports_nothing_that_takes_long() -> None:
    zoo = Path(__file__).parents[1] / "data" / "golden_mlp"
    script = (
        "import sys; from click.testing import CliRunner; from zootools.cli import main;"
        f"assert CliRunner().invoke(main, ['info', {str(zoo)!r}]).exit_code == 0;"
        "names = ('torch', 'datasets', 'pandas', 'scipy', 'fsspec', 'huggingface_hub', 'jinja2', 'PIL');"
        "print(*[name for name in names if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == ""


def test_every_command_is_in_the_readme() -> None:
    from zootools.cli import main

    readme = (Path(__file__).parents[2] / "README.md").read_text()
    missing = [name for name in main.commands if f"zootools {name}" not in readme]
    assert missing == []


def test_output_that_nobody_reads_is_no_error() -> None:
    """Like `zootools specs | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen([sys.executable, "-m", "zootools", "specs"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert process.communicate()[1] == b""
    assert process.returncode == 0
