"""Whole zoos on real files: bytes, resume, growth, divergence, refusals."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from click.testing import CliRunner
from crash import CNN, TINY, Builders, held_environment, tree

from zootools import ZooSpec, build, open_zoo
from zootools.building.planning import plan_stacks, zoo_schema
from zootools.cli import main
from zootools.errors import BusyError, DamagedZooError, SpecError, StorageError, WorkerError, ZooNotFoundError
from zootools.filesystem.lock import FolderLock
from zootools.hashing import pretty_json
from zootools.images.datasets import load_images
from zootools.spec import load_spec
from zootools.spec.model_configs import expand
from zootools.storage.build_state import ZooFolder
from zootools.storage.hashed_json import add_hash
from zootools.storage.manifest import NumberedResumption
from zootools.storage.status import status
from zootools.training.reference import train_reference
from zootools.verify import faults, repair

LONG = TINY.replace("train: 40", "train: 400").replace("epochs: 3", "epochs: 30")


def spec_of(text: str, *overrides: str, folder: Path) -> ZooSpec:
    """Write a specification to ``folder``/spec-under-test.yaml and load it."""
    path = folder / "spec-under-test.yaml"
    path.write_text(text)
    return load_spec(path, overrides)


def start(
    specs: Path,
    out: Path,
    *arguments: str,
    held: dict[str, str] | None = None,
    command: tuple[str, str] = ("-m", "zootools"),
) -> subprocess.Popen[str]:
    """Start the command as a user does; its build may be `crash.held`."""
    words = [sys.executable, *command, "build", str(specs / "spec-under-test.yaml"), "--out", str(out)]
    return subprocess.Popen(
        [*words, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=held
    )


def wait_for_shards(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Wait until a build has stored `count` shards."""
    while len(list(out.glob("checkpoints/*/epoch-*.safetensors"))) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def workers_of(builder: int) -> list[int]:
    """The grandchildren of a builder: the children of its fork server."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    return [pid for pid, parent in parents.items() if parents.get(parent) == builder]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("specs")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, specs: Path) -> Path:
    out = tmp_path_factory.mktemp("zoos") / "tiny"
    build(spec_of(TINY, folder=specs), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory, specs: Path) -> Path:
    out = tmp_path_factory.mktemp("zoos") / "cnn"
    build(spec_of(CNN, folder=specs), out, workers=2, quiet=True)
    return out


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, specs: Path) -> Path:
    out = tmp_path_factory.mktemp("zoos") / "long"
    build(spec_of(LONG, folder=specs), out, quiet=True)
    return out


# --- what is stored ------------------------------------------------------------------------------------


def test_a_zoo_holds_what_its_specification_asks_for(tiny: Path) -> None:
    zoo = open_zoo(tiny)
    assert zoo.counts.expected == zoo.counts.ok == 6
    assert sorted(set(zoo.metadata["epoch"].to_pylist())) == [0, 1, 2, 3]
    assert zoo.weights().shape == (24, 100)
    assert not (tiny / ".work").exists()
    assert list(faults(tiny)) == []


def test_another_build_has_equal_bytes_with_another_number_of_workers(tmp_path: Path, specs: Path, cnn: Path) -> None:
    build(spec_of(CNN, folder=specs), tmp_path / "again", workers=1, quiet=True)
    assert tree(tmp_path / "again") == tree(cnn)


def test_a_model_is_the_same_in_a_smaller_zoo(tmp_path: Path, specs: Path, cnn: Path) -> None:
    build(spec_of(CNN, "models=3", folder=specs), tmp_path / "part", quiet=True)
    part, whole = open_zoo(tmp_path / "part"), open_zoo(cnn)
    assert set(part.models) == set(sorted(whole.models)[:3])
    for model in part.models:
        for epoch in (0, 2):
            mine, theirs = part.checkpoint(model, epoch), whole.checkpoint(model, epoch)
            assert torch.equal(mine.weights(), theirs.weights())
            columns = ["test_loss", "test_accuracy", "test_f1", "train_loss", "validation_loss"]
            assert mine.metadata.select(columns).to_pylist() == theirs.metadata.select(columns).to_pylist()


def test_stored_scores_are_those_of_the_stored_weights(cnn: Path) -> None:
    zoo = open_zoo(cnn)
    images = load_images(zoo.spec.images)
    rows = zoo.metadata.to_pylist()[::7]
    assert len(rows) > 5
    for row in rows:
        network = zoo.module(row["model_id"], row["epoch"])
        for name, subset, count in (("train", images.train, 32), ("test", images.test, 60)):
            with torch.no_grad():
                logits = network(subset.images[:count])
            labels = subset.labels[:count]
            assert row[f"{name}_loss"] == pytest.approx(
                torch.nn.functional.cross_entropy(logits.double(), labels).item(), rel=1e-5
            )
            correct = int((logits.argmax(1) == labels).sum())
            assert row[f"{name}_accuracy"] * count == pytest.approx(correct)
        assert row["generalization_gap"] == pytest.approx(row["train_accuracy"] - row["test_accuracy"])


def test_f_scores_agree_with_scikit_learn(cnn: Path) -> None:
    from sklearn.metrics import f1_score

    zoo = open_zoo(cnn)
    images = load_images(zoo.spec.images)
    row = zoo.metadata.to_pylist()[-1]
    with torch.no_grad():
        predicted = zoo.module(row["model_id"], row["epoch"])(images.test.images).argmax(1)
    expected = f1_score(images.test.labels, predicted, average=None, labels=range(10), zero_division=0)
    assert row["test_f1"] == pytest.approx(list(expected))


def test_a_zoo_agrees_with_the_reference_trainer(cnn: Path) -> None:
    zoo = open_zoo(cnn)
    images = load_images(zoo.spec.images)
    configs = {model.model_id: model for model in expand(zoo.spec)}
    errors = []
    for model in zoo.models[::4]:
        *_, network = train_reference(zoo.schema, configs[model], images, zoo.spec.training.batch_size, 2)
        reference = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
        stored = zoo.checkpoint(model, 2).weights()[0]
        errors.append(((stored - reference).norm() / reference.norm()).item())
    assert sorted(errors)[len(errors) // 2] <= 1e-5


def test_models_of_one_seed_and_init_start_equal(tiny: Path) -> None:
    first = open_zoo(tiny).where(pc.field("epoch") == 0)
    rows = dict[int, list[torch.Tensor]]()
    for row, flat in zip(first.metadata.to_pylist(), first.weights(), strict=True):
        rows.setdefault(row["seed"], []).append(flat)
    assert all(len(pair) == 2 and torch.equal(*pair) for pair in rows.values())


def test_checkpoint_epochs_keep_only_what_is_asked_for_and_the_end(tmp_path: Path, specs: Path) -> None:
    build(spec_of(TINY, "training.checkpoint_epochs=[0, 2]", folder=specs), tmp_path / "zoo", quiet=True)
    assert sorted(set(open_zoo(tmp_path / "zoo").metadata["epoch"].to_pylist())) == [0, 2, 3]


# --- load_dataset --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("models", [1, 2, 4])
def test_small_zoos_load_whatever_splits_are_empty(tmp_path: Path, specs: Path, models: int) -> None:
    build(spec_of(TINY, f"models={models}", folder=specs), tmp_path / "zoo", quiet=True)
    script = (
        "import sys; from datasets import load_dataset; d = load_dataset(sys.argv[1]);"
        "m = load_dataset(sys.argv[1], 'metadata');"
        "assert 'zootools' not in sys.modules;"
        "assert {s: v.num_rows for s, v in m.items()} == {s: v.num_rows for s, v in d.items()};"
        "print(sum(v.num_rows for v in d.values()))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-I", "-c", script, str(tmp_path / "zoo")]
    run = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == models * 4


@pytest.mark.filterwarnings("default")
def test_load_dataset_gives_the_weights_of_the_shards(tmp_path: Path, cnn: Path) -> None:
    import datasets

    zoo = open_zoo(cnn, include_diverged=True)
    identities = [(row["model_id"], row["epoch"]) for row in zoo.metadata.to_pylist()]
    stored = dict(zip(identities, zoo.weights(), strict=True))
    rows = 0
    for name, split in datasets.load_dataset(str(cnn), cache_dir=str(tmp_path)).items():
        assert split.features["weights"] == datasets.List(datasets.Value("float32"), length=2464)
        for row in split.with_format("torch"):
            assert torch.equal(row["weights"], stored[row["model_id"], int(row["epoch"])])
            assert row["split"] == name
            rows += 1
    assert rows == len(stored) == zoo.counts.checkpoints
    filtered = datasets.load_dataset(str(cnn), split="train", filters=[("epoch", "==", 2)], cache_dir=str(tmp_path))
    assert set(filtered["epoch"]) == {2}


@pytest.mark.filterwarnings("default")
def test_a_rebuilt_zoo_is_not_served_from_an_old_cache(tmp_path: Path, specs: Path) -> None:
    """`datasets` caches local folders by the card's configs block, so that block must change with the bytes."""
    import datasets

    values = []
    for lr in ("0.01", "0.02"):
        folder = tmp_path / lr / "zoo"
        build(spec_of(TINY, f"grid.lr=[{lr}]", folder=specs), folder, quiet=True)
        loaded = datasets.load_dataset(str(folder), "metadata", cache_dir=str(tmp_path / "cache"))
        values.append({value for split in loaded.values() for value in split["lr"]})
    assert values == [{0.01}, {0.02}]


# --- growth and refusals -------------------------------------------------------------------------------


def test_a_grown_zoo_keeps_its_shards_and_gets_new_stacks(tmp_path: Path, specs: Path) -> None:
    out = tmp_path / "zoo"
    build(spec_of(TINY, folder=specs), out, quiet=True)
    before = {name: data for name, data in tree(out).items() if name.startswith("checkpoints/")}
    build(spec_of(TINY, "seeds.range=[1, 5]", folder=specs), out, quiet=True)
    after = tree(out)
    assert all(after[name] == data for name, data in before.items())
    assert open_zoo(out).counts.expected == 10
    assert list(faults(out)) == []


def test_a_zoo_grows_under_its_own_fingerprint_only(
    tmp_path: Path, specs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "zoo"
    build(spec_of(TINY, folder=specs), out, quiet=True)
    monkeypatch.setattr(np, "__version__", "9.9")
    build(spec_of(TINY, folder=specs), out, quiet=True)  # nothing is trained, so nothing is refused
    grown = spec_of(TINY, "seeds.range=[1, 5]", folder=specs)
    with pytest.raises(SpecError, match=r"'9\.9' now"):
        build(grown, out, quiet=True)
    assert build(grown, out, quiet=True, allow_fingerprint_change=True).counts.ok == 10


def test_the_same_build_again_changes_nothing(tiny: Path, specs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    build(spec_of(TINY, folder=specs), tiny, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


@pytest.mark.parametrize(
    ("override", "named"),
    [("training.epochs=4", "training"), ("images.noise_test=0.5", "images"), ("seeds.range=[1, 2]", "seeds")],
)
def test_another_specification_is_refused_with_the_difference(
    tiny: Path, specs: Path, override: str, named: str
) -> None:
    with pytest.raises(SpecError, match=named):
        build(spec_of(TINY, override, folder=specs), tiny, quiet=True)
    assert list(faults(tiny)) == []


def test_a_folder_with_other_files_is_refused(tmp_path: Path, specs: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not lose me")
    with pytest.raises(SpecError, match="holds files but no zoo"):
        build(spec_of(TINY, folder=specs), tmp_path, quiet=True)


def test_a_second_builder_is_refused(tmp_path: Path, specs: Path) -> None:
    out = tmp_path / "zoo"
    with FolderLock(ZooFolder(out).lock), pytest.raises(BusyError, match=f"process {os.getpid()}"):
        build(spec_of(TINY, folder=specs), out, quiet=True)


def test_more_than_the_disk_holds_is_refused_before_anything_is_written(tmp_path: Path, specs: Path) -> None:
    many = ("architecture.hidden=[500, 500]", "seeds.range=[1, 20000]", "training.epochs=40")
    huge = spec_of(TINY, *many, folder=specs)
    with pytest.raises(StorageError, match="GB are free"):
        build(huge, tmp_path / "zoo", quiet=True)
    assert not (tmp_path / "zoo").exists()


# --- divergence ----------------------------------------------------------------------------------------


def test_diverged_models_are_marked_and_do_not_disturb_their_neighbours(tmp_path: Path, specs: Path) -> None:
    relu = ("grid.optimizer=[sgd]", "grid.activation=[relu]", "grid.lr=[1.0]")
    build(spec_of(TINY, *relu, "grid.weight_decay=[0.0]", folder=specs), tmp_path / "calm", quiet=True)
    build(spec_of(TINY, *relu, "grid.weight_decay=[0.0, 100.0]", folder=specs), tmp_path / "wild", quiet=True)
    zoo, everything = open_zoo(tmp_path / "wild"), open_zoo(tmp_path / "wild", include_diverged=True)
    assert zoo.counts.diverged > 0
    assert zoo.counts.ok + zoo.counts.diverged == zoo.counts.expected == 6
    assert set(zoo.models).isdisjoint(zoo.stopped)
    assert torch.isfinite(everything.weights()).all()
    for model, stop in everything.stopped.items():
        assert "non-finite" in stop.reason
        kept = everything.where(pc.field("model_id") == model)
        assert max(kept.metadata["epoch"].to_pylist()) < stop.epoch
    alone = open_zoo(tmp_path / "calm")
    for model in alone.models:
        assert torch.equal(alone.checkpoint(model, 3).weights(), zoo.checkpoint(model, 3).weights())


# --- interruptions -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_and_resumed_build_has_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, specs: Path, long: Path
) -> None:
    seed = int(os.environ.get("ZOOTOOLS_FAULT_SEED", random.randrange(10**6)))
    print(f"ZOOTOOLS_FAULT_SEED={seed}")
    moments = random.Random(seed)
    spec, out, stored = spec_of(LONG, folder=specs), tmp_path / "zoo", 0
    for epoch in sorted(moments.sample(range(2, 30), 2)):
        held = held_environment(tmp_path / f"held-{epoch}", epoch, tmp_path / "never")
        process = start(specs, out, "--workers", "2", held=held)
        stored = moments.randint(stored + 1, 2 * epoch)  # of two stacks
        wait_for_shards(process, out, stored)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    build(spec, out, quiet=True)
    assert tree(out) == tree(long)


@pytest.mark.slow
def test_a_session_that_was_killed_is_in_the_log_of_builds(tmp_path: Path, specs: Path) -> None:
    spec, out = spec_of(LONG, folder=specs), tmp_path / "zoo"
    script = """
from zootools.building import session_log
from zootools.cli import main
session_log.SECONDS_BETWEEN_WRITES = 0
main(prog_name="zootools")
"""
    held = held_environment(tmp_path / "held", 3, tmp_path / "never")
    process = start(specs, out, held=held, command=("-c", script))
    while not (out / "build.json").exists():  # a worker's shard is there before its report reaches the builder
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.kill()
    process.communicate()
    (killed,) = json.loads((out / "build.json").read_text())["sessions"]
    assert killed["seconds"] > 0
    build(spec, out, quiet=True)
    before, _ = json.loads((out / "build.json").read_text())["sessions"]
    assert before == killed


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_a_valid_partial_zoo(tmp_path: Path, specs: Path, how: int) -> None:
    spec = spec_of(LONG, folder=specs)
    out = tmp_path / "zoo"
    process = start(specs, out, held=held_environment(tmp_path / "held", 3, tmp_path / "never"))
    wait_for_shards(process, out, 3)
    process.send_signal(how)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "the same command resumes" in errors
    zoo = open_zoo(out)
    assert not zoo.finished
    assert len(zoo) > 0
    assert torch.isfinite(zoo.weights()).all()
    assert list(faults(out)) == []
    counts = status(out).counts
    assert counts.expected == counts.ok + counts.diverged + counts.failed + counts.missing
    (session,) = json.loads((out / "build.json").read_text())["sessions"]
    assert session["seconds"] > 0
    build(spec, out, quiet=True)
    assert json.loads((out / "build.json").read_text())["sessions"][0] == session


@pytest.mark.slow
def test_a_dead_worker_is_replaced_and_its_stack_resumed(tmp_path: Path, specs: Path, long: Path) -> None:
    spec_of(LONG, folder=specs)
    out = tmp_path / "zoo"
    release = tmp_path / "killed"
    process = start(specs, out, "--workers", "1", held=held_environment(tmp_path / "held", 4, release))
    wait_for_shards(process, out, 4)
    workers = workers_of(process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    release.touch()
    _, errors = process.communicate()
    assert len(workers) == 1
    assert process.returncode == 0, errors
    assert "died (killed by SIGKILL)" in errors
    assert tree(out) == tree(long)


@pytest.mark.slow
def test_a_stack_whose_worker_always_dies_is_reported(tmp_path: Path, specs: Path) -> None:
    spec_of(LONG, "training.epochs=100000", folder=specs)
    out = tmp_path / "zoo"
    process = start(specs, out, "--workers", "1", "--models", "2", "--set", "training.epochs=20000")
    while process.poll() is None:
        for worker in workers_of(process.pid):
            with contextlib.suppress(ProcessLookupError):  # it may just have left by itself
                os.kill(worker, signal.SIGKILL)
        time.sleep(0.02)
    _, errors = process.communicate()
    assert process.returncode == WorkerError.exit_code
    assert "died 3 times" in errors


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_nothing_is_lost(tmp_path: Path, specs: Path, long: Path) -> None:
    spec = spec_of(LONG, folder=specs)
    out = tmp_path / "zoo"
    limit = (
        "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY));"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from zootools.cli import main; main(prog_name='zootools')"
    )
    words = [sys.executable, "-c", limit, "build", str(specs / "spec-under-test.yaml"), "--out", str(out)]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 74, run.stderr
    assert "Traceback" not in run.stderr
    assert "File too large" in run.stderr
    assert not list(out.rglob("*.tmp-*"))
    build(spec, out, quiet=True)
    assert tree(out) == tree(long)


@pytest.mark.slow
def test_another_fingerprint_is_refused_unless_allowed(tmp_path: Path, specs: Path) -> None:
    spec, out = spec_of(LONG, folder=specs), tmp_path / "zoo"
    process = start(specs, out, held=held_environment(tmp_path / "held", 3, tmp_path / "never"))
    wait_for_shards(process, out, 3)
    process.kill()
    process.communicate()
    while workers_of(process.pid):
        time.sleep(0.01)
    folder = ZooFolder(out)
    for stack in range(2):
        record = folder.read_record(stack)
        if record is not None:
            record.fingerprint = {**record.fingerprint, "numpy": "1.0"}
            folder.write_record(stack, record, folder.state_bytes(stack))
    with pytest.raises(SpecError, match=r"numpy: '1\.0' there"):
        build(spec, out, quiet=True)
    manifest = build(spec, out, quiet=True, allow_fingerprint_change=True)
    assert "1.0" in {fingerprint["numpy"] for fingerprint in manifest.fingerprints}


@pytest.mark.slow
def test_r4_a_zoo_of_two_fingerprints_says_from_where_on_which_one_holds(
    tmp_path: Path, specs: Path, builders: Builders
) -> None:
    """Begun by one backend and finished by the other: the manifest records both, with their ranges of epochs."""
    spec, out = spec_of(TINY, folder=specs), tmp_path / "zoo"
    obstacle = out / "checkpoints/stack-00001/epoch-0002.safetensors"
    (out / ".work").mkdir(parents=True)
    (obstacle / "in the way").mkdir(parents=True)
    assert builders.build(specs / "spec-under-test.yaml", out) == StorageError.exit_code  # with torch
    shutil.rmtree(obstacle)
    with pytest.raises(SpecError, match=r"backend: 'torch' there, 'native' now.*--allow-fingerprint-change"):
        build(spec, out, backend="native", quiet=True)
    manifest = build(spec, out, backend="native", quiet=True, allow_fingerprint_change=True)

    assert [fingerprint["backend"] for fingerprint in manifest.fingerprints] == ["torch", "native"]
    assert [stack.fingerprint for stack in manifest.stacks] == [0, 0]
    assert [stack.resumed for stack in manifest.stacks] == [[], [NumberedResumption(1, 1)]]
    stored = json.loads((out / "zoo.json").read_bytes())
    assert stored == manifest.dump()
    assert ["resumed" in stack for stack in stored["stacks"]] == [False, True]
    for command in ("verify", "info"):
        printed = CliRunner().invoke(main, [command, str(out), "--json"])
        assert printed.exit_code == 0, printed.output
    assert json.loads(printed.stdout)["ok"] == 6
    # A repair keeps the ranges: nothing of these stacks is trained again.
    (out / "README.md").unlink()
    assert [fault.name for fault in repair(out)] == ["README.md"]
    build(spec, out, backend="native", quiet=True)
    assert (out / "zoo.json").read_bytes() == manifest.to_bytes()


# --- damage --------------------------------------------------------------------------------------------

SHARD = "checkpoints/stack-00000/epoch-0001.safetensors"


@pytest.mark.parametrize("name", [SHARD, "zoo.json", "spec.yaml", "README.md"])
def test_a_flipped_bit_is_found_and_its_file_named(tmp_path: Path, tiny: Path, name: str) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(tiny, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    assert [fault.name for fault in faults(copy)] == [name]


def test_missing_and_foreign_files_are_named(tmp_path: Path, tiny: Path) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(tiny, copy)
    (copy / SHARD).unlink()
    (copy / "extra.bin").write_bytes(b"x")
    assert sorted(fault.name for fault in faults(copy)) == [SHARD, "extra.bin"]


@pytest.mark.parametrize("bad", ["../secret", "/etc/passwd", "data/../../x", "a\\b", ".hidden"])
def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path: Path, tiny: Path, bad: str) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(tiny, copy)
    manifest = json.loads((copy / "zoo.json").read_text())
    manifest["files"][bad] = {"size": 1, "sha256": "0" * 64}
    (copy / "zoo.json").write_bytes(pretty_json(add_hash(manifest)))
    with pytest.raises(DamagedZooError, match="not allowed"):
        open_zoo(copy)


def test_a_shard_of_another_type_is_refused(tmp_path: Path, tiny: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "zoo"
    shutil.copytree(tiny, copy)
    tensors = load_file(copy / SHARD)
    save_file({**tensors, "fc1.weight": tensors["fc1.weight"].double()}, copy / SHARD)
    with pytest.raises(DamagedZooError, match=r"fc1\.weight is F64"):
        open_zoo(copy, verify=False).weights()


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(ZooNotFoundError, match="no finished zoo"):
        open_zoo(tmp_path)
    zoo = open_zoo(tiny)
    with pytest.raises(ZooNotFoundError, match="did you mean"):
        zoo.state_dict(zoo.models[0][:-1] + "x", 1)
    with pytest.raises(ZooNotFoundError, match=r"stored: \[0, 1, 2, 3\]"):
        zoo.state_dict(zoo.models[0], 77)
    with pytest.raises(SpecError, match="did you mean 'train'"):
        zoo.split("trian")


def test_a_plan_puts_every_model_into_one_stack_of_its_structure(specs: Path) -> None:
    spec = spec_of(CNN, "seeds.range=[1, 300]", folder=specs)
    models = expand(spec)
    stacks = plan_stacks(models, zoo_schema(spec), checkpoints=26)
    by_id = {model.model_id: model.hyperparameters for model in models}
    assert sorted(model for stack in stacks for model in stack) == sorted(by_id)
    for stack in stacks:
        assert len(stack) <= 256
        assert len({(by_id[m].activation, by_id[m].optimizer, by_id[m].dropout > 0) for m in stack}) == 1
