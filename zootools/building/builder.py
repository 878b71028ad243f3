"""Building a zoo: check the request, plan the stacks, let an engine train them, finish the folder.

The same call again resumes. A specification that contains all models of an existing zoo, and more, grows the zoo: only
the missing models are trained, as new stacks.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Unpack

from zootools.architectures import Schema
from zootools.building.options import BuildKeywords, BuildOptions
from zootools.building.planning import Estimate, check_spec, estimate
from zootools.building.preflight import (
    check_arguments,
    check_fingerprints,
    check_images_fit,
    check_space,
    choose_device,
    images_of,
    recorded_backend,
    workers_that_fit,
)
from zootools.building.resuming import (
    Present,
    finished_manifest,
    look_into,
    planned_stacks,
    stored_plan,
    write_plan,
)
from zootools.building.session_log import SessionLog
from zootools.engines.engine import NOTHING, RETRIES, BuildJob, Engine
from zootools.engines.table import open_engine
from zootools.errors import WorkerError
from zootools.filesystem.files import sweep_temporaries
from zootools.filesystem.lock import FolderLock
from zootools.images.shapes import has_images
from zootools.object_store.sync import Output, open_output
from zootools.phases import Phases
from zootools.progress import Progress
from zootools.spec import ZooSpec
from zootools.spec.model_configs import ModelConfig, configurations, expand
from zootools.storage.build_state import PLAN, ZooFolder
from zootools.storage.finish import finish_zoo
from zootools.storage.kept_state import keep_states, state_names, sweep_shards
from zootools.storage.manifest import Manifest
from zootools.storage.records import Plan, StackRecord
from zootools.storage.status import epochs_done
from zootools.text import say
from zootools.training.table import choose_backend

if TYPE_CHECKING:
    from zootools.training.backend import Backend

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Request:
    """A build whose arguments are valid."""

    spec: ZooSpec
    out: Path | str
    options: BuildOptions
    engine: Engine
    output: Output
    schema: Schema


@dataclass(frozen=True)
class Preview:
    """The result of `preview`."""

    size: Estimate
    """The size of the whole zoo."""
    present: Present | None
    """What the folder has of it; None for an object store, into which only a build looks."""
    images: bool
    """Whether the images are on this machine; otherwise a build downloads them."""


def preview(spec: ZooSpec, out: Path | str, **options: Unpack[BuildKeywords]) -> Preview:
    """Run every check that `build` runs before it trains; return the size of the build.

    Nothing is written to ``out`` or downloaded. The contents of an object store, and images that are not on this
    machine, are not checked.

    Raises what `build` raises, except BusyError.
    """
    request = _check_request(spec, out, BuildOptions(**options))
    zoo, data = ZooFolder(request.output.folder), request.options.data
    size, there = estimate(spec, data), has_images(spec.images, data)
    present = look_into(request.output, spec, request.schema)
    if present is not None and present.finished is not None:
        return Preview(size, present, there)
    _check_machine(request, zoo, size)
    old = None if present is None else present.plan
    backend = _choose_backend(request, () if present is None else present.records)
    if present is None or old is None:  # the models themselves, of which there may be a million, are not needed
        _count_workers(request, size.largest_stack, backend)
    else:
        _check_training(request, old, present.records, expand(spec), backend)
    if there:
        images_of(spec.images, data, old)
    return Preview(size, present, there)


def build(spec: ZooSpec, out: Path | str, **options: Unpack[BuildKeywords]) -> Manifest:
    """Train a zoo into the folder ``out``; resume an unfinished zoo there, or grow a finished one.

    Args:
        spec: what to train.
        out: the zoo's folder, created if missing; or a URL: ``file://``, or that of an object store, such as
            ``s3://bucket/zoo`` (`zootools.object_store.sync`).
        **options: the fields of `zootools.building.options.BuildOptions`:

            - device: ``cpu``, ``cuda``, or ``auto`` (default) for CUDA where there is a CUDA device and the CPU
              is not faster (docs/gpu.md).
            - backend: ``native``, ``torch``, or ``auto`` (default; `zootools.training.table.choose_backend`); or a
              backend of your own: an object with the members of `zootools.training.backend.Backend` that can be
              pickled.
            - engine: ``local`` (default) for processes on this machine, ``ray`` for tasks of a Ray cluster; the bytes
              are the same.
            - address: of the cluster (`zootools.engines.cluster.connect`); by default Ray is started here.
            - workers: processes on the CPU, 1 to 1024; by default one per core, or fewer if memory is short, and
              always one on CUDA. On a cluster: the maximum number of stacks at once.
            - data: the folder of the image files (`zootools.paths.data_folder`); missing files are downloaded to it.
            - allow_fingerprint_change: resume although the device or library versions differ from those of the first
              session (default False).
            - keep_state: keep weights and optimizer state of the last epoch in the folder ``.state`` of the zoo, so
              that a later build with more epochs continues from there (default False).
            - quiet: show no progress (default False).
            - phases: a `zootools.phases.Phases`, which gets the processor seconds of each phase: ``start`` (imports),
              ``checks``, ``backend`` (with the compilation of the kernel), ``images``, ``workers`` (their start),
              ``training``, ``evaluation``, ``storage``, ``engine`` (communication with the workers; with Ray also the
              storage of epochs) and ``tables``.

    Returns:
        The manifest of the finished zoo: the content of zoo.json.

    Raises:
        SpecError: an argument is wrong, or ``out`` holds other files, or a zoo of another specification.
        ClusterError: Ray is missing, or no cluster is at the address, or no machine of it can compute the same bytes.
        NoKernelError: the backend is ``native``, and no compiler is found or it fails.
        BusyError: another process builds there.
        StorageError: memory or disk space is short, or the disk failed, or the folder was moved or removed during the
            build. Committed epochs are kept.
        WorkerError: a worker could not start or failed, or stacks crashed it repeatedly. Committed epochs are kept,
            and the call can be repeated.
    """
    begun, chosen = time.time(), BuildOptions(**options)
    phases = chosen.phases or Phases()
    with phases.phase("checks"):
        return _build(_check_request(spec, out, chosen), phases, begun)


def _build(request: _Request, phases: Phases, begun: float) -> Manifest:
    """Train and finish a zoo, unless it is finished; return its manifest."""
    spec = request.spec
    output, zoo, models = request.output, ZooFolder(request.output.folder), expand(spec)
    present = look_into(output, spec, request.schema, models)
    if present is not None and present.finished is not None and not zoo.has(".work"):
        _warn_if_state_lacks(request, zoo, len(present.finished.stacks))
        return present.finished
    _check_machine(request, zoo, estimate(spec, request.options.data, models))
    with (
        FolderLock(zoo.lock) as lock,
        output.session(ZooFolder(zoo.path, lock.descriptor)) as zoo,
        _folder_errors_first(zoo),
    ):
        zoo.check_folders()
        sweep_temporaries(zoo.path)
        # Another builder may have finished since the first look, or may have been killed before it removed .work.
        manifest = finished_manifest(output, zoo, spec, models)
        if manifest is None:
            output.fetch()
            manifest = _train_zoo(request, phases, zoo, models, lock, begun)
        zoo.remove_work()
    return manifest


@contextmanager
def _folder_errors_first(zoo: ZooFolder) -> Iterator[None]:
    """Raise the error of a folder that was moved or removed instead of the errors that follow from it.

    A build that is refused before it has written a plan removes its lock, so the folder is as it was.
    """
    try:
        yield
    except Exception:
        zoo.fence()
        if not zoo.has(PLAN):
            zoo.remove_lock()
        raise


# --- checks ----------------------------------------------------------------------------------------------


def _check_request(spec: ZooSpec, out: Path | str, options: BuildOptions) -> _Request:
    """Refuse invalid arguments; open the engine and the output, and work out the schema of the models."""
    options = check_arguments(spec, options)
    engine, output = open_engine(options.engine, options.address), open_output(out)
    return _Request(spec, out, options, engine, output, check_spec(spec, options.data))


def _check_machine(request: _Request, zoo: ZooFolder, size: Estimate) -> None:
    """Raise StorageError if the zoo needs more memory or disk than this machine has; without importing torch."""
    check_images_fit(request.spec, request.schema)
    if request.engine.trains_here:
        workers_that_fit(1, 1, size.largest_stack, request.schema, 1)
    check_space(zoo.path, size.bytes)


def _choose_backend(request: _Request, records: Sequence[StackRecord | None]) -> "Backend":
    """Return the user's own backend, or the one that the options name; ``auto`` keeps that of the records."""
    backend = request.options.backend
    if not isinstance(backend, str):
        return backend
    name, recorded = recorded_backend(records) or (None, None)
    device, batch_size = choose_device(request.options.device, recorded), request.spec.training.batch_size
    first = next(configurations(request.spec))
    return choose_backend(backend, device, request.schema, batch_size, first, name if device == recorded else None)


def _check_training(
    request: _Request,
    old: Plan | None,
    records: Sequence[StackRecord | None],
    models: Sequence[ModelConfig],
    backend: "Backend",
) -> tuple[list[list[str]], int | None]:
    """Refuse models that cannot be trained here, or cannot be in one zoo with those that ``old`` and its records have.

    Returns the ids of the models of each stack, and the number of workers (`_count_workers`).
    """
    from zootools.training.backend import MixingBackend

    mixed = backend.width(request.schema) if isinstance(backend, MixingBackend) else None
    stacks = planned_stacks(old, request.spec, request.schema, models, backend.device, mixed)
    if not request.options.allow_fingerprint_change:
        new: list[StackRecord | None] = [None] * (len(stacks) - len(records))
        check_fingerprints([*records, *new], backend.fingerprint())
    return stacks, _count_workers(request, max(map(len, stacks)), backend)


def _count_workers(request: _Request, largest: int, backend: "Backend") -> int | None:
    """Return how many workers train at once; on a cluster the number asked for, or None.

    ``largest`` is the number of models of the largest stack. Raises StorageError if memory is short.
    """
    if not request.engine.trains_here:
        return request.options.workers
    if backend.device != "cpu":
        return 1
    from zootools.training.backend import StandardBackend

    width = backend.width(request.schema) if isinstance(backend, StandardBackend) else 1
    return workers_that_fit(request.options.workers, os.cpu_count() or 1, largest, request.schema, width)


# --- the phases of a build -------------------------------------------------------------------------------


def _train_zoo(
    request: _Request, phases: Phases, zoo: ZooFolder, models: Sequence[ModelConfig], lock: FolderLock, begun: float
) -> Manifest:
    """Plan, train and finish a zoo in a folder whose lock this process holds; return its manifest."""
    job = _prepare(request, phases, zoo, models, lock)
    log = SessionLog(zoo, begun, job.backend.device, job.backend.name, request.options.engine)
    try:
        with phases.phase("engine"):
            failed = _train_stacks(job, request, phases, lock, log)
    except KeyboardInterrupt:
        log.write()  # no later session knows how long this one took
        raise
    sweep_temporaries(zoo.path)  # those of dead workers; no worker runs any more
    log.write()
    if failed:
        _give_up(failed, job, request)
    with phases.phase("storage"):
        _keep_states(request, job)
    with phases.phase("tables"):
        manifest = finish_zoo(zoo, job.plan)
    with phases.phase("storage"):
        request.output.finish(manifest)
    return manifest


def _keep_states(request: _Request, job: BuildJob) -> None:
    """Keep the states of the last epoch, if asked for; drop states and shards of a shorter zoo that was continued."""
    sweep_shards(job.zoo, job.plan)
    keep_states(job.zoo, len(job.plan.stacks), request.options.keep_state)
    _warn_if_state_lacks(request, job.zoo, len(job.plan.stacks))


def _warn_if_state_lacks(request: _Request, zoo: ZooFolder, stacks: int) -> None:
    """Log a warning if the state of all stacks should be kept, and was not when they were trained."""
    if request.options.keep_state and not all(map(zoo.has, state_names(zoo, stacks))):
        LOG.warning(
            "%s: stacks were trained without --keep-state, so the zoo cannot be trained for more epochs", request.out
        )


def _prepare(
    request: _Request, phases: Phases, zoo: ZooFolder, models: Sequence[ModelConfig], lock: FolderLock
) -> BuildJob:
    """Choose the backend, load and store the images, write the plan; return the job for the engine.

    The images are freed on return: workers map the stored file.
    """
    with phases.phase("start"):
        from zootools.storage.image_tensors import save_images  # imports torch

    def tell(text: str) -> None:
        if not request.options.quiet:
            say(text, err=True)

    old, records = stored_plan(zoo, request.spec)
    with phases.phase("backend"):
        backend = _choose_backend(request, records)
    tell(f"backend {backend.name}: {backend.reason}")
    stacks, workers = _check_training(request, old, records, models, backend)
    tell(f"images: reading {request.spec.images.name}")
    with phases.phase("images"):
        images = images_of(request.spec.images, request.options.data, old)
    plan = Plan(request.spec, request.schema, images.digest, stacks, images.facts)
    write_plan(zoo, plan, old, records)
    request.output.put_plan()
    with phases.phase("images"):
        save_images(images, zoo)
    done = sum(record is not None and record.done for record in records)
    largest = max(map(len, stacks))
    tell(f"plan: {len(models):,} models; {done:,} of {len(stacks):,} stacks are trained, of at most {largest:,} models")
    return BuildJob(zoo, lock.descriptor, plan, images.classes, backend, workers)


def _train_stacks(
    job: BuildJob, request: _Request, phases: Phases, lock: FolderLock, log: SessionLog
) -> dict[int, str]:
    """Train the unfinished stacks of a plan; return those that failed, and how their last workers died."""
    plan = job.plan
    records = job.zoo.read_records(plan)
    done = [epochs_done(record, plan.spec) for record in records]
    trained = sum(len(ids) * epochs for ids, epochs in zip(plan.stacks, done, strict=True))
    for place in (lock, request.output):
        place.trains(request.options.engine, trained)
    todo = [stack for stack, record in enumerate(records) if record is None or not record.done]
    with Progress([len(ids) for ids in plan.stacks], plan.spec.training.epochs, done, request.options.quiet) as bar:

        def report(stack: int, epochs: float, seconds: Mapping[str, float] = NOTHING) -> None:
            phases.add(seconds)
            bar.update(stack, epochs)
            log.write_if_old()
            if epochs == int(epochs):
                with phases.phase("storage"):
                    request.output.put_stack(stack)

        return request.engine.train(job, todo, report, bar.retried)


def _give_up(failed: Mapping[int, str], job: BuildJob, request: _Request) -> NoReturn:
    """Record stacks whose workers died repeatedly as failed, and raise WorkerError."""
    zoo, plan = job.zoo, job.plan
    for stack in failed:
        zoo.mark_failed(stack, f"its worker died {RETRIES + 1} times", job.backend.fingerprint())
        request.output.put_stack(stack)
    first, how = next(iter(failed.items()))
    memory = " (the system does this when memory runs out; fewer --workers need less)" if "SIGKILL" in how else ""
    records = [zoo.read_record(stack) for stack in range(len(plan.stacks)) if stack not in failed]
    untried = sum(record is None or not record.done for record in records)
    rest = f"{untried} more were not tried, because no worker made progress" if untried else "the others are kept"
    raise WorkerError(
        f"{request.out}: the worker of {len(failed)} of {len(plan.stacks)} stacks died {RETRIES + 1} times "
        f"(stack {first} first: {how}{memory}); {rest}; the same command tries the failed stacks again"
    )
