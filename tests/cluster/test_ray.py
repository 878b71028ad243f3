"""The Ray engine (rows Y1-Y3): the bytes of a local build from a cluster of several nodes, whatever dies meanwhile."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import own_backends
import psutil
import pytest
from click.testing import CliRunner
from crash import CNN, TINY, fault_random, held, held_environment, lane, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import SERVERS, mnist_folder, other_processor

from zootools import ZooSpec, __version__, build
from zootools.building.planning import plan_stacks, zoo_schema
from zootools.bundled import find_spec
from zootools.cli import main
from zootools.engines.cluster import connect
from zootools.engines.journal import Journal
from zootools.engines.ray import QUEUED, Machines, task_needs
from zootools.engines.ray_tasks import STARTED, Tasks
from zootools.engines.worker import compute_epochs
from zootools.errors import ClusterError, DamagedZooError, StorageError, WorkerError
from zootools.images.datasets import load_images
from zootools.native.compiler import INSTRUCTION_SETS, ISA
from zootools.phases import Phases
from zootools.spec import load_spec
from zootools.spec.model_configs import expand
from zootools.storage.build_state import ZooFolder
from zootools.storage.records import Plan, TrainedEpoch
from zootools.storage.status import status
from zootools.training.table import choose_backend
from zootools.verify import faults

LONG = TINY.replace("train: 40", "train: 400").replace("epochs: 3", "epochs: 60")
SIXTY = """
name: sixty
images: {name: tetris, train: 400, test: 50, noise_train: 0.2, noise_test: 0.8}
architecture: {name: mlp, hidden: [110], bias: false}
grid:
  activation: [tanh, relu, sigmoid, gelu, silu]
  init: [uniform]
  optimizer: [adam, sgd, rmsprop]
  lr: [1.0e-2]
  dropout: [0.0, 0.1]
seeds: {range: [1, 17]}
training: {epochs: 3, batch_size: 4, train_metrics_images: 50}
"""
"""510 models of thirty structures, in stacks of sixteen and of one."""

CONNECT = """
import sys
from zootools.engines.cluster import connect
from zootools.errors import ClusterError
for address in sys.argv[1:]:
    try:
        connect(address).__enter__()
    except ClusterError as error:
        print(error)
"""

SPECS = {"tiny": TINY, "cnn": CNN, "long": LONG, "sixty": SIXTY}


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("specs")
    for name, text in SPECS.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def local(specs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """Return the bytes that the local engine makes of a specification; built once."""
    folder, known = tmp_path_factory.mktemp("local"), dict[str, dict[str, bytes]]()

    def make(name: str, backend: str = "native") -> dict[str, bytes]:
        key = f"{name}-{backend}"
        if key not in known:
            build(load_spec(specs / f"{name}.yaml"), folder / key, backend=backend, workers=2, quiet=True)
            known[key] = tree(folder / key)
        return known[key]

    return make


class Nodes:
    """A cluster of several nodes on this machine: a head that trains nothing, and others of one processor each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        # Ray gives its workers a low priority, with which they would starve beside other tests.
        paths = f"{SERVERS}:{os.environ.get('PYTHONPATH', '')}"  # where own_backends is
        self._environment = {"RAY_worker_niceness": "0", "PYTHONPATH": paths}
        head = {"num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, gpus: int = 0, **environment: str) -> Any:
        """Start a node; its GPUs are only said to be there."""
        node = self._cluster.add_node(num_cpus=1, num_gpus=gpus, env_vars=self._environment | environment)
        self.nodes.append(node)
        return node

    def remove(self, node: Any) -> None:
        """Kill all that runs on a node.

        A worker notices only after a second that its node is gone, and may have ended its task by then.
        """
        workers = psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()

    def wait_until_idle(self) -> None:
        """Wait until Ray knows of no other nodes than these, and every processor of them is free."""
        import ray

        expected, until = len(self.nodes), time.monotonic() + 120
        while time.monotonic() < until:
            alive = sum(node["Alive"] for node in ray.nodes()) - 1  # the head
            if alive == expected == ray.available_resources().get("CPU", 0):
                return
            time.sleep(0.1)
        raise AssertionError(f"{alive} nodes, {ray.available_resources()} are free, {running_stacks()} still run")

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes; this process is connected to them as long as the module's tests run."""
    pytest.importorskip("ray", reason="lacks ray (pip install 'zootools[ray]')")
    import ray

    nodes = Nodes()
    nodes.add()
    nodes.add()
    with connect(nodes.address):
        assert ray.is_initialized()
        yield nodes
    assert not ray.is_initialized()
    nodes.close()


def start(spec: Path, out: Path, *arguments: str, held: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the command as a user does, in a process group of its own; its build may be `crash.held`."""
    words = [sys.executable, "-m", "zootools", "build", str(spec), "--out", str(out), "--engine", "ray", *arguments]
    return subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True, env=held
    )


def is_alive(process: subprocess.Popen[str]) -> bool:
    return process.poll() is None


def shards(out: Path, stack: str = "*") -> int:
    return len(list(out.glob(f"checkpoints/{stack}/epoch-*.safetensors")))


def wait_for_shards(out: Path, count: int, going_on: Callable[[], bool]) -> bool:
    """Wait until a build has stored `count` shards; return False if it ends before."""
    while going_on():
        if shards(out) >= count:
            return True
        time.sleep(0.005)
    return False


def running_stacks(parent: int | None = None) -> dict[str, psutil.Process]:
    """The processes below ``parent``, or this process, that train a stack; Ray gives them the names of their tasks."""
    found = {}
    for process in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::stack-"):
                found[process.name()[5:16]] = process
    return found


class Building:
    """A build in a thread; Ray's nodes, which it meets, are started and stopped by the main thread alone."""

    def __init__(self, spec: ZooSpec, out: Path, backend: str = "native") -> None:
        self._pool, self._out = ThreadPoolExecutor(1), out
        self._result = self._pool.submit(build, spec, out, engine="ray", backend=backend)

    def goes_on(self) -> bool:
        return not self._result.done()

    def reach(self, count: int) -> None:
        """Wait until `count` shards are stored; raise the build's exception if it ends before."""
        if not wait_for_shards(self._out, count, self.goes_on):
            raise AssertionError(f"the build has ended before, with {self.wait()['counts']}")

    def wait(self) -> dict[str, Any]:
        """Return the manifest, or raise what the build raised."""
        with self._pool:
            return self._result.result()


def busy_node(nodes: Nodes, building: Building) -> Any:
    """Wait for a node that trains a stack."""
    while building.goes_on():
        for node in nodes.nodes:
            if running_stacks(node.all_processes["raylet"][0].process.pid):
                return node
    raise AssertionError("the build has ended before")


# --- equal bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "backend"), [("tiny", "torch"), ("tiny", "native"), ("cnn", "torch"), ("cnn", "native")]
)
def test_ray_and_local_builds_have_equal_bytes(
    nodes: Nodes, specs: Path, local: Any, tmp_path: Path, name: str, backend: str
) -> None:
    phases = Phases()
    build(load_spec(specs / f"{name}.yaml"), tmp_path / "zoo", backend=backend, engine="ray", quiet=True, phases=phases)
    assert tree(tmp_path / "zoo") == local(name, backend)
    assert all(phases.seconds[name] > 0 for name in ("workers", "training", "evaluation", "storage"))


def test_a_part_of_tetris_seed_from_several_nodes(nodes: Nodes, tmp_path: Path) -> None:
    spec = load_spec(find_spec("tetris_seed"), ["models=300", "training.epochs=3"])
    assert len(plan_stacks(expand(spec), zoo_schema(spec), 4)) == 2
    for engine in ("local", "ray"):
        build(spec, tmp_path / engine, engine=engine, quiet=True)
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def test_a_slice_of_mnist_from_several_nodes(nodes: Nodes, tmp_path: Path) -> None:
    data = mnist_folder()
    spec = load_spec(find_spec("mnist_seed"), ["models=32", "training.epochs=1", "images.train=400", "images.test=200"])
    for engine in ("local", "ray"):
        build(spec, tmp_path / engine, engine=engine, data=data, quiet=True)
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def test_a_zoo_from_a_cluster_into_an_object_store(
    nodes: Nodes, specs: Path, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the driver has the store's credentials; the nodes were started before there was a store."""
    pytest.importorskip("s3fs", reason="lacks s3fs (pip install 'zootools[s3]')")
    from s3_server import BUCKET, serve_s3

    with serve_s3() as server:
        for name, value in {**server.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{BUCKET}/zoo"
        words = ["build", str(specs / "tiny.yaml"), "--out", url, "--engine", "ray", "--backend", "torch"]
        for command in (words, ["pull", url, str(tmp_path / "pulled")]):
            done = CliRunner().invoke(main, command)
            assert done.exit_code == 0, done.output
        assert server.broken == []
    assert tree(tmp_path / "pulled") == local("tiny", "torch")
    assert (tmp_path / "pulled" / "build.json").exists()


def test_machines_of_a_cluster_compute_with_the_instruction_set_of_the_driver(
    nodes: Nodes, specs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were started without it, and so would compile for another one, if they compiled."""
    if not INSTRUCTION_SETS:
        pytest.skip("lacks a processor with several instruction sets")
    monkeypatch.setenv(ISA, list(INSTRUCTION_SETS)[-1])
    for engine in ("local", "ray"):
        build(load_spec(specs / "tiny.yaml"), tmp_path / engine, backend="native", engine=engine, quiet=True)
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")
    assert INSTRUCTION_SETS[os.environ[ISA]] in (tmp_path / "ray" / "zoo.json").read_text()


# --- how much is under way -----------------------------------------------------------------------------


def test_of_many_stacks_only_those_with_a_machine_and_two_more_are_sent(
    nodes: Nodes, specs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments of a task are made when the journal is asked where its stack starts."""
    sent, most = set[int](), 0

    class Watched(Journal):
        def start(self, stack: int) -> TrainedEpoch | None:
            nonlocal most
            sent.add(stack)
            most = max(most, len(sent))
            return super().start(stack)

        def take(self, stack: int, epoch: TrainedEpoch) -> bool:
            if epoch.done:
                sent.remove(stack)
            return super().take(stack, epoch)

    monkeypatch.setattr("zootools.engines.ray.Journal", Watched)
    spec = load_spec(specs / "sixty.yaml", ["seeds.range=[1, 1]", "training.epochs=1"])
    assert build(spec, tmp_path / "zoo", engine="ray", quiet=True).counts.ok == 30
    assert most == len(nodes.nodes) + QUEUED
    assert not sent


def test_tasks_wait_for_a_driver_that_lags(nodes: Nodes, specs: Path, tmp_path: Path) -> None:
    """With the driver stopped, tasks come to rest, although minutes of epochs are left to train."""
    out = tmp_path / "zoo"
    driver = start(specs / "long.yaml", out, "--epochs", "20000", "--address", nodes.address)
    try:
        assert wait_for_shards(out, 10, partial(is_alive, driver)), driver.communicate()[1]
        driver.send_signal(signal.SIGSTOP)
        tasks, used = running_stacks(), list[float]()
        assert tasks
        while len(used) < 2 or used[-1] > used[-2]:
            assert len(used) < 30, "the tasks train on"
            time.sleep(1)
            used.append(sum(sum(task.cpu_times()[:2]) for task in tasks.values()))
        assert running_stacks() == tasks
    finally:
        driver.kill()
        driver.communicate()


# --- Y1, Y2: deaths ------------------------------------------------------------------------------------


def test_y1_killed_workers_lose_nothing(
    nodes: Nodes, specs: Path, local: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance, out, wanted = fault_random("Y1"), tmp_path / "zoo", lane(5, 20)
    spec = load_spec(specs / "sixty.yaml")
    killed = list[str]()
    building = Building(spec, out)
    # One at a time, and each stack again only after it has come further: else it would be given up, as it should.
    left = dict[str, int]()
    while len(killed) < wanted and wait_for_shards(out, 5 * len(killed) + 1, building.goes_on):
        time.sleep(chance.uniform(0, 0.2))
        for stack, task in running_stacks().items():
            stored = shards(out, stack)
            if stored > left.get(stack, -1):
                with suppress(psutil.NoSuchProcess):
                    task.kill()
                left[stack] = stored
                killed.append(stack)
                break
    building.wait()
    assert len(killed) == wanted
    # A task may have ended between our look and our kill; then nothing died that was at work.
    assert capsys.readouterr().err.count("The worker died unexpectedly") >= wanted // 2
    assert status(out).counts.expected == status(out).counts.ok == 510
    assert list(faults(out)) == []
    assert tree(out) == local("sixty")


def test_a_stack_whose_worker_always_dies_is_given_up_and_the_next_build_tries_it_again(
    nodes: Nodes, specs: Path, tmp_path: Path
) -> None:
    """Its epochs are so long that none is committed between two kills, but for the first one of all."""
    out, slow = tmp_path / "zoo", ["grid.activation=[tanh]", "images.train=100000", "training.epochs=2"]
    building = Building(load_spec(specs / "tiny.yaml", slow), out)
    while building.goes_on():
        for task in running_stacks().values():
            with suppress(psutil.NoSuchProcess):
                task.kill()
        time.sleep(0.02)
    with pytest.raises(WorkerError, match=r"the worker of 1 of 1 stacks died 3 times"):
        building.wait()
    assert (status(out).counts.failed, status(out).counts.missing) == (3, 0)
    assert build(load_spec(specs / "tiny.yaml", slow), out, engine="ray", quiet=True).counts.ok == 3


def test_y2_a_node_is_lost_and_another_one_joins(
    nodes: Nodes,
    specs: Path,
    local: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The driver takes nothing beyond epoch 5 until the node is lost, and so no task can end before."""
    for number in range(lane(1, 5)):
        out, release = tmp_path / f"zoo-{number}", tmp_path / f"lost-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(ZooFolder, "commit", held(5, release))
            building = Building(load_spec(specs / "long.yaml"), out)
            building.reach(5)
            nodes.remove(busy_node(nodes, building))
            release.touch()
            nodes.add()
            building.wait()
        errors = capsys.readouterr().err
        assert "its machine is lost" in errors, errors
        assert tree(out) == local("long")


def test_a_stack_that_loses_machine_after_machine_stops_the_build(
    nodes: Nodes, specs: Path, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here after the first one: each takes seconds to start."""
    monkeypatch.setattr("zootools.engines.ray_tasks.LOSSES", 0)
    out, release = tmp_path / "zoo", tmp_path / "lost"
    monkeypatch.setattr(ZooFolder, "commit", held(5, release))
    building = Building(load_spec(specs / "long.yaml"), out)
    building.reach(5)
    nodes.remove(busy_node(nodes, building))
    release.touch()
    nodes.add()
    with pytest.raises(ClusterError, match=r"stack \d has lost 1 machines .* the same command resumes"):
        building.wait()
    build(load_spec(specs / "long.yaml"), out, engine="ray", quiet=True)
    assert tree(out) == local("long")


def test_y2_a_killed_driver_resumes_and_nothing_of_it_writes_any_more(
    nodes: Nodes, specs: Path, local: Any, tmp_path: Path
) -> None:
    out = tmp_path / "zoo"
    for number in range(lane(1, 5)):
        held = held_environment(tmp_path / f"held-{number}", 5 * number + 5, tmp_path / "never")
        driver = start(specs / "long.yaml", out, "--address", nodes.address, held=held)
        assert wait_for_shards(out, 5 * number + 5, partial(is_alive, driver)), driver.communicate()[1]
        driver.kill()
        driver.communicate()
        left = tree(out)
        time.sleep(0.5)
        assert tree(out) == left
    build(load_spec(specs / "long.yaml"), out, engine="ray", quiet=True)
    assert tree(out) == local("long")


def test_ctrl_c_and_sigterm_stop_a_build_and_its_ray_and_the_local_engine_resumes(
    specs: Path, local: Any, tmp_path: Path
) -> None:
    out = tmp_path / "zoo"
    for round_, number in enumerate((signal.SIGTERM, signal.SIGINT), 1):
        held = held_environment(tmp_path / f"held-{round_}", 10 * round_, tmp_path / "never")
        driver = start(specs / "long.yaml", out, "--workers", "1", held=held)
        assert wait_for_shards(out, 10 * round_, partial(is_alive, driver)), driver.communicate()[1]
        family = psutil.Process(driver.pid).children(recursive=True)
        raylets = [process for process in family if "raylet" in process.name()]
        assert raylets[0].environ()["RAY_USAGE_STATS_ENABLED"] == "0"
        # A terminal's Ctrl-C reaches all processes of the command; a batch system's signal to end does too.
        os.killpg(driver.pid, number)
        _, errors = driver.communicate(timeout=60)
        assert driver.returncode == 130, errors
        assert "Traceback" not in errors
        assert "interrupted; the same command resumes" in errors
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
    build(load_spec(specs / "long.yaml"), out, workers=2, quiet=True)
    assert tree(out) == local("long")


# --- backends of one's own, and tasks that fail ----------------------------------------------------------


def test_a_backend_of_ones_own_trains_on_a_cluster(nodes: Nodes, specs: Path, local: Any, tmp_path: Path) -> None:
    spec = load_spec(specs / "tiny.yaml")
    manifest = build(spec, tmp_path / "zoo", engine="ray", backend=own_backends.Own(), quiet=True)
    assert manifest.fingerprints == [{"backend": "own", "version": 1}]
    theirs = local("tiny", "torch")
    assert {name: data for name, data in tree(tmp_path / "zoo").items() if "checkpoints" in name} == {
        name: data for name, data in theirs.items() if "checkpoints" in name
    }


@pytest.mark.parametrize(
    ("backend", "error", "message"),
    [
        (own_backends.Faulty(), WorkerError, "cannot be trained: ZeroDivisionError: out of order"),
        (own_backends.Hungry(), WorkerError, "cannot be trained: MemoryError; fewer --workers take less memory"),
        (own_backends.Homesick(), ClusterError, "only_installed_on_another_machine"),
    ],
)
def test_a_task_that_cannot_start_or_train_ends_the_build_at_once(
    nodes: Nodes, specs: Path, tmp_path: Path, backend: Any, error: type[Exception], message: str
) -> None:
    out = tmp_path / "zoo"
    with pytest.raises(error, match=message) as caught:
        build(load_spec(specs / "tiny.yaml"), out, engine="ray", backend=backend, quiet=True)
    assert "died" not in str(caught.value)
    assert (status(out).counts.failed, status(out).counts.missing) == (0, 6)


def test_a_folder_that_is_moved_ends_a_build_on_a_cluster(
    nodes: Nodes, specs: Path, local: Any, tmp_path: Path
) -> None:
    out, moved = tmp_path / "zoo", tmp_path / "moved"
    building = Building(load_spec(specs / "long.yaml"), out)
    building.reach(5)
    out.rename(moved)
    with pytest.raises(StorageError, match=f"was moved to {moved} during the build"):
        building.wait()
    assert not out.exists()
    build(load_spec(specs / "long.yaml"), moved, engine="ray", quiet=True)
    assert tree(moved) == local("long")


def test_a_build_that_fails_while_it_commits_leaves_no_task_behind(
    nodes: Nodes, specs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a task would wait for ever for its driver, and keep its processor from all that comes after it."""

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    nodes.wait_until_idle()
    monkeypatch.setattr(ZooFolder, "commit", full)
    with pytest.raises(StorageError, match="the disk is full") as caught:
        build(load_spec(specs / "long.yaml"), tmp_path / "zoo", engine="ray", quiet=True)
    nodes.wait_until_idle()
    assert caught.tb is not None  # which keeps the generators alive, whose end would end their tasks too


def test_tasks_that_are_cancelled_while_they_are_sent_leave_nothing_behind(nodes: Nodes) -> None:
    """The first tasks end at the moment of the cancelling, when Ray sends the next ones to their workers."""
    import ray

    def announce() -> Iterator[tuple[str, Any]]:
        yield STARTED
        yield "ended", None

    nodes.wait_until_idle()
    task = ray.remote(**Tasks.options({"num_cpus": 1}))(announce)
    kept = list[Any]()  # the end of a generator could end its task
    for round_ in range(lane(6, 100)):
        with Tasks[int](str) as tasks:
            for number in range(2 * len(nodes.nodes)):
                kept.append(task.remote())
                tasks.add(kept[-1], number)
            ended = 0
            while ended < len(nodes.nodes):
                ended += tasks.next_result() is not None
            time.sleep(0.001 * (round_ % 5))
        nodes.wait_until_idle()


# --- machines that are not fit ---------------------------------------------------------------------------


OTHERS = {
    "": "has another numeric fingerprint (mkl: 'COMPATIBLE' there, 'AUTO,STRICT' here)",
    "sys.modules['zootools'] = None": f"has no zootools, expected {__version__} as here",
    "sys.modules['zootools'] = types.SimpleNamespace(__version__='0.0.1')": (
        f"has zootools 0.0.1, expected {__version__} as here"
    ),
}
"""The start-up code of Python on an odd machine, and the reason for which that machine is left out."""


def test_odd_machines_are_left_out_by_name(
    nodes: Nodes, specs: Path, local: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    fit, odd = [node.node_id for node in nodes.nodes], list[Any]()
    for number, customized in enumerate(OTHERS):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "sitecustomize.py").write_text(f"import sys, types\n{customized}\n")
        odd.append(nodes.add(MKL_CBWR="COMPATIBLE", PYTHONPATH=str(tmp_path / str(number))))
    # The others are kept busy until these have been asked.
    others = [_wait_for_ever(ray).options(label_selector={"ray.io/node-id": node}).remote() for node in fit]
    building = Building(load_spec(specs / "cnn.yaml"), tmp_path / "zoo", "torch")
    while building.goes_on() and len(caplog.records) < len(odd):
        time.sleep(0.01)
    for task in others:
        ray.cancel(task, force=True)
    building.wait()
    for node in odd:
        nodes.remove(node)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(odd)
    for node, reason in zip(odd, OTHERS.values(), strict=True):
        (message,) = [message for message in messages if node.node_id in message]
        assert f"(Ray node {node.node_id}) {reason}" in message
        assert "continues without it" in message
    assert tree(tmp_path / "zoo") == local("cnn", "torch")


def _wait_for_ever(ray: Any) -> Any:
    def wait() -> None:
        import time

        time.sleep(600)

    return ray.remote(wait)


@pytest.mark.parametrize("other", ["fingerprint", "version", "processor"])
def test_without_a_fit_machine_the_build_stops_and_names_them_all(
    nodes: Nodes, specs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """The driver is another one, so none of the machines is as it is."""
    nodes.wait_until_idle()
    if other == "processor":
        other_processor(monkeypatch)
        monkeypatch.setattr("zootools.native.kernel.processor_features", frozenset)  # of the driver, which never trains
        reason = "cannot run the kernel ("
    elif other == "fingerprint":
        monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
        reason = "has another numeric fingerprint (mkl: 'AUTO,STRICT' there, 'COMPATIBLE' here)"
    else:
        monkeypatch.setattr("zootools.engines.ray.__version__", "9.9.9")
        reason = f"has zootools {__version__}, expected 9.9.9 as here"
    backend = "native" if other == "processor" else "torch"
    with pytest.raises(ClusterError, match="no machine of the cluster is fit") as refusal:
        build(load_spec(specs / "cnn.yaml"), tmp_path / "zoo", backend=backend, engine="ray", quiet=True)
    for node in nodes.nodes:
        assert f"(Ray node {node.node_id}) {reason}" in str(refusal.value)
    lacking = str(refusal.value).count("this processor lacks instructions that the kernel was compiled for: fma4, xop")
    assert lacking == (len(nodes.nodes) if other == "processor" else 0)


def test_machines_that_are_fit_but_busy_are_waited_for_and_warned_of(
    nodes: Nodes,
    specs: Path,
    local: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import ray

    monkeypatch.setattr("zootools.engines.ray_tasks.WARN_AFTER", 0.5)
    monkeypatch.setattr("zootools.engines.ray_tasks.LOOK_EVERY", 0.1)
    nodes.wait_until_idle()
    others = [_wait_for_ever(ray).remote() for _ in nodes.nodes]
    while ray.available_resources().get("CPU", 0):
        time.sleep(0.01)
    building = Building(load_spec(specs / "tiny.yaml"), tmp_path / "zoo")
    while building.goes_on() and len(caplog.records) < 2:
        time.sleep(0.01)
    for task in others:
        ray.cancel(task, force=True)
    building.wait()
    for record in caplog.records:
        assert "s: the machines of the cluster are busy with other work or cannot start workers" in record.getMessage()
    assert len(caplog.records) >= 2
    assert tree(tmp_path / "zoo") == local("tiny")


def test_an_address_without_a_cluster_is_refused() -> None:
    """In a process of its own: one that is connected already stays so, whatever the address."""
    addresses = {
        "127.0.0.1:9": "no Ray cluster answers there",
        "ray://127.0.0.1:9": "client protocol is not supported",
        "somewhere": "expected host:port",
    }
    refused = subprocess.run([sys.executable, "-c", CONNECT, *addresses], capture_output=True, text=True, timeout=120)
    lines = refused.stdout.splitlines()
    assert len(lines) == len(addresses), refused.stderr
    for line, (address, text) in zip(lines, addresses.items(), strict=True):
        assert line.startswith(f"--address {address}: ")
        assert text in line


def test_without_ray_one_line_says_what_to_install(
    specs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["build", str(specs / "tiny.yaml"), "--out", str(tmp_path / "zoo"), "--engine", "ray"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert refused.output.splitlines() == [
        "zootools: --engine ray needs the package ray, which is not installed: pip install 'zootools[ray]'"
    ]
    assert not (tmp_path / "zoo").exists()


def test_address_belongs_to_the_ray_engine(specs: Path, tmp_path: Path) -> None:
    words = ["build", str(specs / "tiny.yaml"), "--out", str(tmp_path / "zoo"), "--address", "auto"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert "--address goes with --engine ray" in refused.output


def test_stacks_on_gpus_find_room_where_there_are_some(nodes: Nodes) -> None:
    import ray

    node = nodes.add(gpus=1)
    assert Machines(ray, task_needs("cpu")).room() == 3
    assert Machines(ray, task_needs("cuda")).room() == 1
    nodes.remove(node)


def test_missing_images_are_found_before_ray_is_started(specs: Path, tmp_path: Path) -> None:
    text = TINY.replace(
        "{name: tetris, train: 40, test: 50, noise_train: 0.2, noise_test: 0.8}",
        "{name: image_folder, folder: nowhere, train: 4, size: 8}",
    )
    (tmp_path / "folder.yaml").write_text(text)
    words = ["build", str(tmp_path / "folder.yaml"), "--data", str(tmp_path), "--out", str(tmp_path / "zoo")]
    refused = CliRunner().invoke(main, [*words, "--engine", "ray", "--address", "127.0.0.1:9"])
    assert refused.exit_code != 0
    assert "nowhere" in refused.output
    assert "--address" not in refused.output


# --- Y3: an epoch that comes twice -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(specs: Path) -> tuple[Plan, list[TrainedEpoch]]:
    """A plan of one stack, and its epochs 0 to 3."""
    spec: ZooSpec = load_spec(specs / "tiny.yaml", ["grid.activation=[tanh]"])
    schema, models, images = zoo_schema(spec), expand(spec), load_images(spec.images)
    (stack,) = plan_stacks(models, schema, 4)
    plan, by_id = Plan(spec, schema, images.digest, [stack]), {model.model_id: model for model in models}
    backend = choose_backend("torch", "cpu", schema)
    return plan, list(compute_epochs(schema, [by_id[id_] for id_ in stack], images, spec.training, backend))


def journal_in(folder: Path, plan: Plan) -> Journal:
    zoo = ZooFolder(folder)
    if not zoo.plan.exists():
        zoo.write_plan(plan)
    return Journal(zoo, {"made": "test_ray.py"})


@settings(max_examples=lane(60, 2000), deadline=None)
@given(st.data())
def test_y3_attempts_that_overlap_in_any_order_are_journaled_once(
    trained: tuple[Plan, list[TrainedEpoch]], data: st.DataObject
) -> None:
    """Attempts send the epochs after the last journaled one; any attempt, and the driver, may stop at any time."""
    plan, epochs = trained
    with tempfile.TemporaryDirectory() as folder:
        journal = journal_in(Path(folder), plan)
        attempts, fresh = list[list[TrainedEpoch]](), list[int]()
        while not journal.record(0).done:
            alive = [number for number, left in enumerate(attempts) if left]
            step = data.draw(st.sampled_from([*alive, "begin", "restart"] if len(attempts) < 5 else alive or ["begin"]))
            if step == "restart":
                journal = journal_in(Path(folder), plan)
            elif step == "begin":
                start = journal.start(0)
                assert start is None or start.state == epochs[start.number].state
                attempts.append(epochs[0 if start is None else start.number + 1 :])
            else:
                epoch = attempts[step].pop(0)
                if journal.take(0, epoch):
                    fresh.append(epoch.number)
        for late in attempts:
            assert not any(journal.take(0, epoch) for epoch in late)
        assert fresh == [0, 1, 2, 3]
        stored = sorted(Path(folder).glob("checkpoints/*/*"))
        assert [path.read_bytes() for path in stored] == [epoch.shard for epoch in epochs]


@pytest.mark.parametrize(
    ("what", "number", "restarted"),
    [
        *(("shard", 0, False), ("state", 0, False), ("shard", 2, False), ("state", 2, False)),
        # Of the epochs that an earlier process has committed, only the last one's state is known.
        *(("shard", 0, True), ("shard", 2, True), ("state", 2, True)),
    ],
)
def test_y3_unequal_bytes_stop_the_build_with_both_hashes(
    trained: tuple[Plan, list[TrainedEpoch]], tmp_path: Path, what: str, number: int, restarted: bool
) -> None:
    plan, epochs = trained
    journal = journal_in(tmp_path, plan)
    for epoch in epochs[:3]:
        journal.take(0, epoch)
    if restarted:
        journal = journal_in(tmp_path, plan)
        journal.start(0)
    before = tree(tmp_path)
    good: bytes = getattr(epochs[number], what)
    bad = replace(epochs[number], **{what: good[:-1] + bytes([good[-1] ^ 1])})
    with pytest.raises(DamagedZooError, match=rf"stack 0, epoch {number} .*{what} is (\w{{64}}) .* (?!\1)\w{{64}}"):
        journal.take(0, bad)
    assert DamagedZooError.exit_code == 3
    assert tree(tmp_path) == before
