"""The zoo folder while it is built: the plan, the records of its stacks, and what they say of every model.

``.work/`` holds what a resume needs and is gone when the zoo is finished: ``plan.json`` (specification,
layer schema, which models are in which stack) and one record per stack. A record names every committed
shard with its size and sha256, and carries weights and optimizer state of the last whole epoch. Shards are
written before the record that names them, so a builder that dies loses at most the epoch in progress.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zootools.architectures import Schema
from zootools.errors import DamagedZooError
from zootools.files import pretty_json, write_durably
from zootools.population import ModelConfig, canonical_json, expand
from zootools.shards import ShardInfo, shard_bytes, shard_name
from zootools.spec import ZooSpec, parse_spec

if TYPE_CHECKING:
    from torch import Tensor

    from zootools.training.stack import StackRun

FORMAT = 1


@dataclass
class StackRecord:
    """How far one stack is. ``epoch`` is the last whole one, -1 before the initialisation is stored."""

    fingerprint: dict[str, Any]
    epoch: int = -1
    done: bool = False
    stopped: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Diverged models: the epoch and the reason."""
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Committed shards by path: size and sha256."""


@dataclass(frozen=True)
class Plan:
    """Which models a zoo consists of, and which stack trains which."""

    spec: ZooSpec
    schema: Schema
    images_sha256: str
    stacks: list[list[str]]

    def models(self) -> dict[str, ModelConfig]:
        """Return the configurations of all models by id."""
        return {model.model_id: model for model in expand(self.spec)}


class ZooFolder:
    """Paths and records of one zoo folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / ".work"

    @property
    def manifest(self) -> Path:
        """zoo.json: written last, so its presence means that the zoo is whole."""
        return self.path / "zoo.json"

    @property
    def lock(self) -> Path:
        """The file that a builder locks."""
        return self.work / "lock"

    @property
    def images(self) -> Path:
        """The image tensors that the workers map."""
        return self.work / "images.safetensors"

    # --- plan --------------------------------------------------------------------------------------------

    def read_plan(self) -> Plan | None:
        """Return the plan of an unfinished build, or None. Raises DamagedZooError."""
        path = self.work / "plan.json"
        if not path.exists():
            return None
        try:
            value = json.loads(path.read_bytes())
            spec = parse_spec(value["spec"], str(path))
            schema = Schema.from_json(value["schema"])
            stacks = [[str(model) for model in stack] for stack in value["stacks"]]
            return Plan(spec, schema, str(value["images_sha256"]), stacks)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedZooError(f"{path}: is no plan of a zoo ({error})") from error

    def write_plan(self, plan: Plan) -> None:
        """Store the plan."""
        value = {
            "format": FORMAT,
            "spec": plan.spec.dump(),
            "schema": plan.schema.to_json(),
            "images_sha256": plan.images_sha256,
            "stacks": plan.stacks,
        }
        write_durably(self.work / "plan.json", pretty_json(value))

    # --- records -----------------------------------------------------------------------------------------

    def record_path(self, stack: int) -> Path:
        """Return the path of a stack's record."""
        return self.work / f"stack-{stack:05d}.safetensors"

    def read_record(self, stack: int) -> StackRecord | None:
        """Return the record of a stack without its tensors, or None when nothing of it is committed."""
        path = self.record_path(stack)
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            return StackRecord(**json.loads(header["__metadata__"]["zootools"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OSError, MemoryError, OverflowError) as error:
            raise DamagedZooError(f"{path}: is no record of a stack ({error})") from error

    def read_state(self, stack: int) -> "dict[str, Tensor]":
        """Return the weights and optimizer state in a stack's record, ``[models, parameters]`` each."""
        from safetensors.torch import load_file

        return load_file(self.record_path(stack))

    def write_record(self, stack: int, record: StackRecord, state: "dict[str, Tensor]") -> None:
        """Store a stack's record; this is what commits its shards."""
        from safetensors.torch import save

        write_durably(self.record_path(stack), save(state, {"zootools": canonical_json(asdict(record))}))

    def commit(self, stack: int, record: StackRecord, run: "StackRun", schema: Schema, kept: bool, last: bool) -> None:
        """Store the present epoch of a stack: its shard first (where it is ``kept``), then its record."""
        if kept:
            weights, info = run.checkpoint()
            if info.model_ids:
                self._write_shard(stack, record, schema, weights, info)
        record.epoch, record.stopped = run.epoch, run.stopped
        record.done = last or run.all_stopped
        self.write_record(stack, record, {} if record.done else run.save())

    def _write_shard(self, stack: int, record: StackRecord, schema: Schema, weights: Any, info: ShardInfo) -> None:
        name = shard_name(stack, info.epoch)
        data = shard_bytes(schema, weights, info)
        write_durably(self.path / name, data)
        record.shards[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def remove_work(self) -> None:
        """Remove what only a resume needs; the lock file goes last."""
        lock = self.lock
        for path in self.work.iterdir():
            if path != lock:
                path.unlink()
        shutil.rmtree(self.work)
