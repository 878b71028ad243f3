"""A finished zoo is trained for more epochs from the state that `keep_state` leaves, or the build is refused."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from crash import tree
from samples import LOOK_ZOO

from zootools import ZooSpec, build, open_zoo
from zootools.building.resuming import check_build
from zootools.cli import main
from zootools.engines.engine import BuildJob, Report, Retried
from zootools.engines.table import ENGINES
from zootools.engines.worker import train_stack
from zootools.errors import DamagedZooError, SpecError
from zootools.spec import parse_spec
from zootools.storage.build_state import PLAN
from zootools.storage.image_tensors import map_images
from zootools.verify import faults


class Here:
    """An engine without workers; after ``stacks_left`` stacks it is interrupted."""

    trains_here = True
    stacks_left = 1000

    def __init__(self, address: str | None = None) -> None:
        del address

    def train(self, job: BuildJob, stacks: Sequence[int], report: Report, retried: Retried) -> dict[int, str]:
        models, images = job.plan.models(), map_images(job.zoo, job.classes, job.backend.device)
        for number, stack in enumerate(stacks):
            if number == self.stacks_left:
                raise KeyboardInterrupt
            own = [models[model] for model in job.plan.stacks[stack]]
            train_stack(job.zoo, stack, own, job.plan.schema, job.plan.spec.training, images, job.backend, report)
        return {}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "here", Here)


def spec_of(epochs: int, seeds: int = 2, every: int = 2) -> ZooSpec:
    """Return a specification of two stacks; some models diverge in the first epochs, some later."""
    changes = {
        "seeds": {"range": [1, seeds]},
        "training": {"epochs": epochs, "batch_size": 4, "checkpoint_every": every},
    }
    return parse_spec(LOOK_ZOO | changes, "test")


def make(spec: ZooSpec, out: Path, *, keep: bool = True, backend: str = "torch") -> None:
    build(spec, out, engine="here", backend=backend, keep_state=keep, workers=1, quiet=True)


def zoo_of(out: Path) -> dict[str, bytes]:
    """Return the files of a zoo, without the kept state."""
    return {name: data for name, data in tree(out).items() if not name.startswith(".state/")}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of three epochs, of which the last one is not kept by a longer zoo."""
    out = tmp_path_factory.mktemp("kept") / "zoo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "here", Here)
        make(spec_of(3), out)
    return out


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the zoo of six epochs, built at once."""
    out = tmp_path_factory.mktemp("longer") / "zoo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "here", Here)
        make(spec_of(6), out, keep=False)
    assert open_zoo(out).counts.diverged > 0
    return zoo_of(out)


def test_a_zoo_trained_further_has_the_bytes_of_one_trained_at_once(
    tmp_path: Path, kept: Path, longer: dict[str, bytes]
) -> None:
    out = tmp_path / "zoo"
    shutil.copytree(kept, out)
    assert list(faults(out)) == []
    found = check_build(spec_of(6), out).present
    assert found is not None
    assert (found.there, found.to_train > 0) == (0, True)
    make(spec_of(6), out)
    assert zoo_of(out) == longer
    assert list(faults(out)) == []
    make(spec_of(8), out, keep=False)
    assert b'"epoch":6' not in b"".join(data for name, data in tree(out).items() if name.startswith(".state/"))
    with pytest.raises(SpecError, match="built with --keep-state"):
        make(spec_of(9), out)


def test_the_native_backend_continues_with_the_same_bytes(tmp_path: Path) -> None:
    make(spec_of(2, every=1), tmp_path / "zoo", backend="native")
    make(spec_of(4, seeds=3, every=1), tmp_path / "zoo", backend="native")  # more models, too
    make(spec_of(4, seeds=2, every=1), tmp_path / "once", backend="native")
    grown, once = zoo_of(tmp_path / "zoo"), zoo_of(tmp_path / "once")
    shards = [name for name in once if name.startswith("checkpoints/")]
    assert shards
    assert all(grown[name] == once[name] for name in shards)
    assert list(faults(tmp_path / "zoo")) == []


@pytest.mark.parametrize("stacks", [0, 1])
def test_a_continuation_that_is_interrupted_is_resumed(
    tmp_path: Path, kept: Path, longer: dict[str, bytes], stacks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "zoo"
    shutil.copytree(kept, out)
    monkeypatch.setattr(Here, "stacks_left", stacks)
    with pytest.raises(KeyboardInterrupt):
        make(spec_of(6), out)
    monkeypatch.undo()
    monkeypatch.setitem(ENGINES, "here", Here)
    assert list(faults(out)) == []
    with pytest.raises(SpecError, match="another specification"):
        make(spec_of(3), out)
    if stacks == 0:  # killed before the plan was written
        (out / PLAN).unlink()
    make(spec_of(6), out)
    assert zoo_of(out) == longer


def test_more_epochs_without_state_and_fewer_epochs_are_refused(tmp_path: Path, kept: Path) -> None:
    out = tmp_path / "zoo"
    shutil.copytree(kept, out)
    with pytest.raises(SpecError, match=r'"epochs": 3.*there, .*"epochs": 2') as fewer:
        make(spec_of(2), out)
    assert "--keep-state" not in str(fewer.value)
    shutil.rmtree(out / ".state")
    assert list(faults(out)) == []
    for check in (make, check_build):
        with pytest.raises(SpecError, match=r"built with --keep-state.*train again in a new folder: -o NEW"):
            check(spec_of(6), out)
    assert list(faults(out)) == []
    assert not (out / ".work").exists()


def test_a_damaged_state_is_named_and_the_zoo_stays(tmp_path: Path, kept: Path) -> None:
    out = tmp_path / "zoo"
    shutil.copytree(kept, out)
    state = out / ".state" / "stack-00000.record"
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    with pytest.raises(DamagedZooError, match=r"stack-00000\.record: its weights and optimizer state have changed"):
        make(spec_of(6), out)
    make(spec_of(3), out)
    assert zoo_of(out) == zoo_of(kept)
    shutil.copy(out / ".state" / "stack-00001.record", state)
    with pytest.raises((SpecError, DamagedZooError), match=r"stack-00000\.record"):
        make(spec_of(6), out)


def test_the_state_is_not_published_and_does_not_stop_a_pull(tmp_path: Path, kept: Path) -> None:
    def run(*words: object) -> None:
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output

    run("publish", kept, "me/kept", "--hub", tmp_path / "hub")
    assert not [path for path in (tmp_path / "hub").rglob("*") if ".state" in path.parts]
    own = tmp_path / "own"
    shutil.copytree(kept, own)
    run("pull", "me/kept", own, "--hub", tmp_path / "hub")
    assert (own / ".state" / "stack-00000.record").exists()
