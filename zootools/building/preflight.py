"""What a build is refused for before it trains.

`zootools.build` asks here, and so does `build --dry-run`; `check` asks what can be known of a specification alone.
Nothing in this module writes anything.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zootools.architectures import Schema
from zootools.building.options import BuildOptions
from zootools.choices import BACKENDS, DEVICES, check_word, check_workers
from zootools.errors import SpecError, StorageError, differences
from zootools.filesystem.files import file_above
from zootools.filesystem.inside import entries_inside
from zootools.memory import memory_limit
from zootools.spec import ZooSpec, parse_spec
from zootools.spec.model_configs import ModelConfig, expand
from zootools.storage.build_state import MANIFEST, ZooFolder
from zootools.storage.records import StackRecord

if TYPE_CHECKING:
    from zootools.training.backend import Backend

POPULATION = ("grid", "sample", "seeds", "models")
"""The sections that may change when a zoo grows."""

FLOATS_TRAINED, FLOATS_STORED = 5, 5
"""Numbers that one weight takes at least: while it is trained (itself, two moments, a gradient, what a step computes),
and while an epoch is stored (with the moments, as tensors, and as the bytes of the files)."""


# --- arguments -----------------------------------------------------------------------------------------


def check_arguments(spec: object, options: BuildOptions) -> BuildOptions:
    """Refuse a specification and options that `build` does not take; return the options with ``workers`` as an int.

    The engine and its address are checked by `zootools.engines.table.open_engine`. Raises SpecError naming the
    argument, the value and the nearest valid one.
    """
    if not isinstance(spec, ZooSpec):
        raise SpecError(f"spec: expected a ZooSpec, as zootools.load_spec returns, found {type(spec).__name__}")
    parse_spec(spec.dump(), "spec")  # pydantic's model_copy validates nothing
    check_word("device", options.device, DEVICES)
    if isinstance(options.backend, str):
        check_word("backend", options.backend, BACKENDS)
    else:
        check_backend(options.backend, options.device)
    return replace(options, workers=check_workers(options.workers))


def check_backend(backend: object, device: str = "auto") -> None:
    """Refuse an object that cannot serve as a `zootools.training.backend.Backend`. Raises SpecError."""
    name = f"backend {type(backend).__name__}"
    if isinstance(backend, type):
        raise SpecError(f"backend: found the class {backend.__name__}, expected an object of it")
    lacks = [f"{part}()" for part in ("fingerprint", "trainers") if not callable(getattr(backend, part, None))]
    lacks += [part for part in ("device", "name", "reason") if not isinstance(getattr(backend, part, None), str)]
    if lacks:
        raise SpecError(
            f"{name}: lacks {', '.join(lacks)}; expected one of {', '.join(BACKENDS)}, or an object that has "
            "fingerprint(), trainers(), and as texts device, name and reason (zootools.training.backend.Backend)"
        )
    present: Backend = backend  # type: ignore[assignment]
    if device not in ("auto", present.device):
        raise SpecError(f"{name}: computes on the device {present.device!r}, but {device!r} is asked for")
    try:
        ForkingPickler.dumps(backend)
    except Exception as error:  # whatever the object's own code raises
        raise SpecError(f"{name}: cannot be sent to the workers, because it cannot be pickled ({error})") from error
    fingerprint = present.fingerprint()
    try:
        same = json.loads(json.dumps(fingerprint, allow_nan=False)) == fingerprint and isinstance(fingerprint, dict)
    except (TypeError, ValueError):
        same = False
    if not same:
        raise SpecError(f"{name}: fingerprint() must return a dict that JSON can store, found {fingerprint!r:.200}")


def choose_device(device: str) -> str:
    """Return ``cpu`` or ``cuda``. Raises SpecError when CUDA is asked for and there is none."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device cuda: torch finds no CUDA device here; use --device cpu (zootools doctor tells more)")
    return device


# --- the folder ----------------------------------------------------------------------------------------


def check_folder(zoo: ZooFolder) -> None:
    """Refuse a folder that holds something which is not a zoo. Raises SpecError."""
    there = zoo.path if os.path.lexists(zoo.path) else file_above(zoo.path)
    if there is not None and not there.is_dir():
        raise SpecError(f"{zoo.path}: {there} is not a folder; expected one for the zoo (--out)")
    if zoo.path.is_dir() and not zoo.has(MANIFEST) and not zoo.has(".work") and entries_inside(zoo.path):
        raise SpecError(f"{zoo.path}: holds files but no zoo; choose another folder with --out")


def check_growth(old: ZooSpec, new: ZooSpec, models: Sequence[ModelConfig]) -> None:
    """Refuse a specification that is neither the old one nor the old one grown; show what differs."""
    before, after = old.dump(), new.dump()
    if before == after:
        return
    changes = differences(before, after, "asked for", show=json.dumps)
    fixed = [change for change in changes if change.partition(":")[0] not in POPULATION]
    if fixed:
        raise SpecError(
            "the folder holds a zoo of another specification; choose another folder with --out",
            *(f"  {change}" for change in fixed),
        )
    missing = {model.model_id for model in expand(old)} - {model.model_id for model in models}
    if missing:
        raise SpecError(
            f"{len(missing)} models of the zoo in this folder are not in the specification; "
            "a zoo can grow, but not shrink",
            *(f"  {change}" for change in changes),
        )


def check_same_images(there: str, here: str) -> None:
    """Refuse other images than those that a zoo was begun with, by their sha256. Raises SpecError."""
    if there != here:
        raise SpecError(
            f"the images are not those this zoo was begun with (sha256 {here[:12]}..., "
            f"there {there[:12]}...); models of both cannot be in one zoo"
        )


def check_fingerprints(records: Sequence[StackRecord | None], present: Mapping[str, Any]) -> None:
    """Refuse to train under another numeric fingerprint than that of what is there. Raises SpecError."""
    if all(record is not None and record.done for record in records):
        return
    for stack, record in enumerate(records):
        if record is None or record.last_fingerprint == present:
            continue
        if record.epoch < 0 and not record.shards:
            continue  # nothing of it is there yet
        changes = "; ".join(differences(record.last_fingerprint, present, "now"))
        raise SpecError(
            f"stack {stack} was begun under another numeric fingerprint ({changes}); the zoo's bytes would be of two "
            "kinds. Use the same --backend and --device as before, or accept it with --allow-fingerprint-change"
        )


# --- the machine ---------------------------------------------------------------------------------------


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def check_space(out: Path, needed: int) -> None:
    """Refuse a place that cannot be written to, or that has not the bytes that a zoo takes. Raises StorageError."""
    folder = _nearest(out)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"{folder}: cannot be written to; choose another folder with --out")
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{folder}: the zoo takes about {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; "
            "choose another disk with --out (or with XDG_CACHE_HOME, where the zoo goes to an object store), "
            "or fewer models with --models"
        )


def check_images_fit(spec: ZooSpec, schema: Schema) -> None:
    """Refuse images that do not fit the memory: float32, and once more as the file that workers map."""
    images = spec.images
    count = images.train + images.validation + (images.test or 0)
    channels, height, width = schema.input_shape
    needed, limit = 2 * 4 * count * channels * height * width, memory_limit()
    if needed > limit:
        raise StorageError(
            f"images: {count:,} images of {channels} x {height} x {width} take at least {needed / 1e9:.1f} GB of "
            f"memory, but there are {limit / 1e9:.1f} GB; ask for fewer images, or for smaller ones with images.size"
        )


def stack_bytes(models: int, schema: Schema, width: int = 1) -> int:
    """Return how much memory the training of one stack takes at least.

    ``width`` models are trained side by side; a trainer with fewer takes the memory of as many.
    """
    rows = -(-models // width) * width
    return 4 * schema.size * (FLOATS_TRAINED * rows + FLOATS_STORED * models)


def workers_that_fit(asked: int | None, cores: int, largest: int, schema: Schema, width: int) -> int:
    """Return how many workers train at once: those asked for, else one per core as far as the memory suffices.

    ``largest`` is the number of models of the largest stack. Raises StorageError, with the numbers, when there is not
    enough memory for the workers asked for, or for a single one.
    """
    needed, limit = stack_bytes(largest, schema, width), memory_limit()
    fit = limit // max(needed, 1)
    workers = asked or max(1, min(cores, fit))
    if workers > fit:
        size = f"{largest:,} models x {schema.size:,} parameters"
        if fit == 0:
            raise StorageError(
                f"a stack of {size} takes at least {needed / 1e9:.1f} GB of memory to train, but there are "
                f"{limit / 1e9:.1f} GB; make the architecture smaller, or train on a machine with more memory"
            )
        raise StorageError(
            f"{workers} workers take at least {workers * needed / 1e9:.1f} GB of memory, {needed / 1e9:.1f} GB each "
            f"for a stack of {size}, but there are {limit / 1e9:.1f} GB; use --workers {fit}, or fewer"
        )
    return workers
