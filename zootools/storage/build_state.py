"""The folder of a zoo, and the state of its build: the plan and the records of its stacks.

``.work/`` contains what a resume needs, and is removed when the zoo is finished: ``plan.json`` (specification, layer
schema, the models of each stack) and one record per stack. The records are the journal of the build: a shard is
committed when the record of its stack contains its name, size and sha256, and only then. Shards are written before the
record that names them, so a builder that dies loses at most the epoch in progress.

A record is one line of canonical JSON with its own sha256, followed by the weights and optimizer state of the last
whole epoch as safetensors; the line contains their size and sha256. A resume checks both.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal

from pydantic import FailFast, Field, TypeAdapter

from zootools.errors import DamagedZooError, SpecError
from zootools.filesystem.files import durable_file, file_above, storage_error
from zootools.filesystem.inside import (
    NotPlainError,
    entries_inside,
    exists_inside,
    names_inside,
    open_inside,
    remove_folder_inside,
    remove_inside,
    remove_tree_inside,
)
from zootools.filesystem.lock import check_held
from zootools.hashing import canonical_json, pretty_json
from zootools.spec import ImageFacts, parse_stored_spec
from zootools.spec.model_configs import count_models
from zootools.spec.sections import Section
from zootools.storage.hashed_json import MAX_BYTES, add_hash, parse_hashed, read_hashed, validate
from zootools.storage.records import (
    Digest,
    Fingerprint,
    LayerSchema,
    ModelId,
    Plan,
    Resumption,
    StackRecord,
    TrainedEpoch,
)
from zootools.storage.shards import ShardInfo, read_info, shard_name
from zootools.storage.verified_files import FileInfo, unreadable

FORMAT: Final = 1

PLAN = ".work/plan.json"
"""The plan; it exists while the zoo is being built."""
MANIFEST = "zoo.json"
"""Written last, so a zoo that has it is complete."""
IMAGES = ".work/images.safetensors"
"""The image tensors that the workers map."""
IMPORT = ".work/import/begin.json"
"""What an import was begun with; it exists while a population is imported (`zootools.importers.spool`)."""
FOLDERS = (".work", ".state", "checkpoints", "data", "metadata")
"""The folders that a builder writes into."""


class _PlanFile(Section):
    """The fields of plan.json. `parse_stored_spec` reads the specification, which another version may have written."""

    format: Literal[1]
    spec: dict[str, Any]
    layer_schema: LayerSchema = Field(alias="schema")
    images_sha256: Digest
    images: ImageFacts = Field(default_factory=ImageFacts)
    stacks: Annotated[list[Annotated[list[ModelId], FailFast(), Field(min_length=1)]], FailFast(), Field(min_length=1)]
    sha256: Digest


_PLAN_FILE, _RECORD = TypeAdapter(_PlanFile), TypeAdapter(StackRecord)


class ZooFolder:
    """The files of a zoo folder as builders and verifiers access them: never through a link, and written durably.

    Args:
        path: the folder.
        lock: descriptor of the lock that this process holds on it; None for readers.
    """

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        self.work = path / ".work"
        self._lock = lock

    @property
    def manifest(self) -> Path:
        """The path of `MANIFEST`."""
        return self.path / MANIFEST

    @property
    def lock(self) -> Path:
        """The file that a builder locks."""
        return self.work / "lock"

    @property
    def plan(self) -> Path:
        """The path of `PLAN`."""
        return self.path / PLAN

    # --- looking and removing ------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether a file or folder exists. Raises DamagedZooError if one of its folders is a link or not a folder."""
        with self._asking(name):
            return exists_inside(self.path, name)
        return False

    def names(self, folder: str) -> list[str]:
        """Return the names of all files below a folder; an empty list if it does not exist."""
        with self._asking(folder), suppress(FileNotFoundError):
            return names_inside(self.path, folder)
        return []

    def entries(self, folder: str) -> list[str]:
        """Return the names of the files and folders in a folder; an empty list if it does not exist."""
        with self._asking(folder), suppress(FileNotFoundError):
            return entries_inside(self.path, folder)
        return []

    def remove(self, name: str) -> None:
        """Remove a file, or a link in its place, if it exists."""
        with self._asking(name, "removed"):
            remove_inside(self.path, name)

    def check_folders(self) -> None:
        """Raise DamagedZooError, before anything is computed, if a folder of the zoo is a link or not a folder."""
        for folder in FOLDERS:
            self.entries(folder)

    def check_target(self) -> None:
        """Raise SpecError if the path is not a folder, or if the folder holds other files than those of a zoo."""
        there = self.path if os.path.lexists(self.path) else file_above(self.path)
        if there is not None and not there.is_dir():
            raise SpecError(f"{self.path}: {there} is not a folder; expected one for the zoo (--out)")
        if self.path.is_dir() and not self.has(MANIFEST) and not self.has(".work") and entries_inside(self.path):
            raise SpecError(f"{self.path}: holds files but no zoo; choose another folder with --out")

    @contextmanager
    def _asking(self, name: str, verb: str = "read") -> Iterator[None]:
        """Raise DamagedZooError for links and the like, which no builder creates, StorageError for other OSErrors."""
        try:
            yield
        except NotPlainError as error:
            raise DamagedZooError(
                f"{error.what}; remove it, zootools did not create it", path=self.path / name
            ) from error
        except NotADirectoryError:
            return  # the zoo's own folder is a file, so nothing is in it
        except OSError as error:
            raise storage_error(self.path / name, error, verb) from error

    # --- writing -----------------------------------------------------------------------------------------

    def fence(self) -> None:
        """Raise BusyError or StorageError if this process must not write any more (`check_held`).

        Called before every file becomes visible, because a suspended builder can lose its lock to another one. Also
        called about every second, because the folder can be moved or removed while all workers are busy.
        """
        if self._lock is not None:
            check_held(self.lock, self._lock)

    def file(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write one file of the zoo as a stream (see `durable_file`)."""
        fence = self.fence if self._lock is not None else None
        return durable_file(self.path / name, self.path, fence)

    def write(self, name: str, data: bytes) -> FileInfo:
        """Write one file of the zoo; return its entry in a record or manifest."""
        with self.file(name) as file:
            file.write(data)
        return FileInfo.of(data)

    # --- plan --------------------------------------------------------------------------------------------

    def read_plan(self) -> Plan | None:
        """Return the plan of an unfinished build, or None. Raises DamagedZooError."""
        try:
            value = read_hashed(self.path, PLAN)
        except FileNotFoundError:
            return None
        file = validate(_PLAN_FILE, value, self.plan)
        try:
            spec = parse_stored_spec(file.spec, f"{self.plan}: spec")
            models = count_models(spec)
        except SpecError as error:
            raise DamagedZooError(f"is not the plan of a zoo ({error})", path=self.plan) from error
        ids = [model for stack in file.stacks for model in stack]
        if len(ids) != models or len(set(ids)) != models:
            raise DamagedZooError(
                f"stacks: found {len(set(ids))} models {len(ids)} times; the specification makes {models}",
                path=self.plan,
            )
        return Plan(spec, file.layer_schema, file.images_sha256, file.stacks, file.images)

    def write_plan(self, plan: Plan) -> None:
        """Store the plan."""
        value = {
            "format": FORMAT,
            "spec": plan.spec.dump(),
            "schema": plan.schema.to_json(),
            "images_sha256": plan.images_sha256,
            "stacks": plan.stacks,
        }
        if images := plan.images.dump():
            value["images"] = images
        self.write(PLAN, pretty_json(add_hash(value)))

    # --- records -----------------------------------------------------------------------------------------

    def record_name(self, stack: int, folder: str = ".work") -> str:
        """Return the name of a stack's record inside the zoo, in this folder of records."""
        return f"{folder}/stack-{stack:05d}.record"

    def read_record(self, stack: int, folder: str = ".work") -> StackRecord | None:
        """Return the record of a stack without its tensors, or None if nothing of the stack is committed."""
        name = self.record_name(stack, folder)
        try:
            with open_inside(self.path, name) as file:
                return self._parse_record(stack, file, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedZooError(unreadable(error), path=self.path / name) from error

    def read_records(self, plan: Plan) -> list[StackRecord | None]:
        """Return the records of all stacks (`read_record`), each compared with the plan. Raises DamagedZooError."""
        return [self.check_record(plan, stack, self.read_record(stack)) for stack in range(len(plan.stacks))]

    def check_record(self, plan: Plan, stack: int, record: StackRecord | None) -> StackRecord | None:
        """Return a record. Raises DamagedZooError if it contradicts the plan of its zoo."""
        if record is None:
            return None
        source, training = self.path / self.record_name(stack), plan.spec.training
        if unknown := record.stopped.keys() - set(plan.stacks[stack]):
            raise DamagedZooError(f"stopped: {min(unknown)} is not a model of this stack", path=source)
        latest = max([record.epoch, *(stop.epoch for stop in record.stopped.values())])
        if latest > training.epochs:
            raise DamagedZooError(f"epoch: found {latest}; the models are trained for {training.epochs}", path=source)
        if record.done and record.epoch < training.epochs and len(record.stopped) < len(plan.stacks[stack]):
            raise DamagedZooError(f"done: is true at epoch {record.epoch} of {training.epochs}", path=source)
        kept = {shard_name(stack, epoch): epoch for epoch in training.kept_epochs}
        for name in record.shards.keys() - kept.keys():
            raise DamagedZooError(f"shards: {name} is not of an epoch that is kept", path=source)
        needed = [n for n, epoch in kept.items() if epoch <= record.epoch and plan.alive(stack, record, epoch)]
        for name in needed:
            if name not in record.shards:
                raise DamagedZooError(
                    f"shards: {name} is missing, although epoch {record.epoch} is reached", path=source
                )
        return record

    def read_shards(self, plan: Plan, records: Sequence[StackRecord | None]) -> Iterator[tuple[int, ShardInfo]]:
        """Yield the stack number and the metadata of every shard that the records name.

        Raises DamagedZooError for a shard whose models are not those of its stack and epoch.
        """
        for stack, record in enumerate(records):
            for name in sorted(record.shards, key=epoch_of) if record else ():
                assert record is not None
                yield stack, self.read_shard(plan, stack, record, name)

    def read_shard(self, plan: Plan, stack: int, record: StackRecord, name: str) -> ShardInfo:
        """Return the metadata of a shard. Raises DamagedZooError if its models are not those of its stack and epoch."""
        info = read_info(self.path, name)
        expected = plan.alive(stack, record, info.epoch)
        if info.epoch > record.epoch:  # the stack is trained again; the shard lacks models that will diverge
            known = set(info.model_ids)
            expected = [model for model in plan.stacks[stack] if model in known]
        if info.model_ids != expected:
            raise DamagedZooError("metadata.model_ids: are not those of its stack and epoch", path=self.path / name)
        return info

    def state_bytes(self, stack: int, folder: str = ".work") -> bytes:
        """Return the weights and optimizer state in a stack's record (`TrainedEpoch.state`).

        Raises DamagedZooError if their size or sha256 is not that in the record.
        """
        name = self.record_name(stack, folder)
        try:
            with open_inside(self.path, name) as file:
                state = self._parse_record(stack, file, name).state
                left = os.fstat(file.fileno()).st_size - file.tell()
                data = file.read(left) if left == state.size else b""
        except OSError as error:
            raise DamagedZooError(unreadable(error), path=self.path / name) from error
        if FileInfo.of(data) != state:
            raise DamagedZooError("its weights and optimizer state have changed (sha256)", path=self.path / name)
        return data

    def record_bytes(self, stack: int) -> tuple[StackRecord, bytes] | None:
        """Return the record of a stack and all bytes of its file, read once; None if there is no record."""
        name = self.record_name(stack)
        try:
            with open_inside(self.path, name) as file:
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedZooError(unreadable(error), path=self.path / name) from error
        return self._parse_record(stack, BytesIO(data), name), data

    def _parse_record(self, stack: int, file: BinaryIO, name: str) -> StackRecord:
        source = self.path / name
        line = file.readline(MAX_BYTES)
        value = parse_hashed(line, source)
        if line != _record_line(value):
            raise DamagedZooError("was edited or is corrupt (not canonical JSON)", path=source)
        del value["sha256"]
        if missing := sorted(StackRecord.model_fields.keys() - value):
            raise DamagedZooError(f"{missing[0]}: Field required", path=source)
        record = validate(_RECORD, value, source)
        for shard in record.shards:
            if shard != shard_name(stack, epoch_of(shard)):
                raise DamagedZooError(f"shards: {shard!r} is not a shard of this stack", path=source)
        return record

    def write_record(self, stack: int, record: StackRecord, state: bytes = b"") -> None:
        """Store a stack's record, and thereby commit its shards."""
        record.state = FileInfo.of(state)
        with self.file(self.record_name(stack)) as file:
            file.write(_record_line(add_hash(record.model_dump())))
            file.write(state)

    def mark_failed(self, stack: int, reason: str, fingerprint: Fingerprint) -> None:
        """Record that a session gave up a stack; its shards and state are kept."""
        record = self.read_record(stack)
        state = self.state_bytes(stack) if record else b""
        record = record or StackRecord(fingerprint=fingerprint)
        record.failed = reason
        self.write_record(stack, record, state)

    def restart_stack(self, stack: int, record: StackRecord) -> None:
        """Mark a stack to be trained again from its beginning; the shards that ``record`` names stay readable."""
        self.write_record(stack, StackRecord(fingerprint=record.fingerprint, shards=record.shards))

    def begin_stack(self, stack: int, fingerprint: Fingerprint) -> StackRecord:
        """Return the record with which a stack is begun or resumed under a numeric fingerprint; nothing is written."""
        record = self.read_record(stack)
        if record is None or (record.epoch < 0 and not record.shards):
            return StackRecord(fingerprint=fingerprint)
        if record.last_fingerprint != fingerprint:
            record.resumed.append(Resumption(record.epoch, fingerprint))
        return record

    def commit(self, stack: int, record: StackRecord, epoch: TrainedEpoch) -> None:
        """Store an epoch of a stack: its shard first, if it has one, then its record."""
        if epoch.shard is not None:
            name = shard_name(stack, epoch.number)
            record.shards[name] = self.write(name, epoch.shard)
        record.epoch, record.stopped, record.failed, record.done = epoch.number, epoch.stopped, None, epoch.done
        self.write_record(stack, record, epoch.state)

    def remove_work(self) -> None:
        """Remove what only a resume needs: the plan first, because a zoo without it is finished; the lock last."""
        self.remove(PLAN)
        for entry in self.entries(".work"):
            if entry != self.lock.name:
                with self._asking(entry, "removed"):
                    remove_tree_inside(self.path, f".work/{entry}")
        self.remove_lock()

    def remove_lock(self) -> None:
        """Remove the lock file, and its folder if nothing else is in it."""
        self.remove(".work/lock")
        with suppress(OSError):  # another builder is checking whether there is work left
            remove_folder_inside(self.path, ".work")


def epoch_of(name: str) -> int:
    """Return the epoch in the name of a shard; -1 for any other name."""
    digits = name.rpartition("/epoch-")[2].removesuffix(".safetensors")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else -1


def _record_line(value: dict[str, Any]) -> bytes:
    return canonical_json(value).encode() + b"\n"
