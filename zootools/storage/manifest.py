"""The finished zoo: its manifest zoo.json, how it is written, and what a reader demands of one.

A manifest may come from a stranger. It is validated field by field, and everything that follows from the rest
(counts, names of files, which model stands where) is computed again and compared.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import FailFast, Field, TypeAdapter, ValidationError

from zootools.architectures import Schema, build_schema
from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError
from zootools.filesystem.inside import is_file_inside
from zootools.hashing import canonical_json
from zootools.images.shapes import image_shape
from zootools.spec import (
    MAX_CHECKPOINTS,
    MAX_MODELS,
    Cnn,
    DatasetImages,
    FolderImages,
    Mlp,
    Name,
    TetrisImages,
    ZooSpec,
    parse_stored_spec,
)
from zootools.spec.sections import Section
from zootools.spec.yaml_reader import MAX_BYTES as MAX_SPEC_BYTES
from zootools.spec.yaml_reader import parse_yaml
from zootools.storage.build_state import FORMAT, FileEntry, Plan, Resumption, StackRecord, Stop, ZooFolder
from zootools.storage.file_rules import check_file_names, check_sizes
from zootools.storage.hashed_json import read_sealed, require
from zootools.storage.shards import shard_name
from zootools.storage.tables import SPLITS, split_files
from zootools.storage.verified_files import CheckedFiles

UNHASHED = ("README.md", "build.json", "zoo.json")
"""Files that the manifest does not hash: the card is rendered again and compared, build.json may differ."""

PAGE = "view.html"
"""The interactive page, which a zoo may have."""

_PICTURES_AND_TEXT = re.compile(r".*\.(md|svg|png|html)")
"""What a manifest may name beside specification, shards and tables."""

TABLE = re.compile(r"(data|metadata)/[^/]*\.parquet")

MAX_STACK = 4096

Count = Annotated[int, Field(ge=0, le=10**9)]
ModelId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Accuracy = Annotated[float, Field(ge=0, le=1)]
Epoch = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,5})$")]


class _Counts(Section):
    expected: Annotated[int, Field(ge=1, le=MAX_MODELS)]
    ok: Count
    diverged: Count
    failed: Count
    missing: Count
    checkpoints: Annotated[int, Field(ge=0, le=MAX_CHECKPOINTS)]


class _Splits(Section):
    train: Count
    validation: Count
    test: Count


class _ManifestResumption(Resumption):
    fingerprint: Count  # type: ignore[assignment]


class _Stack(Section):
    models: Annotated[list[ModelId], FailFast(), Field(min_length=1, max_length=MAX_STACK)]
    epoch: Annotated[int, Field(ge=-1, le=100_000)]
    stopped: dict[ModelId, Stop]
    fingerprint: Count
    resumed: Annotated[list[_ManifestResumption], FailFast()] = Field(default_factory=list)


class _Manifest(Section):
    """The fields of zoo.json. The layer schema is checked by `Schema.from_json`, the files by `_FILES`.

    Lists fail fast: of a million wrong entries the first is enough, and each fault takes a kilobyte.
    """

    format: Literal[1]
    name: Name
    layer_schema: dict[str, Any] = Field(alias="schema")
    classes: Annotated[int, Field(ge=1, le=10_000)]
    images_sha256: Digest
    counts: _Counts
    splits: _Splits
    test_accuracy: Annotated[
        dict[Epoch, Annotated[list[Accuracy], FailFast(), Field(min_length=5, max_length=5)]], Field(max_length=100)
    ]
    fingerprints: Annotated[list[dict[str, Any]], FailFast(), Field(min_length=1, max_length=10_000)]
    stacks: Annotated[list[_Stack], FailFast(), Field(min_length=1, max_length=100_000)]
    files: dict[str, Any]
    sha256: Digest


_FILES = TypeAdapter(Annotated[list[FileEntry], FailFast()])
_SHARD = re.compile(r"checkpoints/stack-\d{5}/epoch-\d{4,6}\.safetensors", re.ASCII)


# --- reading -------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished zoo, checked field by field and against its own hash.

    Raises ZooNotFoundError when there is none, DamagedZooError when it is not what a builder writes.
    """
    path = folder / "zoo.json"
    try:
        value = read_sealed(folder, "zoo.json")
    except FileNotFoundError:
        raise ZooNotFoundError(f"{folder}: holds no finished zoo (there is no zoo.json)") from None
    if value.get("format") != FORMAT:
        raise DamagedZooError(f"{path}: format {value.get('format')!r}; this version of zootools reads {FORMAT}")
    require(_Manifest, value, str(path))
    files = value["files"]
    # The names are looked at first: they are part of what is said of an entry that is wrong.
    check_file_names(str(path), [*UNHASHED, *(name for name in files if not _SHARD.fullmatch(name))])
    _check_entries(files, str(path))
    check_sizes(str(path), {name: info["size"] for name, info in files.items()})
    try:
        for contradiction in _contradictions(value):
            raise DamagedZooError(contradiction)
    except DamagedZooError as error:
        raise DamagedZooError(f"{path}: {error}") from None
    return value


def _check_entries(files: dict[str, Any], source: str) -> None:
    try:
        _FILES.validate_python(list(files.values()))
    except ValidationError as error:
        detail = error.errors()[0]
        number, *fields = detail["loc"]
        place = ".".join(["files", list(files)[int(number)], *map(str, fields)])
        raise DamagedZooError(f"{source}: {place}: found {detail['input']!r:.80}; {detail['msg']}") from None


def _contradictions(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what one field of a manifest says against another, field first."""
    counts, stacks = manifest["counts"], manifest["stacks"]
    ids = [model for stack in stacks for model in stack["models"]]
    stopped = [model for stack in stacks for model in stack["stopped"]]
    parts = {name: counts[name] for name in ("ok", "diverged", "failed", "missing")}
    if len(set(ids)) < len(ids):
        yield f"stacks: the model {Counter(ids).most_common(1)[0][0]} stands there twice"
    if counts["expected"] != len(ids):
        yield f"counts.expected: found {counts['expected']}, but the stacks have {len(ids)} models"
    if sum(parts.values()) != counts["expected"]:
        yield f"counts: expected {counts['expected']} is not the sum of {parts}"
    if counts["diverged"] != len(stopped):
        yield f"counts.diverged: found {counts['diverged']}, but the stacks list {len(stopped)}"
    if sum(manifest["splits"].values()) != counts["checkpoints"]:
        yield f"splits: make {sum(manifest['splits'].values())} checkpoints, counts.checkpoints is not that"
    if Schema.from_json(manifest["schema"]).classes != manifest["classes"]:
        yield f"classes: found {manifest['classes']}, which is not the output of the last layer"
    for number, stack in enumerate(stacks):
        if unknown := set(stack["stopped"]) - set(stack["models"]):
            yield f"stacks.{number}.stopped: {min(unknown)} is not one of its models"
        indices = _fingerprints_of(stack)
        if max(indices) >= len(manifest["fingerprints"]):
            yield f"stacks.{number}.fingerprint: found {max(indices)}, there are {len(manifest['fingerprints'])}"
        epochs = [entry["epoch"] for entry in stack.get("resumed", ())]
        if epochs != sorted(epochs) or max(epochs, default=-1) > stack["epoch"]:
            yield f"stacks.{number}.resumed: after epochs {epochs}, found epoch {stack['epoch']} as the last one"
        if (last := max((stop["epoch"] for stop in stack["stopped"].values()), default=-1)) > stack["epoch"]:
            yield f"stacks.{number}.epoch: found {stack['epoch']}, but a model stopped at {last}"
    used = [index for stack in stacks for index in _fingerprints_of(stack)]
    if list(dict.fromkeys(used)) != list(range(len(manifest["fingerprints"]))):
        yield f"fingerprints: there are {len(manifest['fingerprints'])}, but the stacks use {sorted(set(used))!s:.80}"
    if len(set(map(canonical_json, manifest["fingerprints"]))) < len(manifest["fingerprints"]):
        yield "fingerprints: one is listed twice"
    if "spec.yaml" not in manifest["files"]:
        yield "files: spec.yaml is missing"
    if hashed := sorted({*UNHASHED} & {*manifest["files"]}):
        yield f"files: {hashed[0]} is named, which is not hashed"


def _fingerprints_of(stack: dict[str, Any]) -> list[int]:
    """Return the numbers of a stack's fingerprints, in the order in which `finish_zoo` gives them."""
    return [stack["fingerprint"], *(entry["fingerprint"] for entry in stack.get("resumed", ()))]


def stored_spec(folder: Path, manifest: dict[str, Any]) -> ZooSpec:
    """Return the specification of a finished zoo. Raises DamagedZooError when it is not the one that was stored."""
    path, files = folder / "spec.yaml", CheckedFiles(folder, manifest["files"])
    try:
        values, places = parse_yaml(files.read("spec.yaml", MAX_SPEC_BYTES).decode(), str(path))
        if not isinstance(values, dict):
            raise SpecError(f"{path}: expected a mapping of keys")
        return parse_stored_spec(values, str(path), places)
    except (SpecError, UnicodeDecodeError) as error:
        raise DamagedZooError(f"{path}: is not a specification of a zoo ({error})") from error


def checkpoint_keys(manifest: dict[str, Any], spec: ZooSpec) -> dict[str, Any]:
    """Return which checkpoint lies where, as the manifest and the specification decide it. Raises DamagedZooError.

    The columns ``model_id`` (list), ``epoch``, ``stack``, ``row`` (int64 ``[checkpoints]``), ordered by stack,
    epoch and row: every kept epoch of every model up to the one at which it stopped, or which its stack has reached.
    """
    unfinished = [number for number, stack in enumerate(manifest["stacks"]) if _is_open(stack, spec)]
    models = sum(len(manifest["stacks"][n]["models"]) - len(manifest["stacks"][n]["stopped"]) for n in unfinished)
    if models != manifest["counts"]["failed"] + manifest["counts"]["missing"]:
        field = f"stacks.{unfinished[0]}.epoch" if unfinished else "counts.missing"
        raise DamagedZooError(f"{spec.name}: {field}: {models} models are not trained to the end, counts say otherwise")
    ids, parts = list[str](), [np.empty((3, 0), np.int64)]
    kept = spec.training.kept_epochs
    for number, stack in enumerate(manifest["stacks"]):
        stops = {model: info["epoch"] for model, info in stack["stopped"].items()}
        for epoch in kept:
            alive = [model for model in stack["models"] if stops.get(model, epoch + 1) > epoch]
            if not alive or epoch > stack["epoch"]:
                break
            ids += alive
            rows = np.arange(len(alive), dtype=np.int64)
            parts.append(np.stack([np.full_like(rows, epoch), np.full_like(rows, number), rows]))
            if len(ids) > manifest["counts"]["checkpoints"]:
                raise DamagedZooError(f"{spec.name}: counts.checkpoints: its stacks have more than these")
    if len(ids) < manifest["counts"]["checkpoints"]:
        raise DamagedZooError(f"{spec.name}: counts.checkpoints: its stacks have {len(ids)}")
    return {"model_id": ids, **dict(zip(("epoch", "stack", "row"), np.concatenate(parts, axis=1), strict=True))}


def _is_open(stack: dict[str, Any], spec: ZooSpec) -> bool:
    """Whether a stack was not trained to the end."""
    return bool(stack["epoch"] < spec.training.epochs and len(stack["stopped"]) < len(stack["models"]))


def is_partial(manifest: dict[str, Any]) -> bool:
    """Whether some models of a zoo are not trained to the end."""
    return bool(manifest["counts"]["failed"] + manifest["counts"]["missing"])


def check_against_spec(manifest: dict[str, Any], spec: ZooSpec, source: str) -> dict[str, Any]:
    """Compare a manifest with its specification, and return `checkpoint_keys`. Raises DamagedZooError.

    The files that it names must be the specification, exactly the shards in which its checkpoints lie, exactly the
    tables of so many checkpoints, and nothing else but pictures and text.
    """
    if manifest["name"] != spec.name:
        raise DamagedZooError(f"{source}: name: found {manifest['name']!r}, spec.yaml says {spec.name!r}")
    if fault := schema_fault(Schema.from_json(manifest["schema"]), spec):
        raise DamagedZooError(f"{source}: schema: {fault}")
    for number, stack in enumerate(manifest["stacks"]):
        stops = [stop["epoch"] for stop in stack["stopped"].values()]
        whole = len(stops) == len(stack["models"])
        if stack["epoch"] > spec.training.epochs or (whole and stack["epoch"] != max(stops)):
            raise DamagedZooError(
                f"{source}: stacks.{number}.epoch: found {stack['epoch']}, "
                f"expected {max(stops) if whole else f'at most {spec.training.epochs}'}"
            )
    keys = checkpoint_keys(manifest, spec)
    named = {name for name in manifest["files"] if name.startswith("checkpoints/")}
    if difference := sorted(shard_rows(keys).keys() ^ named):
        verb = "is not a shard of these models" if difference[0] in named else "is missing"
        raise DamagedZooError(f"{source}: files: {difference[0]} {verb} ({len(difference)} such names)")
    return keys


def check_tables(manifest: dict[str, Any], source: str) -> None:
    """Raise DamagedZooError for the first of `table_set_faults`."""
    for name, fault in table_set_faults(manifest):
        raise DamagedZooError(f"{source}: files: {name} {fault}")


def table_set_faults(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the tables that a manifest should name and does not, and all that it names beside what a zoo consists of.

    The number of checkpoints in each split decides which tables there are.
    """
    schema = Schema.from_json(manifest["schema"])
    named = {name for name in manifest["files"] if name != "spec.yaml" and not name.startswith("checkpoints/")}
    for split in SPLITS:
        count = manifest["splits"][split]
        for name in split_files(schema, split, count):
            if name not in named:
                yield name, f"is missing: the split {split} has {count} checkpoints"
            named.discard(name)
    for name in sorted(named):
        if name.startswith(("data/", "metadata/")) or not _PICTURES_AND_TEXT.fullmatch(name):
            yield name, "is not a file of a zoo with so many checkpoints in each split"


def schema_fault(schema: Schema, spec: ZooSpec) -> str | None:
    """Return in words why a layer schema is not that of a specification's models, or None.

    How many classes a folder of pictures has is known where it lies only. Of images and architectures that only another
    version knows the schema itself is all that is known.
    """
    images, shape, classes = spec.images, schema.input_shape, schema.classes
    try:
        if isinstance(images, TetrisImages | DatasetImages):
            shape, classes = image_shape(images)
        elif isinstance(images, FolderImages):
            shape = (1 if images.greyscale else 3, images.size or shape[1], images.size or shape[2])
        if not isinstance(spec.architecture, Mlp | Cnn):
            return None
        expected = build_schema(spec.architecture, shape, classes)
    except SpecError as error:
        return str(error)
    if schema == expected:
        return None
    pairs = zip(schema.layers, expected.layers, strict=False)
    first = next((f"layer {a.name}: found {a}, expected {b}" for a, b in pairs if a != b), None)
    return first or f"found {schema!s:.400}, expected {expected!s:.400}"


def shard_rows(keys: dict[str, Any]) -> dict[str, int]:
    """Return the shards in which checkpoints lie (`checkpoint_keys`), and how many each has."""
    # Rows are ordered by stack and epoch: a shard begins wherever one of them changes.
    first = np.diff(keys["stack"], prepend=-1) | np.diff(keys["epoch"], prepend=-1)
    starts = np.flatnonzero(first)
    names = map(shard_name, keys["stack"][starts].tolist(), keys["epoch"][starts].tolist())
    return dict(zip(names, np.diff(starts, append=len(keys["stack"])).tolist(), strict=True))


def reopen(zoo: ZooFolder, manifest: dict[str, Any], spec: ZooSpec) -> Plan:
    """Write the records of a finished zoo again, and return its plan: to let it grow, to finish or to repair it."""
    plan, records = reopened(zoo, manifest, spec)
    for number, record in enumerate(records):
        zoo.write_record(number, record)
    return plan


def reopened(zoo: ZooFolder, manifest: dict[str, Any], spec: ZooSpec) -> tuple[Plan, list[StackRecord]]:
    """Return plan and records of a finished zoo, as they were before it was finished; nothing is written.

    A stack of which a shard is missing, or that was not trained to the end, will be trained again; what remains of it
    stays readable meanwhile.
    """
    records = []
    for number, stack in enumerate(manifest["stacks"]):
        prefix = f"checkpoints/stack-{number:05d}/"
        shards = {name: info for name, info in manifest["files"].items() if name.startswith(prefix)}
        present = {name: info for name, info in shards.items() if is_file_inside(zoo.path, name)}
        fingerprints = manifest["fingerprints"]
        resumed = [{**entry, "fingerprint": fingerprints[entry["fingerprint"]]} for entry in stack.get("resumed", ())]
        record = StackRecord(
            fingerprints[stack["fingerprint"]], stack["epoch"], True, None, resumed, stack["stopped"], present
        )
        if len(present) < len(shards) or _is_open(stack, spec):
            record = StackRecord(record.fingerprint, shards=present)
        records.append(record)
    stacks = [stack["models"] for stack in manifest["stacks"]]
    return Plan(spec, Schema.from_json(manifest["schema"]), manifest["images_sha256"], stacks), records
