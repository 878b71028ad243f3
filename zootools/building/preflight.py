"""Checks of a build before it trains, for `zootools.build` and for `build --dry-run`. They write nothing."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zootools.architectures import Schema
from zootools.building.options import BuildOptions
from zootools.choices import DEVICES, check_word, check_workers
from zootools.errors import SpecError, StorageError, differences
from zootools.filesystem.files import free_space
from zootools.memory import memory_limit
from zootools.spec import Images, OwnArchitecture, ZooSpec, parse_spec
from zootools.spec.model_configs import ModelConfig, expand
from zootools.storage.build_state import IMPORT, ZooFolder
from zootools.storage.records import Plan, StackRecord
from zootools.training.table import BACKENDS

if TYPE_CHECKING:
    from zootools.images.datasets import ImageData
    from zootools.training.backend import Backend

POPULATION = ("grid", "sample", "seeds", "models")
"""The sections that can differ when a zoo grows."""

MORE_EPOCHS = (
    "  more epochs can be trained only for a finished zoo that was built with --keep-state, which stores the optimizer "
    "state; otherwise train again in a new folder: -o NEW"
)

FLOATS_TRAINED, FLOATS_STORED = 5, 5
"""Minimum of float32 numbers in memory per weight: in training (weight, two moments, gradient, temporary values), and
when an epoch is stored (weight and moments as tensors and as bytes)."""


# --- arguments -----------------------------------------------------------------------------------------


def check_arguments(spec: object, options: BuildOptions) -> BuildOptions:
    """Refuse invalid arguments of `build`; return the options with ``workers`` as an int.

    The engine and its address are checked by `zootools.engines.table.open_engine`. Raises SpecError naming the
    argument, the value and the nearest valid one.
    """
    if not isinstance(spec, ZooSpec):
        raise SpecError(f"spec: expected a ZooSpec, as zootools.load_spec returns, found {type(spec).__name__}")
    parse_spec(spec.dump(), "spec")  # pydantic's model_copy validates nothing
    check_word("device", options.device, DEVICES)
    if isinstance(options.backend, str):
        check_word("backend", options.backend, tuple(BACKENDS))
    else:
        check_backend(options.backend, options.device)
    return replace(options, workers=check_workers(options.workers))


def check_backend(backend: object, device: str = "auto") -> None:
    """Raise SpecError if an object is not a `zootools.training.backend.Backend`, or computes on another device."""
    name = f"backend {type(backend).__name__}"
    if isinstance(backend, type):
        raise SpecError(f"backend: found the class {backend.__name__}, expected an object of it")
    lacks = [f"{part}()" for part in ("fingerprint", "trainers") if not callable(getattr(backend, part, None))]
    lacks += [part for part in ("device", "name", "reason") if not isinstance(getattr(backend, part, None), str)]
    if lacks:
        raise SpecError(
            f"{name}: lacks {', '.join(lacks)}; expected one of {', '.join(BACKENDS)}, or an object with the methods "
            "fingerprint() and trainers() and the texts device, name and reason (zootools.training.backend.Backend)"
        )
    present: Backend = backend  # type: ignore[assignment]
    if device not in ("auto", present.device):
        raise SpecError(f"{name}: computes on the device {present.device!r}, not on the given device {device!r}")
    try:
        ForkingPickler.dumps(backend)
    except Exception as error:  # whatever the object's own code raises
        raise SpecError(f"{name}: cannot be sent to the workers, which need it pickled ({error})") from error
    fingerprint = present.fingerprint()
    try:
        same = json.loads(json.dumps(fingerprint, allow_nan=False)) == fingerprint and isinstance(fingerprint, dict)
    except (TypeError, ValueError):
        same = False
    if not same:
        raise SpecError(
            f"{name}: fingerprint() must return a dict that JSON can store exactly, found {fingerprint!r:.200}"
        )


def choose_device(device: str, recorded: str | None = None) -> str:
    """Return ``cpu`` or ``cuda``, or ``auto`` where there is a CUDA device, and the networks decide about its use.

    A zoo some of whose models were trained on ``recorded`` keeps this device. Raises SpecError for ``cuda`` without a
    CUDA device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device cuda: torch finds no CUDA device; use --device cpu (see `zootools doctor`)")
    if device == "auto" and not torch.cuda.is_available():
        return "cpu"
    return recorded if device == "auto" and recorded in ("cpu", "cuda") else device


# --- the folder ----------------------------------------------------------------------------------------


def check_folder(zoo: ZooFolder) -> None:
    """Raise SpecError if a build cannot write there (`ZooFolder.check_target`), or if an unfinished import is there."""
    zoo.check_target()
    if zoo.has(IMPORT):
        raise SpecError(f"{zoo.path}: holds an import that is not finished; choose another folder with --out")


def check_growth(old: ZooSpec, new: ZooSpec, models: Sequence[ModelConfig]) -> None:
    """Raise SpecError, with the differences, unless the new specification is the old one or grows it.

    ``models`` are those of the new specification.
    """
    before, after = old.dump(), new.dump()
    if before == after:
        return
    changes = differences(before, after, "asked for", show=json.dumps)
    fixed = [change for change in changes if change.partition(":")[0] not in POPULATION]
    if fixed:
        raise SpecError(
            "the folder holds a zoo of another specification; choose another folder with --out",
            *(f"  {change}" for change in fixed),
            *([MORE_EPOCHS] if new.training.epochs > old.training.epochs else ()),
        )
    missing = {model.model_id for model in expand(old)} - {model.model_id for model in models}
    if missing:
        raise SpecError(
            f"{len(missing)} models of the zoo in this folder are not in the specification; "
            "a zoo can grow, but not shrink",
            *(f"  {change}" for change in changes),
        )


def check_same_layers(spec: ZooSpec, there: Schema, here: Schema) -> None:
    """Raise SpecError if the function of an architecture of the user's own returns other layers than for a zoo."""
    if isinstance(spec.architecture, OwnArchitecture) and there != here:
        pairs = zip(there.layers, here.layers, strict=False)
        first = next((f"{old} there, {new} now" for old, new in pairs if old != new), "another number of layers")
        raise SpecError(
            f"the layers of the architecture {here.name} are not those of the zoo in this folder ({first}); use "
            "another name for another architecture, and another folder (--out)"
        )


def images_of(images: Images, data: Path | None, old: Plan | None) -> "ImageData":
    """Return the images of a specification (`load_images`).

    Raises SpecError if they differ, by sha256, from those that the zoo of the plan ``old`` was begun with.
    """
    from zootools.images.datasets import load_images

    loaded = load_images(images, data)
    if old is not None and (there := old.images_sha256) != (here := loaded.digest):
        raise SpecError(
            f"the images differ from those that this zoo was begun with (sha256 {here[:12]}..., "
            f"in the zoo {there[:12]}...); one zoo cannot have models of both"
        )
    return loaded


def check_fingerprints(records: Sequence[StackRecord | None], present: Mapping[str, Any]) -> None:
    """Raise SpecError if stacks are left to train, and any has epochs of another numeric fingerprint."""
    if all(record is not None and record.done for record in records):
        return
    for stack, record in enumerate(records):
        if record is None or record.last_fingerprint == present:
            continue
        if record.epoch < 0 and not record.shards:
            continue  # the stack has no epoch yet
        changes = "; ".join(differences(record.last_fingerprint, present, "now"))
        raise SpecError(
            f"stack {stack} was begun under another numeric fingerprint ({changes}); the zoo would mix the bytes of "
            "both. Use the same --backend and --device as before, or accept it with --allow-fingerprint-change"
        )


def recorded_backend(records: Sequence[StackRecord | None]) -> tuple[str, str] | None:
    """Return name and device of the backend that trained the last stack with an epoch; None if it is not ours.

    So a zoo whose backend was chosen by a measurement keeps it, on this machine and on others.
    """
    fingerprints = [record.last_fingerprint for record in records if record is not None and record.epoch >= 0]
    last = fingerprints[-1] if fingerprints else {}
    for name, device in itertools.product(("native", "torch"), ("cpu", "cuda")):
        if (last.get("backend"), last.get("device")) == (name, device):
            return name, device
    return None


# --- the machine ---------------------------------------------------------------------------------------


def check_space(out: Path, needed: int) -> None:
    """Raise StorageError if the folder is not writable, or its disk has less than ``needed`` bytes free."""
    folder, free = free_space(out)
    if needed > free:
        raise StorageError(
            f"{folder}: the zoo needs about {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; "
            "choose another disk with --out (with XDG_CACHE_HOME, if the zoo goes to an object store), "
            "or fewer models with --models"
        )


def check_images_fit(spec: ZooSpec, schema: Schema) -> None:
    """Raise StorageError if the images do not fit in memory: as float32, and again as the file that workers map."""
    images = spec.images
    count = images.train + images.validation + (images.test or 0)
    channels, height, width = schema.input_shape
    needed, limit = 2 * 4 * count * channels * height * width, memory_limit()
    if needed > limit:
        raise StorageError(
            f"images: {count:,} images of {channels} x {height} x {width} take at least {needed / 1e9:.1f} GB of "
            f"memory, but there are {limit / 1e9:.1f} GB; use fewer images, or smaller ones (images.size)"
        )


def stack_bytes(models: int, schema: Schema, width: int = 1) -> int:
    """Return the minimum of bytes of memory for the training of one stack.

    ``width`` models are trained side by side; a trainer with fewer takes as much memory.
    """
    rows = -(-models // width) * width
    return 4 * schema.size * (FLOATS_TRAINED * rows + FLOATS_STORED * models)


def workers_that_fit(asked: int | None, cores: int, largest: int, schema: Schema, width: int) -> int:
    """Return the number of workers: ``asked``, or one per core, or fewer if memory is short.

    ``largest`` is the number of models of the largest stack. Raises StorageError, with the numbers, if memory is too
    small for the workers asked for, or for a single one.
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
