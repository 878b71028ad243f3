"""The content of plan, records and manifest as validated models: files, divergences, resumptions, stacks."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, PlainSerializer, PlainValidator

from zootools.architectures import Schema
from zootools.errors import DamagedZooError, SpecError
from zootools.spec import ImageFacts, ZooSpec
from zootools.spec.model_configs import ModelConfig, expand
from zootools.storage.verified_files import FileInfo

ModelId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
EpochNumber = Annotated[int, Field(ge=0, le=100_000)]
LastEpoch = Annotated[int, Field(ge=-1, le=100_000)]
"""The last whole epoch of a stack; -1 before the initialisation is stored."""
LayerSchema = Annotated[
    Schema,
    PlainValidator(lambda value: value if isinstance(value, Schema) else Schema.from_json(value)),
    PlainSerializer(Schema.to_json),
]
"""A layer schema; in JSON what `Schema.to_json` returns."""

Fingerprint = dict[str, Any]
"""The numeric fingerprint of a backend: the values that its results depend on, by names chosen by the backend."""


@dataclass(frozen=True, slots=True)
class Stop:
    """When and why a model diverged."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epoch: Annotated[int, Field(ge=0, le=100_000, strict=True)]
    """The first epoch of which the model has no checkpoint."""
    reason: Annotated[str, Field(max_length=200, strict=True)]


@dataclass(frozen=True, slots=True)
class Resumption:
    """A resumption of a stack under another numeric fingerprint."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epoch: Annotated[int, Field(ge=-1, le=100_000, strict=True)]
    """The last epoch that was trained with the previous fingerprint."""
    fingerprint: Fingerprint


class StackRecord(BaseModel):
    """The progress of one stack: the first line of its record file.

    After a repair ``epoch`` is -1 although there are shards: the stack is trained again, and writes them again.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    fingerprint: Fingerprint
    """The numeric fingerprint at the start of the stack's training."""
    epoch: LastEpoch = -1
    done: bool = False
    """Whether `epoch` is the last one."""
    failed: Annotated[str, Field(max_length=200)] | None = None
    """The reason why the last session gave the stack up; the next session retries it."""
    resumed: Annotated[list[Resumption], FailFast()] = Field(default_factory=list)
    stopped: dict[ModelId, Stop] = Field(default_factory=dict)
    """The diverged models."""
    shards: dict[str, FileInfo] = Field(default_factory=dict)
    """The committed shards by path."""
    state: FileInfo = FileInfo.of(b"")
    """The weights and optimizer state that follow the line (`TrainedEpoch.state`)."""

    @property
    def outcome(self) -> Literal["ok", "failed", "missing"]:
        """The outcome for the stack's models that have not diverged."""
        return "ok" if self.done else "failed" if self.failed else "missing"

    @property
    def last_fingerprint(self) -> Fingerprint:
        """The numeric fingerprint of the last whole epoch."""
        return self.resumed[-1].fingerprint if self.resumed else self.fingerprint


@dataclass(frozen=True)
class TrainedEpoch:
    """The result of one epoch of a stack: the checkpoint, and the state for a resume."""

    number: int
    done: bool
    """Whether it is the stack's last epoch."""
    stopped: dict[str, Stop]
    """The models that have diverged so far."""
    shard: bytes | None
    """The checkpoint as a safetensors file; None if the epoch is not kept, or no model is left."""
    state: bytes
    """Weights and optimizer state as safetensors, ``[models, parameters]`` each."""
    seconds: dict[str, float] = field(default_factory=dict, compare=False)
    """Processor seconds by phase (`zootools.phases.Phases`); they are reported and not stored."""


@dataclass(frozen=True)
class Plan:
    """The models of a zoo, and their stacks."""

    spec: ZooSpec
    schema: Schema
    images_sha256: str
    stacks: list[list[str]]
    """The model ids of each stack, in the order of the rows of its shards."""
    images: ImageFacts = field(default_factory=ImageFacts)

    @cached_property
    def _models(self) -> dict[str, ModelConfig]:
        try:
            models = {model.model_id: model for model in expand(self.spec)}
        except SpecError as error:
            raise DamagedZooError(f"spec: {error}", path=".work/plan.json") from error
        if odd := models.keys() ^ {model for stack in self.stacks for model in stack}:
            raise DamagedZooError(
                f"stacks: the models are not those that its specification makes ({min(odd)} is in one "
                "only); zootools repair drops it",
                path=".work/plan.json",
            )
        return models

    def models(self) -> dict[str, ModelConfig]:
        """Return the configurations of all models by id. Raises DamagedZooError for a plan of other models."""
        return self._models

    def alive(self, stack: int, record: StackRecord, epoch: int) -> list[str]:
        """Return the models of a stack that have not diverged at an epoch, in the order of the rows of its shard."""
        stopped = record.stopped
        return [model for model in self.stacks[stack] if model not in stopped or stopped[model].epoch > epoch]
