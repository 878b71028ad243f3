"""The finished zoo: its manifest zoo.json, how it is written, and what a reader demands of one.

A manifest may come from a stranger. It is validated field by field, and everything that follows from the rest
(counts, names of files, which model stands where) is computed again and compared.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import ConfigDict, FailFast, Field, TypeAdapter, ValidationError

from zootools.architectures import Schema, build_schema
from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError
from zootools.filesystem.inside import is_file_inside
from zootools.hashing import canonical_json, pretty_json
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
from zootools.storage.build_state import FORMAT, ZooFolder
from zootools.storage.file_rules import check_file_names, check_sizes
from zootools.storage.hashed_json import content_hash, read_hashed, validate
from zootools.storage.records import (
    Digest,
    Fingerprint,
    LastEpoch,
    LayerSchema,
    ModelId,
    Plan,
    Resumption,
    StackRecord,
    Stop,
)
from zootools.storage.shards import shard_name
from zootools.storage.tables import SPLITS, split_files
from zootools.storage.verified_files import FileInfo, VerifiedFiles

UNHASHED = ("README.md", "build.json", "zoo.json")
"""Files that the manifest does not hash: the card is rendered again and compared, build.json may differ."""

PAGE = "view.html"
"""The interactive page, which a zoo may have."""

_PICTURES_AND_TEXT = re.compile(r".*\.(md|svg|png|html)")
"""What a manifest may name beside specification, shards and tables."""

TABLE = re.compile(r"(data|metadata)/[^/]*\.parquet")

MAX_STACK_MODELS = 4096
"""Models of a stack that a reader accepts; builders plan smaller ones."""

Count = Annotated[int, Field(ge=0, le=10**9)]
Accuracy = Annotated[float, Field(ge=0, le=1)]
EpochKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,5})$")]
"""An epoch as the key of a JSON object."""


class ModelCounts(Section):
    """The number of models by outcome: expected = ok + diverged + failed + missing."""

    expected: Annotated[int, Field(ge=1, le=MAX_MODELS)]
    ok: Count
    """Models whose last epoch is stored."""
    diverged: Count
    failed: Count
    """Models of stacks that the last session gave up."""
    missing: Count
    """Models that are not trained to the end."""


class Counts(ModelCounts):
    """The number of models by outcome, and of checkpoints."""

    checkpoints: Annotated[int, Field(ge=0, le=MAX_CHECKPOINTS)]


class Splits(Section):
    """The number of checkpoints in each split."""

    train: Count
    validation: Count
    test: Count

    @property
    def total(self) -> int:
        """The number of checkpoints in all splits."""
        return self.train + self.validation + self.test

    def by_name(self) -> dict[str, int]:
        """Return the number of checkpoints by the name of the split, in the order of `SPLITS`."""
        return {split: getattr(self, split) for split in SPLITS}


@dataclass(frozen=True, slots=True)
class NumberedResumption:
    """A `Resumption` whose fingerprint is a position in `Manifest.fingerprints`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epoch: Annotated[int, Field(ge=-1, le=100_000, strict=True)]
    fingerprint: Annotated[int, Field(ge=0, le=10**9, strict=True)]


class Stack(Section):
    """The models of one stack, and how far they are trained."""

    models: Annotated[list[ModelId], FailFast(), Field(min_length=1, max_length=MAX_STACK_MODELS)]
    """In the order of the rows of its shards."""
    epoch: LastEpoch
    stopped: dict[ModelId, Stop]
    """The diverged models."""
    fingerprint: Count
    """Position in `Manifest.fingerprints` of the one under which the training began."""
    resumed: Annotated[list[NumberedResumption], FailFast()] = Field(default_factory=list)

    @property
    def fingerprints(self) -> list[int]:
        """The positions of all its fingerprints, in the order in which `finish_zoo` numbers them."""
        return [self.fingerprint, *(resumption.fingerprint for resumption in self.resumed)]

    @property
    def last_stop(self) -> int:
        """The last epoch at which one of its models diverged; -1 if none did."""
        return max((stop.epoch for stop in self.stopped.values()), default=-1)

    @property
    def all_stopped(self) -> bool:
        """Whether all of its models diverged."""
        return len(self.stopped) == len(self.models)

    def is_open(self, epochs: int) -> bool:
        """Whether the stack was not trained to the end, which is ``epochs`` epochs."""
        return self.epoch < epochs and not self.all_stopped


class Manifest(Section):
    """The content of zoo.json, the manifest of a finished zoo.

    Lists fail fast: of a million wrong entries the first is enough, and each fault takes a kilobyte.
    """

    format: Literal[1]
    name: Name
    layer_schema: LayerSchema = Field(alias="schema")
    classes: Annotated[int, Field(ge=1, le=10_000)]
    images_sha256: Digest
    counts: Counts
    splits: Splits
    test_accuracy: Annotated[
        dict[EpochKey, Annotated[list[Accuracy], FailFast(), Field(min_length=5, max_length=5)]], Field(max_length=100)
    ]
    """Minimum, quartiles and maximum of the test accuracy at some epochs (`tables.accuracy_summary`)."""
    fingerprints: Annotated[list[Fingerprint], FailFast(), Field(min_length=1, max_length=10_000)]
    stacks: Annotated[list[Stack], FailFast(), Field(min_length=1, max_length=100_000)]
    files: dict[str, FileInfo]
    """All files of the zoo by name, except `UNHASHED`."""
    sha256: Digest = "0" * 64
    """The `content_hash` of all other fields; see `with_hash`."""

    @property
    def is_partial(self) -> bool:
        """Whether some models are not trained to the end."""
        return self.counts.failed + self.counts.missing > 0

    @property
    def stopped(self) -> dict[str, Stop]:
        """The diverged models of all stacks."""
        return {model: stop for stack in self.stacks for model, stop in stack.stopped.items()}

    def dump(self) -> dict[str, Any]:
        """Return plain values, as zoo.json holds them."""
        return self.model_dump(by_alias=True, exclude_defaults=True)

    def with_hash(self) -> Self:
        """Return the manifest with the sha256 of its content."""
        return self.model_copy(update={"sha256": content_hash(self.dump())})

    def to_bytes(self) -> bytes:
        """Return the bytes of zoo.json."""
        return pretty_json(self.dump())


def count_outcomes(plan: Plan, records: Sequence[StackRecord | None]) -> ModelCounts:
    """Return the number of models by outcome, given the record of every stack; None if nothing is committed of it."""
    found = Counter[str]()
    for ids, record in zip(plan.stacks, records, strict=True):
        diverged = len(record.stopped) if record else 0
        found["diverged"] += diverged
        found[record.outcome if record else "missing"] += len(ids) - diverged
    outcomes = {name: found[name] for name in ("ok", "diverged", "failed", "missing")}
    return ModelCounts(expected=sum(map(len, plan.stacks)), **outcomes)


_MANIFEST = TypeAdapter(Manifest)
_FILES = TypeAdapter(Annotated[list[FileInfo], FailFast()])
_SHARD = re.compile(r"checkpoints/stack-\d{5}/epoch-\d{4,6}\.safetensors", re.ASCII)


# --- reading -------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a finished zoo, checked field by field and against its own hash.

    Raises ZooNotFoundError when there is none, DamagedZooError when it is not what a builder writes.
    """
    path = folder / "zoo.json"
    try:
        value = read_hashed(folder, "zoo.json")
    except FileNotFoundError:
        raise ZooNotFoundError(f"{folder}: holds no finished zoo (there is no zoo.json)") from None
    if value.get("format") != FORMAT:
        raise DamagedZooError(f"format {value.get('format')!r}; this version of zootools reads {FORMAT}", path=path)
    manifest = validate(_MANIFEST, {**value, "files": _parse_files(value.get("files"), path)}, path)
    check_sizes(str(path), {name: info.size for name, info in manifest.files.items()})
    for contradiction in _contradictions(manifest):
        raise DamagedZooError(contradiction, path=path)
    return manifest


def _parse_files(files: Any, source: Path) -> Any:
    """Return the files of a manifest, each validated; what is not an object is returned as it is.

    `FailFast` is for lists only, so the entries are validated as one. The names are checked first, because the message
    about a wrong entry contains its name.
    """
    if not isinstance(files, dict):
        return files
    check_file_names(str(source), [*UNHASHED, *(name for name in files if not _SHARD.fullmatch(name))])
    try:
        return dict(zip(files, _FILES.validate_python(list(files.values())), strict=True))
    except ValidationError as error:
        detail = error.errors()[0]
        number, *fields = detail["loc"]
        place = ".".join(["files", list(files)[int(number)], *map(str, fields)])
        raise DamagedZooError(f"{place}: found {detail['input']!r:.80}; {detail['msg']}", path=source) from None


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield the contradictions between fields of a manifest, the name of the field first."""
    counts, stacks, splits = manifest.counts, manifest.stacks, manifest.splits
    ids = [model for stack in stacks for model in stack.models]
    stopped = [model for stack in stacks for model in stack.stopped]
    parts = {"ok": counts.ok, "diverged": counts.diverged, "failed": counts.failed, "missing": counts.missing}
    if len(set(ids)) < len(ids):
        yield f"stacks: the model {Counter(ids).most_common(1)[0][0]} stands there twice"
    if counts.expected != len(ids):
        yield f"counts.expected: found {counts.expected}, but the stacks have {len(ids)} models"
    if sum(parts.values()) != counts.expected:
        yield f"counts: expected {counts.expected} is not the sum of {parts}"
    if counts.diverged != len(stopped):
        yield f"counts.diverged: found {counts.diverged}, but the stacks list {len(stopped)}"
    if splits.total != counts.checkpoints:
        yield f"splits: make {splits.total} checkpoints, counts.checkpoints is not that"
    if manifest.layer_schema.classes != manifest.classes:
        yield f"classes: found {manifest.classes}, which is not the output of the last layer"
    yield from _stack_contradictions(manifest)
    used = [index for stack in stacks for index in stack.fingerprints]
    if list(dict.fromkeys(used)) != list(range(len(manifest.fingerprints))):
        yield f"fingerprints: there are {len(manifest.fingerprints)}, but the stacks use {sorted(set(used))!s:.80}"
    if len(set(map(canonical_json, manifest.fingerprints))) < len(manifest.fingerprints):
        yield "fingerprints: one is listed twice"
    if "spec.yaml" not in manifest.files:
        yield "files: spec.yaml is missing"
    if hashed := sorted({*UNHASHED} & {*manifest.files}):
        yield f"files: {hashed[0]} is named, which is not hashed"


def _stack_contradictions(manifest: Manifest) -> Iterator[str]:
    for number, stack in enumerate(manifest.stacks):
        if unknown := set(stack.stopped) - set(stack.models):
            yield f"stacks.{number}.stopped: {min(unknown)} is not one of its models"
        if (last := max(stack.fingerprints)) >= len(manifest.fingerprints):
            yield f"stacks.{number}.fingerprint: found {last}, there are {len(manifest.fingerprints)}"
        epochs = [resumption.epoch for resumption in stack.resumed]
        if epochs != sorted(epochs) or max(epochs, default=-1) > stack.epoch:
            yield f"stacks.{number}.resumed: after epochs {epochs}, found epoch {stack.epoch} as the last one"
        if stack.last_stop > stack.epoch:
            yield f"stacks.{number}.epoch: found {stack.epoch}, but a model stopped at {stack.last_stop}"


def stored_spec(folder: Path, manifest: Manifest) -> ZooSpec:
    """Return the specification of a finished zoo. Raises DamagedZooError when it is not the one that was stored."""
    path, files = folder / "spec.yaml", VerifiedFiles(folder, manifest.files)
    try:
        values, places = parse_yaml(files.read("spec.yaml", MAX_SPEC_BYTES).decode(), str(path))
        if not isinstance(values, dict):
            raise SpecError(f"{path}: expected a mapping of keys")
        return parse_stored_spec(values, str(path), places)
    except (SpecError, UnicodeDecodeError) as error:
        raise DamagedZooError(f"is not a specification of a zoo ({error})", path=path) from error


def checkpoint_keys(manifest: Manifest, spec: ZooSpec, source: Path) -> dict[str, Any]:
    """Return which checkpoint lies where, as the manifest and the specification decide it. Raises DamagedZooError.

    The columns ``model_id`` (list), ``epoch``, ``stack``, ``row`` (int64 ``[checkpoints]``), ordered by stack,
    epoch and row: every kept epoch of every model up to the one at which it stopped, or which its stack has reached.
    """
    counts, epochs = manifest.counts, spec.training.epochs
    unfinished = {number: stack for number, stack in enumerate(manifest.stacks) if stack.is_open(epochs)}
    models = sum(len(stack.models) - len(stack.stopped) for stack in unfinished.values())
    if models != counts.failed + counts.missing:
        field = f"stacks.{min(unfinished)}.epoch" if unfinished else "counts.missing"
        raise DamagedZooError(f"{field}: {models} models are not trained to the end, counts say otherwise", path=source)
    ids, parts = list[str](), [np.empty((3, 0), np.int64)]
    kept = spec.training.kept_epochs
    for number, stack in enumerate(manifest.stacks):
        stops = {model: stop.epoch for model, stop in stack.stopped.items()}
        for epoch in kept:
            alive = [model for model in stack.models if stops.get(model, epoch + 1) > epoch]
            if not alive or epoch > stack.epoch:
                break
            ids += alive
            rows = np.arange(len(alive), dtype=np.int64)
            parts.append(np.stack([np.full_like(rows, epoch), np.full_like(rows, number), rows]))
            if len(ids) > counts.checkpoints:
                raise DamagedZooError("counts.checkpoints: its stacks have more than these", path=source)
    if len(ids) < counts.checkpoints:
        raise DamagedZooError(f"counts.checkpoints: its stacks have {len(ids)}", path=source)
    return {"model_id": ids, **dict(zip(("epoch", "stack", "row"), np.concatenate(parts, axis=1), strict=True))}


def check_against_spec(manifest: Manifest, spec: ZooSpec, source: Path) -> dict[str, Any]:
    """Compare a manifest with its specification, and return `checkpoint_keys`. Raises DamagedZooError.

    The files that it names must be the specification, exactly the shards in which its checkpoints lie, exactly the
    tables of so many checkpoints, and nothing else but pictures and text.
    """
    if manifest.name != spec.name:
        raise DamagedZooError(f"name: found {manifest.name!r}, spec.yaml says {spec.name!r}", path=source)
    if fault := schema_fault(manifest.layer_schema, spec):
        raise DamagedZooError(f"schema: {fault}", path=source)
    for number, stack in enumerate(manifest.stacks):
        if stack.epoch > spec.training.epochs or (stack.all_stopped and stack.epoch != stack.last_stop):
            raise DamagedZooError(
                f"stacks.{number}.epoch: found {stack.epoch}, "
                f"expected {stack.last_stop if stack.all_stopped else f'at most {spec.training.epochs}'}",
                path=source,
            )
    keys = checkpoint_keys(manifest, spec, source)
    named = {name for name in manifest.files if name.startswith("checkpoints/")}
    if difference := sorted(shard_rows(keys).keys() ^ named):
        verb = "is not a shard of these models" if difference[0] in named else "is missing"
        raise DamagedZooError(f"files: {difference[0]} {verb} ({len(difference)} such names)", path=source)
    return keys


def check_tables(manifest: Manifest, source: Path) -> None:
    """Raise DamagedZooError for the first of `table_set_faults`."""
    for name, fault in table_set_faults(manifest):
        raise DamagedZooError(f"files: {name} {fault}", path=source)


def table_set_faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the tables that a manifest should name and does not, and all that it names beside what a zoo consists of.

    The number of checkpoints in each split decides which tables there are.
    """
    named = {name for name in manifest.files if name != "spec.yaml" and not name.startswith("checkpoints/")}
    for split, count in manifest.splits.by_name().items():
        for name in split_files(manifest.layer_schema, split, count):
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


def reopen(zoo: ZooFolder, manifest: Manifest, spec: ZooSpec) -> Plan:
    """Write the records of a finished zoo again, and return its plan: to let it grow, to finish or to repair it."""
    plan, records = reopened(zoo, manifest, spec)
    for number, record in enumerate(records):
        zoo.write_record(number, record)
    return plan


def reopened(zoo: ZooFolder, manifest: Manifest, spec: ZooSpec) -> tuple[Plan, list[StackRecord]]:
    """Return plan and records of a finished zoo, as they were before it was finished; nothing is written.

    A stack of which a shard is missing, or that was not trained to the end, will be trained again; what remains of it
    stays readable meanwhile.
    """
    records = []
    for number, stack in enumerate(manifest.stacks):
        prefix = f"checkpoints/stack-{number:05d}/"
        shards = {name: info for name, info in manifest.files.items() if name.startswith(prefix)}
        present = {name: info for name, info in shards.items() if is_file_inside(zoo.path, name)}
        fingerprint, *later = (manifest.fingerprints[index] for index in stack.fingerprints)
        if len(present) < len(shards) or stack.is_open(spec.training.epochs):
            records.append(StackRecord(fingerprint=fingerprint, shards=present))
            continue
        resumed = [Resumption(r.epoch, other) for r, other in zip(stack.resumed, later, strict=True)]
        records.append(
            StackRecord(
                fingerprint=fingerprint,
                epoch=stack.epoch,
                done=True,
                resumed=resumed,
                stopped=stack.stopped,
                shards=present,
            )
        )
    stacks = [stack.models for stack in manifest.stacks]
    return Plan(spec, manifest.layer_schema, manifest.images_sha256, stacks), records
