"""Building a zoo: plan the stacks, let an engine train them, finish the folder.

The same call again resumes. A specification that holds all models of an existing zoo and more is growth:
only what is missing is trained, as new stacks.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zootools.architectures import Schema, build_schema
from zootools.errors import DamagedZooError, SpecError, StorageError, WorkerError
from zootools.files import FolderLock, pretty_json, sweep_temporaries
from zootools.image_files import image_shape
from zootools.manifest import finish_zoo, is_partial, read_manifest, reopen, spec_yaml, stored_spec
from zootools.mirror import Output, open_output
from zootools.population import ModelConfig, count_structures, expand
from zootools.progress import Progress
from zootools.sealed import MAX_BYTES
from zootools.spec import ZooSpec
from zootools.store import MAX_SESSIONS, Plan, StackRecord, ZooFolder, read_build_log

if TYPE_CHECKING:
    from zootools.images import ImageData
    from zootools.training.backend import Backend

LOG = logging.getLogger(__name__)

MAX_STACK = 256
FEW_FILES = 1000
"""Stacks are as small as they can be (for more work units) without making more shards than this."""
HUGE_STACK = 4096
MANY_FILES = 9000
"""Beyond so many shards, which is nearly what a hub takes, stacks grow further: up to `HUGE_STACK` models."""

MODEL_BYTES, SHARD_BYTES = 120, 175
"""What zoo.json takes for a model at most (one that has diverged), and for a shard."""
MAX_SHARDS = 200_000

POPULATION = ("grid", "sample", "seeds", "models")
"""The sections that may change when a zoo grows."""


@dataclass(frozen=True)
class Estimate:
    """What a specification asks for, by arithmetic."""

    models: int
    checkpoints: int
    stacks: int
    bytes: int
    steps: int
    model_samples: int


def zoo_schema(spec: ZooSpec, data: Path | None = None) -> Schema:
    """Return the layer schema of a specification's models. Raises SpecError where images do not fit it."""
    shape, classes = image_shape(spec.images, data)
    return build_schema(spec.architecture, shape, classes)


def plan_stacks(
    models: Sequence[ModelConfig], schema: Schema, checkpoints: int, device: str = "cpu"
) -> list[list[str]]:
    """Put models of one structure together: activation, optimizer, and whether there is dropout.

    The result depends on the models alone, never on the number of workers.
    """
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for model in sorted(models, key=lambda model: model.model_id):
        hyper = model.hyperparameters
        groups.setdefault((hyper.activation, hyper.optimizer, hyper.dropout > 0), []).append(model.model_id)
    size = _stack_size([len(ids) for ids in groups.values()], schema, checkpoints, device)
    return [ids[start : start + size] for _, ids in sorted(groups.items()) for start in range(0, len(ids), size)]


def _stack_size(groups: Iterable[int], schema: Schema, checkpoints: int, device: str = "cpu") -> int:
    """Return how many models a stack has at most, where so many are of each structure.

    Raises SpecError where there would be more shards than a manifest can name.
    """
    groups = list(groups)
    size = 256 if device == "cuda" or schema.size <= 2_000 else 16

    def shards() -> int:
        return checkpoints * sum(-(-count // size) for count in groups)

    while (size < MAX_STACK and shards() > FEW_FILES) or (size < HUGE_STACK and shards() > MANY_FILES):
        size *= 2
    if shards() > MAX_SHARDS or sum(groups) * MODEL_BYTES + shards() * SHARD_BYTES > MAX_BYTES:
        raise SpecError(
            f"{sum(groups):,} models of {checkpoints:,} checkpoints in {shards():,} shards are more than one zoo can "
            "have: keep fewer (training.checkpoint_every, checkpoint_epochs), or make several zoos"
        )
    return size


def estimate(spec: ZooSpec, data: Path | None = None, models: Sequence[ModelConfig] | None = None) -> Estimate:
    """Return what building a specification will take, without touching a disk.

    ``models`` are those of the specification, for who has them at hand.
    """
    schema, kept, training = zoo_schema(spec, data), len(spec.training.kept_epochs), spec.training
    if models is None:
        structures = count_structures(spec)
    else:
        hyper = [model.hyperparameters for model in models]
        structures = Counter((h.activation, h.optimizer, h.dropout > 0, h.train_fraction) for h in hyper)
    groups: Counter[tuple[str, str, bool]] = Counter()
    steps = samples = 0
    for (activation, optimizer, dropout, fraction), number in structures.items():
        groups[activation, optimizer, dropout] += number
        images = max(1, int(spec.images.train * fraction))
        samples += number * images
        steps += number * -(-images // training.batch_size)
    total, size = sum(groups.values()), _stack_size(groups.values(), schema, kept)
    # The shard, the row of Parquet (compressed by about a fifth at best), and the scores in both.
    per_checkpoint = 8 * schema.size + 600
    return Estimate(
        models=total,
        checkpoints=total * kept,
        stacks=sum(-(-number // size) for number in groups.values()),
        bytes=total * (kept * per_checkpoint + 12 * schema.size),
        steps=training.epochs * steps,
        model_samples=training.epochs * samples,
    )


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
) -> dict[str, Any]:
    """Train a zoo into the folder ``out``, or resume, or grow the one that is there.

    Args:
        spec: what to train.
        out: the zoo's folder, created if missing; or a URL: ``file://``, or one of an object store, such as
            ``s3://bucket/zoo`` (see `zootools.mirror`).
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is one.
        backend: ``native``, ``torch``, or ``auto`` (see `zootools.training.backend.choose_backend`); or a backend of
            your own, which can be pickled and has what `zootools.training.backend.Backend` has.
        engine: ``local`` for processes on this machine, ``ray`` for tasks of a Ray cluster; the bytes are the same.
        address: of the cluster (see `zootools.engines.cluster.connect`); by default Ray is started here.
        workers: processes on the CPU; one per core by default, and always one on CUDA. On a cluster: at most so many.
        data: where image files lie and are downloaded to (see `zootools.images.data_folder`).
        allow_fingerprint_change: go on although device or library versions are not those the build began with.
        quiet: show no progress.

    Returns:
        The manifest of the finished zoo, as in zoo.json.

    Raises:
        SpecError: ``out`` holds something else, or a zoo of another specification.
        ClusterError: there is no Ray, no cluster at the address, or no machine in it that computes as this one does.
        NoKernelError: ``native`` is asked for, and there is no compiler or it fails.
        BusyError: another builder is at work there.
        StorageError: the disk refused; everything committed is kept.
        WorkerError: stacks failed again and again; the others are kept, and the call can be repeated.
    """
    begun = time.time()
    if engine == "ray":
        from zootools.engines.cluster import import_ray

        import_ray()  # or say at once that it is missing
    output = open_output(out)
    folder = output.folder
    if output.is_local:
        _check_folder(ZooFolder(folder))
    schema = zoo_schema(spec, data)
    models = expand(spec)
    if output.is_local:
        finished = _finished(output, ZooFolder(folder), spec, models)
        if finished is not None and not ZooFolder(folder).work.exists():
            return finished
    _check_space(folder, estimate(spec, data, models).bytes)
    with FolderLock(ZooFolder(folder).lock) as lock, output.session(ZooFolder(folder, lock.descriptor)) as zoo:
        sweep_temporaries(folder)
        # Another builder may have finished since we looked, or been killed while it cleared up.
        finished = _finished(output, zoo, spec, models)
        if finished is not None:
            zoo.remove_work()
            return finished
        output.fetch()
        device = _choose_device(device)
        from zootools.engines.worker import RETRIES
        from zootools.images import load_images
        from zootools.training.backend import Backend, choose_backend

        if isinstance(backend, Backend):
            chosen = backend
        else:
            chosen = choose_backend(backend, device, schema, spec.training.batch_size)
        if not quiet:
            print(f"backend {chosen.name}: {chosen.reason}", file=sys.stderr)
        images = load_images(spec.images, data)
        plan = _plan(zoo, spec, schema, models, images.digest, device)
        output.put_plan()
        present = chosen.fingerprint()
        records = zoo.read_records(plan)
        if not allow_fingerprint_change:
            _check_fingerprints(records, present)
        train = _engine(engine, zoo, plan, images, chosen, address, workers, lock)
        del images  # the local engine's workers map the file that it has written
        todo = [stack for stack, record in enumerate(records) if record is None or not record.done]
        sizes = [len(ids) for ids in plan.stacks]
        with Progress(sizes, spec.training.epochs, [_epochs_done(record, spec) for record in records], quiet) as bar:

            def report(stack: int, epochs: float) -> None:
                bar.update(stack, epochs)
                if epochs == int(epochs):
                    output.put_stack(stack)

            failed = train(todo, report=report, retried=bar.retried)
        sweep_temporaries(folder)  # of workers that died; by now all of them have left
        _note_build(zoo, begun, device, chosen.name, engine)
        if failed:
            for stack in failed:
                zoo.mark_failed(stack, f"its worker died {RETRIES + 1} times", present)
                output.put_stack(stack)
            raise WorkerError(
                f"{out}: the worker of {len(failed)} of {len(sizes)} stacks died {RETRIES + 1} times "
                f"(stack {failed[0]} first); the others are kept, and the same command tries these again"
            )
        manifest = finish_zoo(zoo, plan)
        output.finish(manifest)
        zoo.remove_work()
    return manifest


def _engine(
    name: str,
    zoo: ZooFolder,
    plan: Plan,
    images: "ImageData",
    backend: "Backend",
    address: str | None,
    workers: int | None,
    lock: FolderLock,
) -> Callable[..., list[int]]:
    """Return the function that trains given stacks and returns those that failed (`run_local`, `run_ray`)."""
    if name == "ray":
        from zootools.engines.ray import run_ray

        return partial(run_ray, zoo, plan, images=images, backend=backend, address=address, workers=workers)
    from zootools.engines.local import run_local
    from zootools.engines.worker import save_images

    save_images(images, zoo.images)
    workers = 1 if backend.device == "cuda" else workers or os.cpu_count() or 1
    classes, descriptor = images.classes, lock.descriptor
    return partial(run_local, zoo.path, plan, classes=classes, backend=backend, workers=workers, lock=descriptor)


def _finished(output: Output, zoo: ZooFolder, spec: ZooSpec, models: Sequence[ModelConfig]) -> dict[str, Any] | None:
    """Return the manifest of a folder in which nothing is left to do; None for any other zoo of these models.

    Raises SpecError when the folder holds another zoo. Files are looked for, not read: `verify` does that.
    """
    plan = zoo.read_plan()
    if plan is not None:
        _check_growth(plan.spec, spec, models)
        return None
    if not zoo.manifest.exists():
        return None
    manifest = read_manifest(zoo.path)
    _check_growth(_recorded_spec(zoo, manifest, spec), spec, models)
    whole = all(output.holds(name) for name in ("README.md", *manifest["files"]))
    whole = whole and not is_partial(manifest)
    return manifest if whole and manifest["counts"]["expected"] == len(models) else None


def _recorded_spec(zoo: ZooFolder, manifest: dict[str, Any], spec: ZooSpec) -> ZooSpec:
    """Return the specification of a finished zoo; where spec.yaml is gone, the one given may be proven to be it."""
    if (
        not (zoo.path / "spec.yaml").exists()
        and hashlib.sha256(spec_yaml(spec)).hexdigest() == manifest["files"]["spec.yaml"]["sha256"]
    ):
        return spec
    return stored_spec(zoo.path, manifest)


def _check_folder(zoo: ZooFolder) -> None:
    """Refuse a folder that holds something which is no zoo."""
    if zoo.path.exists() and not zoo.path.is_dir():
        raise SpecError(f"{zoo.path}: is a file; expected a folder for the zoo (--out)")
    if zoo.path.is_dir() and not zoo.manifest.exists() and not zoo.work.is_dir() and any(zoo.path.iterdir()):
        raise SpecError(f"{zoo.path}: holds files but no zoo; choose another folder with --out")


def _check_growth(old: ZooSpec, new: ZooSpec, models: Sequence[ModelConfig]) -> None:
    """Refuse a specification that is neither the old one nor the old one grown; show what differs."""
    before, after = old.dump(), new.dump()
    if before == after:
        return
    differences = [
        f"{key}: {json.dumps(before.get(key))} there, {json.dumps(after.get(key))} asked for"
        for key in sorted({*before, *after} - set(POPULATION))
        if before.get(key) != after.get(key)
    ]
    if differences:
        raise SpecError(
            "the folder holds a zoo of another specification; choose another folder with --out\n  "
            + "\n  ".join(differences)
        )
    missing = {model.model_id for model in expand(old)} - {model.model_id for model in models}
    if missing:
        changed = [key for key in POPULATION if before.get(key) != after.get(key)]
        shown = "".join(
            f"\n  {key}: {json.dumps(before.get(key))} there, {json.dumps(after.get(key))} asked for" for key in changed
        )
        raise SpecError(
            f"{len(missing)} models of the zoo in this folder are not in the specification; "
            f"a zoo can grow, but not shrink{shown}"
        )


def _check_space(out: Path, needed: int) -> None:
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.is_dir())
    if not os.access(folder, os.W_OK):
        raise StorageError(f"{folder}: cannot be written to; choose another folder with --out")
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{folder}: the zoo takes about {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; "
            "choose another disk with --out (or with XDG_CACHE_HOME, where the zoo goes to an object store), "
            "or fewer models with --models"
        )


def _choose_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device cuda: torch finds no CUDA device here; use --device cpu (zootools doctor tells more)")
    return device


def _plan(
    zoo: ZooFolder, spec: ZooSpec, schema: Schema, models: Sequence[ModelConfig], images_sha256: str, device: str
) -> Plan:
    """Return the plan to work on: the stored one, a new one, or a stored or finished zoo's with new stacks."""
    old = zoo.read_plan()
    if old is None and zoo.manifest.exists():
        manifest = read_manifest(zoo.path)
        old = reopen(zoo, manifest, _recorded_spec(zoo, manifest, spec))
        zoo.write_plan(old)
    kept = len(spec.training.kept_epochs)
    if old is None:
        stacks = plan_stacks(models, schema, kept, device)
    else:
        _check_growth(old.spec, spec, models)
        if old.images_sha256 != images_sha256:
            raise SpecError(
                f"the images are not those this zoo was begun with (sha256 {images_sha256[:12]}..., "
                f"there {old.images_sha256[:12]}...); models of both cannot stand in one zoo"
            )
        present = {model for stack in old.stacks for model in stack}
        new = [model for model in models if model.model_id not in present]
        stacks = old.stacks + plan_stacks(new, schema, kept, device)
    plan = Plan(spec, schema, images_sha256, stacks)
    if plan != old:
        zoo.write_plan(plan)
    return plan


def _check_fingerprints(records: Sequence[StackRecord | None], present: dict[str, Any]) -> None:
    """Refuse to train under another numeric fingerprint than that of what is there."""
    if all(record is not None and record.done for record in records):
        return
    for stack, record in enumerate(records):
        if record is None or record.last_fingerprint == present:
            continue
        if record.epoch < 0 and not record.shards:
            continue  # nothing of it is there yet
        before = record.last_fingerprint
        differences = ", ".join(
            f"{key} {before.get(key)!r} then, {present.get(key)!r} now"
            for key in sorted({*present, *before})
            if before.get(key) != present.get(key)
        )
        raise SpecError(
            f"stack {stack} was begun under another numeric fingerprint ({differences}); the zoo's bytes would be of "
            "two kinds. Go on as before (--backend, --device), or accept it with --allow-fingerprint-change"
        )


def _epochs_done(record: StackRecord | None, spec: ZooSpec) -> int:
    if record is None:
        return 0
    return spec.training.epochs if record.done else max(record.epoch, 0)


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


def status(out: Path) -> dict[str, Any]:
    """Return how the build of a folder stands: expected = ok + diverged + failed + missing, always.

    A model is ``ok`` when its last epoch is stored, ``missing`` while it is not, ``failed`` when the last session
    gave its stack up.
    """
    zoo = ZooFolder(out)
    plan = zoo.read_plan()
    if plan is None:
        manifest = read_manifest(out)
        return {"state": "partial" if is_partial(manifest) else "finished", **manifest["counts"]}
    counts: Counter[str] = Counter()
    epochs, done = 0, 0
    for ids, found in zip(plan.stacks, zoo.read_records(plan), strict=True):
        record = found or StackRecord({})
        counts["diverged"] += len(record.stopped)
        counts[record.standing] += len(ids) - len(record.stopped)
        epochs += _epochs_done(record, plan.spec)
        done += record.done
    return {
        "state": "unfinished",
        "expected": sum(len(ids) for ids in plan.stacks),
        "ok": counts["ok"],
        "diverged": counts["diverged"],
        "failed": counts["failed"],
        "missing": counts["missing"],
        "stacks": len(plan.stacks),
        "stacks_done": done,
        "epochs_done": epochs,
        "epochs_expected": len(plan.stacks) * plan.spec.training.epochs,
    }
