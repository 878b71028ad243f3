"""Building a zoo: plan the stacks, let an engine train them, finish the folder.

The same call again resumes. A specification that holds all models of an existing zoo and more is growth:
only what is missing is trained, as new stacks.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from zootools.architectures import Schema
from zootools.building.planning import Estimate, check_spec, estimate, plan_stacks
from zootools.building.preflight import (
    check_arguments,
    check_fingerprints,
    check_folder,
    check_growth,
    check_images_fit,
    check_same_images,
    check_space,
    choose_device,
    workers_that_fit,
)
from zootools.engines.engine import RETRIES, BuildJob, Engine
from zootools.engines.table import open_engine
from zootools.errors import DamagedZooError, WorkerError
from zootools.filesystem.files import FolderLock, sweep_temporaries
from zootools.hashing import pretty_json
from zootools.object_store.sync import Output, open_output
from zootools.progress import Progress
from zootools.spec import ZooSpec
from zootools.spec.model_configs import ModelConfig, expand
from zootools.storage.build_state import MANIFEST, PLAN, ZooFolder
from zootools.storage.finish import finish_zoo, spec_yaml
from zootools.storage.manifest import Manifest, read_manifest, reopened, stored_spec
from zootools.storage.records import Plan, StackRecord
from zootools.storage.status import epochs_done
from zootools.storage.unhashed import MAX_SESSIONS, read_build_log
from zootools.text import say

if TYPE_CHECKING:
    from zootools.training.backend import Backend

LOG = logging.getLogger(__name__)


def preview(
    spec: ZooSpec,
    out: Path | str,
    *,
    device: str = "auto",
    backend: "str | Backend" = "auto",
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    data: Path | None = None,
    allow_fingerprint_change: bool = False,
) -> Estimate:
    """Check all that `build`, with the same arguments, checks before it trains; return what it would take.

    Nothing is written in ``out`` or downloaded. What an object store holds is not looked at, nor are images that are
    not at hand; only the build itself can refuse those.

    Raises what `build` raises, but BusyError.
    """
    workers, trainer = check_arguments(spec, device, backend, workers), open_engine(engine, address)
    output = open_output(out)
    zoo = ZooFolder(output.folder)
    schema, asked = check_spec(spec, data), estimate(spec, data)
    if output.is_local:
        check_folder(zoo)
        if (zoo.has(PLAN) or zoo.has(MANIFEST)) and _finished(output, zoo, spec, expand(spec)) is not None:
            return asked
    _check_machine(zoo, spec, schema, asked, trainer)
    old, records = _stored(zoo, spec) if output.is_local else (None, [])
    chosen = _choose_backend(backend, device, spec, schema)
    if old is None:  # then the models themselves, of which there may be a million, need not be known
        _check_workers(asked.largest_stack, schema, chosen, trainer, workers)
    else:
        _check_training(old, records, spec, schema, expand(spec), chosen, trainer, workers, allow_fingerprint_change)
    from zootools.images.datasets import load_images
    from zootools.images.shapes import has_images

    if has_images(spec.images, data):
        images = load_images(spec.images, data)
        if old is not None:
            check_same_images(old.images_sha256, images.digest)
    return asked


def build(
    spec: ZooSpec,
    out: Path | str,
    *,
    device: str = "auto",
    backend: "str | Backend" = "auto",
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    data: Path | None = None,
    allow_fingerprint_change: bool = False,
    quiet: bool = False,
) -> Manifest:
    """Train a zoo into the folder ``out``, or resume, or grow the one that is there.

    Args:
        spec: what to train.
        out: the zoo's folder, created if missing; or a URL: ``file://``, or one of an object store, such as
            ``s3://bucket/zoo`` (see `zootools.object_store.sync`).
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is one.
        backend: ``native``, ``torch``, or ``auto`` (see `zootools.training.backend.choose_backend`); or a backend of
            your own: an object that can be pickled and has what `zootools.training.backend.Backend` has.
        engine: ``local`` for processes on this machine, ``ray`` for tasks of a Ray cluster; the bytes are the same.
        address: of the cluster (see `zootools.engines.cluster.connect`); by default Ray is started here.
        workers: processes on the CPU, 1 to 1024; by default one per core, or fewer where the memory would not suffice
            for so many, and always one on CUDA. On a cluster: at most so many.
        data: where image files lie and are downloaded to (see `zootools.images.datasets.data_folder`).
        allow_fingerprint_change: resume although device or library versions are not those the build began with.
        quiet: show no progress.

    Returns:
        The manifest of the finished zoo: the content of zoo.json.

    Raises:
        SpecError: an argument is wrong, or ``out`` holds something else, or a zoo of another specification.
        ClusterError: there is no Ray, no cluster at the address, or no machine in it that computes as this one does.
        NoKernelError: ``native`` is asked for, and there is no compiler or it fails.
        BusyError: another builder is at work there.
        StorageError: there is not enough memory or disk, or the disk refused, or the folder was moved or removed
            during the build; everything committed is kept.
        WorkerError: a worker could not start or failed, or stacks crashed it again and again; everything committed is
            kept, and the call can be repeated.
    """
    begun = time.time()
    workers, trainer = check_arguments(spec, device, backend, workers), open_engine(engine, address)
    output = open_output(out)
    zoo = ZooFolder(output.folder)
    schema, models = check_spec(spec, data), expand(spec)
    if output.is_local:
        check_folder(zoo)
        finished = _finished(output, zoo, spec, models)
        if finished is not None and not zoo.has(".work"):
            return finished
    _check_machine(zoo, spec, schema, estimate(spec, data, models), trainer)
    with (
        FolderLock(zoo.lock) as lock,
        output.session(ZooFolder(zoo.path, lock.descriptor)) as zoo,
        _blaming_the_folder(zoo),
    ):
        zoo.check_folders()
        sweep_temporaries(zoo.path)
        # Another builder may have finished since we looked, or been killed while it cleared up.
        finished = _finished(output, zoo, spec, models)
        if finished is not None:
            zoo.remove_work()
            return finished
        output.fetch()
        chosen = _choose_backend(backend, device, spec, schema)
        if not quiet:
            say(f"backend {chosen.name}: {chosen.reason}", err=True)
        old, records = _stored(zoo, spec)
        stacks, workers = _check_training(
            old, records, spec, schema, models, chosen, trainer, workers, allow_fingerprint_change
        )
        from zootools.images.datasets import load_images

        images = load_images(spec.images, data)
        if old is not None:
            check_same_images(old.images_sha256, images.digest)
        plan = Plan(spec, schema, images.digest, stacks)
        _write_plan(zoo, plan, old, records)
        output.put_plan()
        from zootools.storage.image_tensors import save_images

        save_images(images, zoo)
        job = BuildJob(zoo, lock.descriptor, plan, images.classes, chosen, workers)
        del images  # the engine maps the file
        failed = _train(trainer, job, output, quiet)
        sweep_temporaries(zoo.path)  # of workers that died; by now all of them have left
        _note_build(zoo, begun, chosen.device, chosen.name, engine)
        if failed:
            _give_up(failed, zoo, plan, output, chosen, out)
        manifest = finish_zoo(zoo, plan)
        output.finish(manifest)
        zoo.remove_work()
    return manifest


@contextmanager
def _blaming_the_folder(zoo: ZooFolder) -> Iterator[None]:
    """Where something fails because the zoo's folder is no longer there, let that be what is said.

    What is refused before there is a plan leaves the folder as it was.
    """
    try:
        yield
    except Exception:
        zoo.fence()
        if not zoo.has(PLAN):
            zoo.remove_lock()
        raise


def _train(engine: Engine, job: BuildJob, output: Output, quiet: bool) -> dict[int, str]:
    """Let an engine train what is left of a plan; return the stacks that it gave up, and how their workers died."""
    zoo, plan = job.zoo, job.plan
    records = zoo.read_records(plan)
    done = [epochs_done(record, plan.spec) for record in records]
    todo = [stack for stack, record in enumerate(records) if record is None or not record.done]
    with Progress([len(ids) for ids in plan.stacks], plan.spec.training.epochs, done, quiet) as bar:

        def report(stack: int, epochs: float) -> None:
            bar.update(stack, epochs)
            if epochs == int(epochs):
                output.put_stack(stack)

        return engine.train(job, todo, report, bar.retried)


def _give_up(
    failed: Mapping[int, str], zoo: ZooFolder, plan: Plan, output: Output, backend: "Backend", out: Path | str
) -> NoReturn:
    """Mark stacks whose workers died again and again, and raise WorkerError."""
    for stack in failed:
        zoo.mark_failed(stack, f"its worker died {RETRIES + 1} times", backend.fingerprint())
        output.put_stack(stack)
    first, how = next(iter(failed.items()))
    memory = " (which the system does when memory runs out; fewer --workers need less)" if "SIGKILL" in how else ""
    records = [zoo.read_record(stack) for stack in range(len(plan.stacks)) if stack not in failed]
    untried = sum(record is None or not record.done for record in records)
    raise WorkerError(
        f"{out}: the worker of {len(failed)} of {len(plan.stacks)} stacks died {RETRIES + 1} times "
        f"(stack {first} first: {how}{memory}); "
        + (
            f"{untried} more were not tried, because no worker got anywhere; "
            if untried
            else "the others are kept, and "
        )
        + "the same command tries these again"
    )


def _check_machine(zoo: ZooFolder, spec: ZooSpec, schema: Schema, asked: Estimate, engine: Engine) -> None:
    """Refuse a zoo for which the memory or the disk does not suffice, as far as that is known without torch."""
    check_images_fit(spec, schema)
    if engine.trains_here:
        workers_that_fit(1, 1, asked.largest_stack, schema, 1)
    check_space(zoo.path, asked.bytes)


def _choose_backend(backend: "str | Backend", device: str, spec: ZooSpec, schema: Schema) -> "Backend":
    """Return what trains: the backend that was given, or the one that its name stands for."""
    if not isinstance(backend, str):
        return backend
    from zootools.training.backend import choose_backend

    return choose_backend(backend, choose_device(device), schema, spec.training.batch_size)


def _check_training(
    old: Plan | None,
    records: Sequence[StackRecord | None],
    spec: ZooSpec,
    schema: Schema,
    models: Sequence[ModelConfig],
    backend: "Backend",
    engine: Engine,
    workers: int | None,
    allow_fingerprint_change: bool,
) -> tuple[list[list[str]], int | None]:
    """Refuse what cannot be trained here, or not in one zoo with what is there.

    Returns which models are in which stack, and how many workers train at once: None on a cluster, for as many as it
    has room for.
    """
    stacks = _stacks(old, spec, schema, models, backend.device)
    if not allow_fingerprint_change:
        new: list[StackRecord | None] = [None] * (len(stacks) - len(records))
        check_fingerprints([*records, *new], backend.fingerprint())
    return stacks, _check_workers(max(map(len, stacks)), schema, backend, engine, workers)


def _check_workers(largest: int, schema: Schema, backend: "Backend", engine: Engine, workers: int | None) -> int | None:
    """Return how many workers train at once, where the largest stack has ``largest`` models; None on a cluster."""
    if not engine.trains_here:
        return workers
    if backend.device != "cpu":
        return 1
    from zootools.training.backend import StandardBackend

    width = backend.width(schema) if isinstance(backend, StandardBackend) else 1
    return workers_that_fit(workers, os.cpu_count() or 1, largest, schema, width)


def _finished(output: Output, zoo: ZooFolder, spec: ZooSpec, models: Sequence[ModelConfig]) -> Manifest | None:
    """Return the manifest of a folder in which nothing is left to do; None for any other zoo of these models.

    Raises SpecError when the folder holds another zoo. Files are looked for, not read: `verify` does that.
    """
    plan = zoo.read_plan()
    if plan is not None:
        check_growth(plan.spec, spec, models)
        return None
    if not zoo.has(MANIFEST):
        return None
    manifest = read_manifest(zoo.path)
    check_growth(_recorded_spec(zoo, manifest, spec), spec, models)
    whole = all(output.holds(name) for name in ("README.md", *manifest.files))
    whole = whole and not manifest.is_partial
    return manifest if whole and manifest.counts.expected == len(models) else None


def _recorded_spec(zoo: ZooFolder, manifest: Manifest, spec: ZooSpec) -> ZooSpec:
    """Return the specification of a finished zoo; where spec.yaml is gone, the one given may be proven to be it."""
    if not zoo.has("spec.yaml") and hashlib.sha256(spec_yaml(spec)).hexdigest() == manifest.files["spec.yaml"].sha256:
        return spec
    return stored_spec(zoo.path, manifest)


def _stored(zoo: ZooFolder, spec: ZooSpec) -> tuple[Plan | None, Sequence[StackRecord | None]]:
    """Return plan and records of the zoo that is there, of a finished one as they were before; nothing is written."""
    plan = zoo.read_plan()
    if plan is not None:
        return plan, zoo.read_records(plan)
    if not zoo.has(MANIFEST):
        return None, []
    manifest = read_manifest(zoo.path)
    return reopened(zoo, manifest, _recorded_spec(zoo, manifest, spec))


def _write_plan(zoo: ZooFolder, plan: Plan, old: Plan | None, records: Sequence[StackRecord | None]) -> None:
    """Store the plan to work on; of a finished zoo first its records, and the plan that belongs to them."""
    if old is not None and not zoo.has(PLAN):
        for stack, record in enumerate(records):
            assert record is not None, "a finished zoo has one of every stack"
            zoo.write_record(stack, record)
        zoo.write_plan(old)
    if plan != old:
        zoo.write_plan(plan)


def _stacks(
    old: Plan | None, spec: ZooSpec, schema: Schema, models: Sequence[ModelConfig], device: str
) -> list[list[str]]:
    """Return which models are in which stack: those of the plan that is there, and new stacks for new models."""
    kept = len(spec.training.kept_epochs)
    if old is None:
        return plan_stacks(models, schema, kept, device)
    check_growth(old.spec, spec, models)
    present = {model for stack in old.stacks for model in stack}
    return old.stacks + plan_stacks([model for model in models if model.model_id not in present], schema, kept, device)


def _note_build(zoo: ZooFolder, begun: float, device: str, backend: str, engine: str) -> None:
    """Add this session to build.json: when, where and how long; the one file that may differ between equal zoos."""
    import platform

    try:
        sessions = read_build_log(zoo.path)
    except DamagedZooError as error:  # a log; it is no reason to lose what has been trained
        LOG.warning("%s; a new one is begun", error)
        sessions = []
    now = time.time()
    sessions.append(
        {
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun)),
            "seconds": round(now - begun, 1),
            "device": device,
            "backend": backend,
            "engine": engine,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "system": platform.system(),
        }
    )
    zoo.write("build.json", pretty_json({"sessions": sessions[-MAX_SESSIONS:]}))
