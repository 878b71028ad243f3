"""The zoo folder while it is built: the plan, the records of its stacks, and what they say of every model.

``.work/`` holds what a resume needs and is gone when the zoo is finished: ``plan.json`` (specification,
layer schema, which models are in which stack) and one record per stack. The records are the journal of the
build: a shard counts when the record of its stack names it with its size and sha256, and only then. Shards
are written before the record that names them, so a builder that dies loses at most the epoch in progress.

A record is one line of canonical JSON with its own sha256, then weights and optimizer state of the last
whole epoch as safetensors, whose size and sha256 stand in the line. Whoever resumes checks both.
"""

import hashlib
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import Field, ValidationError

from zootools.architectures import Schema
from zootools.checked import FileInfo, unreadable
from zootools.errors import DamagedZooError
from zootools.files import check_held, durable_file, open_inside, pretty_json, remove_durably
from zootools.population import ModelConfig, canonical_json, expand
from zootools.sealed import MAX_BYTES, open_seal, read_sealed, seal
from zootools.sections import Section
from zootools.shards import shard_name
from zootools.spec import ZooSpec, parse_spec

FORMAT = 1


class FileEntry(Section):
    """What records and manifests say of a file."""

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Stop(Section):
    """When and why a model diverged."""

    epoch: Annotated[int, Field(ge=0, le=100_000)]
    reason: Annotated[str, Field(max_length=200)]


class Resumption(Section):
    """After which epoch a stack went on under another numeric fingerprint, and which."""

    epoch: Annotated[int, Field(ge=-1, le=100_000)]
    fingerprint: dict[str, Any]


class _RecordLine(Section):
    """What the first line of a record may hold."""

    fingerprint: dict[str, Any]
    epoch: Annotated[int, Field(ge=-1, le=100_000)]
    done: bool
    failed: Annotated[str, Field(max_length=200)] | None
    resumed: list[Resumption]
    stopped: dict[str, Stop]
    shards: dict[str, FileEntry]
    state: FileEntry
    sha256: str


@dataclass
class StackRecord:
    """How far one stack is. ``epoch`` is the last whole one, -1 before the initialisation is stored.

    After a repair it is -1 although there are shards: the stack is trained again, and writes them again.
    """

    fingerprint: dict[str, Any]
    epoch: int = -1
    done: bool = False
    failed: str | None = None
    """Why the last session gave the stack up; the next one tries it again."""
    resumed: list[dict[str, Any]] = field(default_factory=list)
    """Where the stack went on under another fingerprint (`Resumption`)."""
    stopped: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Diverged models: the epoch and the reason."""
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Committed shards by path: size and sha256."""

    @property
    def standing(self) -> str:
        """How the stack's models stand, if they have not diverged: ok, failed or missing."""
        return "ok" if self.done else "failed" if self.failed else "missing"

    @property
    def last_fingerprint(self) -> dict[str, Any]:
        """The numeric fingerprint under which the last whole epoch was trained."""
        return self.resumed[-1]["fingerprint"] if self.resumed else self.fingerprint


@dataclass(frozen=True)
class Epoch:
    """One epoch of a stack as it was computed: all that its commit writes, and all that a later start needs."""

    number: int
    done: bool
    """Whether it is the stack's last one."""
    stopped: dict[str, dict[str, Any]]
    """Diverged models so far: the epoch and the reason."""
    shard: bytes | None
    """None where the epoch is not kept, or no model is left."""
    state: bytes
    """Weights and optimizer state as safetensors, ``[models, parameters]`` each; empty after the last epoch."""


@dataclass(frozen=True)
class Plan:
    """Which models a zoo consists of, and which stack trains which."""

    spec: ZooSpec
    schema: Schema
    images_sha256: str
    stacks: list[list[str]]

    @cached_property
    def _models(self) -> dict[str, ModelConfig]:
        return {model.model_id: model for model in expand(self.spec)}

    def models(self) -> dict[str, ModelConfig]:
        """Return the configurations of all models by id."""
        return self._models


class ZooFolder:
    """Paths and records of one zoo folder.

    Args:
        path: the folder.
        lock: descriptor of the lock that this process holds on it; only readers go without.
    """

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        self.work = path / ".work"
        self._lock = lock

    @property
    def manifest(self) -> Path:
        """zoo.json: written last, so its presence means that the zoo is whole."""
        return self.path / "zoo.json"

    @property
    def lock(self) -> Path:
        """The file that a builder locks."""
        return self.work / "lock"

    @property
    def plan(self) -> Path:
        """The plan; while there is one the zoo is being built."""
        return self.work / "plan.json"

    @property
    def images(self) -> Path:
        """The image tensors that the workers map."""
        return self.work / "images.safetensors"

    # --- writing -----------------------------------------------------------------------------------------

    def fence(self) -> None:
        """Raise BusyError or StorageError if this process must not write any more (`check_held`).

        Called before every file becomes visible: a builder that was stopped, and whose lock file somebody
        removed to let another one begin, finds out here when it wakes. Called every second or so as well, for a
        folder that is moved or removed while all workers are busy.
        """
        if self._lock is not None:
            check_held(self.lock, self._lock)

    def file(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write one file of the zoo as a stream (see `durable_file`)."""
        return durable_file(self.path / name, self.path, self.fence)

    def write(self, name: str, data: bytes) -> FileInfo:
        """Write one file of the zoo; return what a record or manifest says of it."""
        with self.file(name) as file:
            file.write(data)
        return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    # --- plan --------------------------------------------------------------------------------------------

    def read_plan(self) -> Plan | None:
        """Return the plan of an unfinished build, or None. Raises DamagedZooError."""
        try:
            value = read_sealed(self.path, ".work/plan.json")
        except FileNotFoundError:
            return None
        try:
            spec = parse_spec(value["spec"], str(self.plan))
            schema = Schema.from_json(value["schema"])
            stacks = [[str(model) for model in stack] for stack in value["stacks"]]
            return Plan(spec, schema, str(value["images_sha256"]), stacks)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedZooError(f"{self.plan}: is no plan of a zoo ({error})") from error

    def write_plan(self, plan: Plan) -> None:
        """Store the plan."""
        value = {
            "format": FORMAT,
            "spec": plan.spec.dump(),
            "schema": plan.schema.to_json(),
            "images_sha256": plan.images_sha256,
            "stacks": plan.stacks,
        }
        self.write(".work/plan.json", pretty_json(seal(value)))

    # --- records -----------------------------------------------------------------------------------------

    def record_name(self, stack: int) -> str:
        """Return the name of a stack's record inside the zoo."""
        return f".work/stack-{stack:05d}.record"

    def read_record(self, stack: int) -> StackRecord | None:
        """Return the record of a stack without its tensors, or None when nothing of it is committed."""
        try:
            with open_inside(self.path, self.record_name(stack)) as file:
                return self._parse_record(stack, file)[0]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedZooError(f"{self.path}: {self.record_name(stack)}: {unreadable(error)}") from error

    def state_bytes(self, stack: int) -> bytes:
        """Return the weights and optimizer state in a stack's record (`Epoch.state`), held against their sha256.

        Raises DamagedZooError when they are not what was stored.
        """
        name = self.record_name(stack)
        try:
            with open_inside(self.path, name) as file:
                _, state = self._parse_record(stack, file)
                data = file.read(state["size"] + 1)
        except OSError as error:
            raise DamagedZooError(f"{self.path}: {name}: {unreadable(error)}") from error
        if len(data) != state["size"] or hashlib.sha256(data).hexdigest() != state["sha256"]:
            raise DamagedZooError(f"{self.path}: {name}: its weights and optimizer state have changed (sha256)")
        return data

    def record_bytes(self, stack: int) -> tuple[StackRecord, bytes] | None:
        """Return the record of a stack and all the bytes of its file, read once; None when there is none."""
        name = self.record_name(stack)
        try:
            with open_inside(self.path, name) as file:
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedZooError(f"{self.path}: {name}: {unreadable(error)}") from error
        return self._parse_record(stack, BytesIO(data))[0], data

    def _parse_record(self, stack: int, file: BinaryIO) -> tuple[StackRecord, FileInfo]:
        source = f"{self.path}: {self.record_name(stack)}"
        line = file.readline(MAX_BYTES)
        value = open_seal(line, source)
        try:
            _RecordLine.model_validate_json(line)
        except ValidationError as error:
            detail = error.errors()[0]
            place = ".".join(map(str, detail["loc"]))
            raise DamagedZooError(f"{source}: {place}: {detail['msg'].lower()}") from None
        if line != _record_line(value):
            raise DamagedZooError(f"{source}: its bytes are not those that its content makes")
        record = StackRecord(**{key: item for key, item in value.items() if key not in ("state", "sha256")})
        for name in record.shards:
            if name != shard_name(stack, epoch_of(name)):
                raise DamagedZooError(f"{source}: names {name!r}, which is no shard of this stack")
        return record, value["state"]

    def write_record(self, stack: int, record: StackRecord, state: bytes = b"") -> None:
        """Store a stack's record; this is what commits its shards."""
        info = {"size": len(state), "sha256": hashlib.sha256(state).hexdigest()}
        with self.file(self.record_name(stack)) as file:
            file.write(_record_line(seal({**asdict(record), "state": info})))
            file.write(state)

    def mark_failed(self, stack: int, reason: str, fingerprint: dict[str, Any]) -> None:
        """Note that a session gave a stack up; what it had is kept."""
        record = self.read_record(stack)
        state = self.state_bytes(stack) if record else b""
        record = record or StackRecord(fingerprint)
        record.failed = reason
        self.write_record(stack, record, state)

    def restart_stack(self, stack: int, record: StackRecord) -> None:
        """Have a stack trained again from its beginning; the shards that ``record`` names stay readable."""
        self.write_record(stack, StackRecord(record.fingerprint, shards=record.shards))

    def begin_stack(self, stack: int, fingerprint: dict[str, Any]) -> StackRecord:
        """Return the record of a stack that is trained from now on under a numeric fingerprint; nothing is written."""
        record = self.read_record(stack)
        if record is None or (record.epoch < 0 and not record.shards):
            return StackRecord(fingerprint)
        if record.last_fingerprint != fingerprint:
            record.resumed.append({"epoch": record.epoch, "fingerprint": fingerprint})
        return record

    def commit(self, stack: int, record: StackRecord, epoch: Epoch) -> None:
        """Store an epoch of a stack: its shard first, if it has one, then its record."""
        if epoch.shard is not None:
            name = shard_name(stack, epoch.number)
            record.shards[name] = dict(self.write(name, epoch.shard))
        record.epoch, record.stopped, record.failed, record.done = epoch.number, epoch.stopped, None, epoch.done
        self.write_record(stack, record, epoch.state)

    def remove_work(self) -> None:
        """Remove what only a resume needs: the plan first, without which the zoo is finished, the lock last."""
        remove_durably(self.plan)
        for path in self.work.iterdir():
            if path != self.lock:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.remove_lock()

    def remove_lock(self) -> None:
        """Remove the lock file, and its folder if nothing else is in it."""
        self.lock.unlink(missing_ok=True)
        with suppress(OSError):  # another builder has come to see whether there is work left
            self.work.rmdir()


def epoch_of(name: str) -> int:
    """Return the epoch in the name of a shard, or -1 when it is none."""
    digits = name.rpartition("/epoch-")[2].removesuffix(".safetensors")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else -1


def _record_line(value: dict[str, Any]) -> bytes:
    return canonical_json(value).encode() + b"\n"
