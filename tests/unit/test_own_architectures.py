"""Architectures that users add: by a decorator in a script, by an entry point of a package, and neither for readers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from zootools import ZooError, build, load_spec, open_zoo, register_architecture
from zootools.architectures import Layer
from zootools.building.resuming import check_build
from zootools.cli import main
from zootools.errors import SpecError
from zootools.verify import faults

SPEC = """
name: own
images: {name: tetris, train: 40, test: 50, noise_train: 0.2, noise_test: 0.8}
architecture: {name: NAME}
grid: {activation: [tanh], init: [normal], optimizer: [sgd], lr: [1.0e-2]}
seeds: {range: [1, 3]}
training: {epochs: 1, batch_size: 4}
"""

NETWORK = """
from zootools import register_architecture
from zootools.architectures import Layer

@register_architecture("NAME", hidden=(3,))
def network(channels):
    return [Layer("conv1", "conv", channels, 2, kernel=2)]
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo that a script without the ``__main__`` guard has built; its architecture is unknown to this process."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.yaml").write_text(SPEC.replace("NAME", "of_a_script"))
    script = NETWORK.replace("NAME", "of_a_script") + (
        "from zootools import build, load_spec\n"
        f"build(load_spec({str(folder / 'own.yaml')!r}), {str(folder / 'zoo')!r}, backend='torch', workers=2)\n"
    )
    (folder / "script.py").write_text(script)
    done = subprocess.run([sys.executable, str(folder / "script.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "zoo"


def test_a_reader_needs_no_registered_architecture(zoo: Path) -> None:
    assert list(faults(zoo)) == []
    opened = open_zoo(zoo)
    assert [note for note in opened.notes if "architecture 'of_a_script'" in note]
    assert [layer.name for layer in opened.schema.layers] == ["conv1", "fc1", "fc2"]
    assert opened.weights().shape == (6, opened.schema.size)
    network = opened.module(opened.models[0], 1)
    assert network(torch.zeros(2, 1, 4, 4)).shape == (2, 4)
    assert "Architecture `of_a_script`" in (zoo / "README.md").read_text()
    shown = CliRunner().invoke(main, ["info", str(zoo), "--json"])
    assert (shown.exit_code, json.loads(shown.stdout)["parameters"]) == (0, opened.schema.size)


def test_a_specification_with_an_architecture_of_nobody_says_how_to_register_it(zoo: Path) -> None:
    for command in ("check", "build"):
        done = CliRunner().invoke(main, [command, str(zoo.parent / "own.yaml"), "--out", str(zoo)])
        assert done.exit_code == 2
        assert "own.yaml:4: architecture.name: found 'of_a_script'; allowed: cnn_large," in done.stderr
        assert "zootools.register_architecture" in done.stderr
        assert "entry point of the group zootools.architectures" in done.stderr


def package(folder: Path, name: str, module: str, text: str) -> None:
    """Install a package with a module and an entry point into a folder, as pip does."""
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[zootools.architectures]\n{name} = {module}:network\n")


def test_the_command_line_finds_the_entry_point_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "of_a_package", "own_package", NETWORK.replace("NAME", "of_a_package"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own.yaml").write_text(SPEC.replace("NAME", "of_a_package"))
    spec = load_spec(tmp_path / "own.yaml")
    assert "own_package" not in sys.modules, "a specification that is only read imports nothing"
    done = CliRunner().invoke(main, ["check", str(tmp_path / "own.yaml"), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["layers"]) == (0, ["conv1", "fc1", "fc2"]), done.output
    assert check_build(spec, tmp_path / "zoo").schema.size == 2 * 4 + 2 + 18 * 3 + 3 + 3 * 4 + 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "cannot be imported (ZeroDivisionError"),
        ("network = None", "registers no architecture broken_0; decorate it"),
    ],
)
def test_an_entry_point_that_does_not_work_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    module = f"broken_{'nothing' if 'None' in text else 'import'}"
    package(tmp_path, "broken_0", module, text)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own.yaml").write_text(SPEC.replace("NAME", "broken_0"))
    with pytest.raises(SpecError) as caught:
        check_build(load_spec(tmp_path / "own.yaml"), tmp_path / "zoo")
    assert f"broken_0 = {module}:network (group zootools.architectures)" in str(caught.value)
    assert message in str(caught.value)
    package(tmp_path, "broken_0", f"{module}_2", text)
    with pytest.raises(SpecError, match="offered by several installed packages"):
        check_build(load_spec(tmp_path / "own.yaml"), tmp_path / "zoo")


def test_a_zoo_is_not_continued_with_other_layers(tmp_path: Path) -> None:
    sizes = [2]

    @register_architecture("of_changing_layers")
    def changing(channels: int) -> list[Layer]:
        return [Layer("conv1", "conv", channels, sizes[0], kernel=2)]

    (tmp_path / "own.yaml").write_text(SPEC.replace("NAME", "of_changing_layers"))
    spec, out = load_spec(tmp_path / "own.yaml"), tmp_path / "zoo"
    build(spec, out, backend="torch", workers=1, quiet=True)
    sizes[0] = 3
    for more in ([], ["seeds.range=[1, 4]"]):
        with pytest.raises(SpecError, match="the layers of the architecture of_changing_layers are not those of the"):
            build(load_spec(tmp_path / "own.yaml", more), out, backend="torch", quiet=True)


def _other(channels: int) -> list[Layer]:
    return []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {}, "mlp is a bundled architecture"),
        ("cnn_small", {}, "cnn_small is a bundled architecture"),
        ("Upper", {}, "does not match"),
        ("../x", {}, "does not match"),
        ("fine", {"hidden": (0,)}, "hidden: found (0,)"),
        ("fine", {"hidden": (1.5,)}, "hidden: found (1.5,)"),
    ],
)
def test_a_name_or_width_that_cannot_be_registered_is_refused(name: str, options: Any, message: str) -> None:
    with pytest.raises(ZooError) as caught:
        register_architecture(name, **options)(_other)
    assert message in str(caught.value)


def test_a_name_belongs_to_one_function(tmp_path: Path) -> None:
    register_architecture("of_one_function")(_other)
    register_architecture("of_one_function")(_other)  # a cell that is run again
    with pytest.raises(SpecError, match=r"of_one_function is registered by .*_other and by .*lambda"):
        register_architecture("of_one_function")(lambda channels: [])
    (tmp_path / "own.yaml").write_text(SPEC.replace("NAME", "of_one_function"))
    with pytest.raises(SpecError, match=r"_other returned \[\]; expected a list of zootools.architectures.Layer"):
        check_build(load_spec(tmp_path / "own.yaml"), tmp_path / "zoo")
