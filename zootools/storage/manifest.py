"""The manifest of a finished zoo, zoo.json: its fields, and the checks of a manifest on its own.

A manifest may come from an untrusted author. It is validated field by field, and its fields are compared with each
other; `zootools.storage.manifest_checks` compares it with the specification.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, FailFast, Field, TypeAdapter, ValidationError

from zootools.errors import DamagedZooError, ZooNotFoundError
from zootools.filesystem.inside import is_file_inside
from zootools.hashing import canonical_json, pretty_json
from zootools.spec import MAX_CHECKPOINTS, MAX_MODELS, ImageFacts, Name
from zootools.spec.sections import DEFERRED, Section
from zootools.storage.build_state import FORMAT, IMPORT
from zootools.storage.file_rules import check_file_names, check_sizes
from zootools.storage.hashed_json import content_hash, read_hashed, validate
from zootools.storage.imported import Imported
from zootools.storage.records import (
    Digest,
    Fingerprint,
    LastEpoch,
    LayerSchema,
    ModelId,
    Plan,
    StackRecord,
    Stop,
)
from zootools.storage.tables import SPLITS
from zootools.storage.verified_files import FileInfo

UNHASHED = ("README.md", "build.json", "zoo.json")
"""Files that the manifest does not hash: the card is rendered again and compared, build.json may differ."""

PAGE = "view.html"
"""The optional interactive page."""

TABLE = re.compile(r"(data|metadata)/[^/]*\.parquet")
SHARD = re.compile(r"checkpoints/stack-\d{5}/epoch-\d{4,6}\.safetensors", re.ASCII)

MAX_STACK_MODELS = 4096
"""Maximal number of models in a stack that a reader accepts; builders plan smaller stacks."""

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
    histories: Annotated[list[Count], FailFast()] = Field(default_factory=list)
    """In an imported zoo: for each model the position of its epochs in `Imported.histories`; all 0 if empty."""

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
    images_sha256: Digest | None = None
    """None only in an imported zoo whose images are not known."""
    images: ImageFacts = Field(default_factory=ImageFacts)
    """Names of classes, mean and standard deviation, where the specification does not determine them."""
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
    imported: Imported | None = None
    """In the place of spec.yaml: where the models come from, if zootools did not train them."""
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
_FILES = TypeAdapter(Annotated[list[FileInfo], FailFast()], config=DEFERRED)


# --- reading -------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a finished zoo, checked field by field and against its own hash.

    Raises ZooNotFoundError if there is no zoo.json, DamagedZooError if a builder cannot have written it.
    """
    path = folder / "zoo.json"
    try:
        value = read_hashed(folder, "zoo.json")
    except FileNotFoundError:
        if is_file_inside(folder, "model.safetensors"):
            raise ZooNotFoundError(
                f"{folder}: holds a model, such as an encoder, and no zoo; `hf upload ORG/NAME {folder}` publishes it"
            ) from None
        begun = is_file_inside(folder, IMPORT)
        found = "an import that is not finished" if begun else "no finished zoo"
        raise ZooNotFoundError(f"{folder}: holds {found} (there is no zoo.json)") from None
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
    check_file_names(str(source), [*UNHASHED, *(name for name in files if not SHARD.fullmatch(name))])
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
        yield f"stacks: duplicate model {Counter(ids).most_common(1)[0][0]}"
    if counts.expected != len(ids):
        yield f"counts.expected: found {counts.expected}, but the stacks have {len(ids)} models"
    if sum(parts.values()) != counts.expected:
        yield f"counts: expected {counts.expected} is not the sum of {parts}"
    if counts.diverged != len(stopped):
        yield f"counts.diverged: found {counts.diverged}, but the stacks list {len(stopped)}"
    if splits.total != counts.checkpoints:
        yield f"splits: found {splits.total} checkpoints in total, counts.checkpoints is {counts.checkpoints}"
    if manifest.layer_schema.classes != manifest.classes:
        yield f"classes: found {manifest.classes}, but the last layer has {manifest.layer_schema.classes} outputs"
    yield from _stack_contradictions(manifest)
    used = [index for stack in stacks for index in stack.fingerprints]
    if list(dict.fromkeys(used)) != list(range(len(manifest.fingerprints))):
        yield f"fingerprints: there are {len(manifest.fingerprints)}, but the stacks use {sorted(set(used))!s:.80}"
    if len(set(map(canonical_json, manifest.fingerprints))) < len(manifest.fingerprints):
        yield "fingerprints: duplicate fingerprint"
    if ("spec.yaml" in manifest.files) == (manifest.imported is not None):
        yield f"files: spec.yaml {'is missing' if manifest.imported is None else 'is there, and also an import'}"
    if manifest.imported is None and manifest.images_sha256 is None:
        yield "images_sha256: is missing"
    if manifest.imported is not None and manifest.is_partial:
        yield "counts: an imported zoo has no failed or missing models"
    if hashed := sorted({*UNHASHED} & {*manifest.files}):
        yield f"files: {hashed[0]} must not be listed, because it is not hashed"


def _stack_contradictions(manifest: Manifest) -> Iterator[str]:
    for number, stack in enumerate(manifest.stacks):
        if unknown := set(stack.stopped) - set(stack.models):
            yield f"stacks.{number}.stopped: {min(unknown)} is not one of its models"
        if (last := max(stack.fingerprints)) >= len(manifest.fingerprints):
            yield f"stacks.{number}.fingerprint: found {last}, there are {len(manifest.fingerprints)}"
        epochs = [resumption.epoch for resumption in stack.resumed]
        if epochs != sorted(epochs) or max(epochs, default=-1) > stack.epoch:
            yield f"stacks.{number}.resumed: found the epochs {epochs}; expected increasing epochs up to {stack.epoch}"
        if stack.histories:
            yield from _history_contradictions(manifest, number)
        if stack.last_stop > stack.epoch:
            yield f"stacks.{number}.epoch: found {stack.epoch}, but a model stopped at {stack.last_stop}"


def _history_contradictions(manifest: Manifest, number: int) -> Iterator[str]:
    stack = manifest.stacks[number]
    known = len(manifest.imported.histories) if manifest.imported else 0
    if len(stack.histories) != len(stack.models) or max(stack.histories) >= known or not any(stack.histories):
        yield f"stacks.{number}.histories: expected the positions of {len(stack.models)} of {known} lists of epochs"
