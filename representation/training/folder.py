"""The folder of one training: its state between two steps, and its record when it is finished."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from representation.recipes import RecipeIdentity
from representation.training.trainer import TrainerState
from zootools.errors import DamagedZooError, SpecError, differences
from zootools.filesystem.files import write_durably
from zootools.hashing import canonical_json, pretty_json
from zootools.spec.sections import Section, flat


class TrainingIdentity(Section):
    """Everything that decides an encoder."""

    recipe: RecipeIdentity
    seed: int
    weights_sha256: str
    """Hash of the layer schema and of the weights of the train and the validation split."""
    device: str | None = None
    """``cpu`` or ``cuda``; None where it is not known yet, and then not compared."""
    precision: str | None = None
    """As `representation.training.trainer.choose_precision` returns it; None as for `device`."""


class BestEpoch(Section):
    """The epoch whose encoder is kept, and its figures on the validation split."""

    model_config = ConfigDict(allow_inf_nan=True)

    epoch: int
    score: float
    """The figure that ``training.best`` of the recipe names; the lowest of all epochs."""
    total: float
    reconstruction: float
    contrast: float
    statistics: float = 0.0
    """Error of the predicted statistics."""
    behaviour: float = 0.0
    """Difference of the logits of reconstructions."""
    r2: float | None = None
    """R2 of the reconstructed weights; None without a decoder, or where all networks are equal."""


class TrainingState(TrainerState):
    """The state of a training after an epoch or a step, but for its tensors."""

    identity: TrainingIdentity
    best: BestEpoch | None
    """None within the first epoch."""
    seconds: float
    """Wall time of all steps so far."""
    cpu_seconds: float = 0.0
    """Processor time of all steps so far; 0 if it was not measured."""


class TrainingRecord(Section):
    """The content of training.json."""

    zoo: str
    identity: TrainingIdentity
    epochs: int
    best: BestEpoch
    seconds: float
    """Wall time of the epochs, in all sessions."""
    cpu_seconds: float = 0.0
    """Processor time of the epochs, in all sessions; 0 if it was not measured."""


class TrainingFolder:
    """Paths and records of one training.

    Until it is finished, ``.work/state.safetensors`` holds the state after the last step that was saved: the tensors,
    and in the metadata of the same file, so that both are always of the same step, a `TrainingState` as JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.work = path, path / ".work"
        self.lock, self.state, self.log = self.work / "lock", self.work / "state.safetensors", path / "log.jsonl"
        self.record = path / "training.json"

    def is_finished(self, identity: TrainingIdentity) -> bool:
        """Return whether this training is complete.

        Raises SpecError when the folder holds another training, DamagedZooError when its record cannot be read.
        """
        record = self._read_record()
        if record is None:
            return False
        check_identity(self.path, "training", record.identity, identity)
        return True

    def _read_record(self) -> TrainingRecord | None:
        try:
            return TrainingRecord.model_validate_json(self.record.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise DamagedZooError(f"{self.record}: not the record of a training ({error})") from error

    def cpu_seconds(self) -> float:
        """Return the processor time until the state that was saved last; 0 if none was, or if it was not measured.

        Raises DamagedZooError when the record or the state cannot be read.
        """
        if (record := self._read_record()) is not None:
            return record.cpu_seconds
        if not self.state.exists():
            return 0.0
        with self._open_state() as (_, state):
            return state.cpu_seconds

    def read(self, identity: TrainingIdentity) -> tuple[dict[str, Tensor], TrainingState] | None:
        """Return the tensors and the rest of the state that was saved last, or None when there is none.

        Raises as `is_finished`.
        """
        if not self.state.exists():
            return None
        with self._open_state() as (file, state):
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_identity(self.path, "training", state.identity, identity)
        return tensors, state

    @contextmanager
    def _open_state(self) -> Iterator[tuple[safe_open, TrainingState]]:
        """Open the file of the state; its tensors are not read."""
        try:
            with safe_open(self.state, "pt") as file:
                yield file, TrainingState.model_validate_json(file.metadata()["training"])
        except (SafetensorError, ValidationError, KeyError, TypeError, OSError) as error:
            raise DamagedZooError(f"{self.state}: not the state of a training ({error})") from error

    def write(self, tensors: dict[str, Tensor], state: TrainingState) -> None:
        """Save a state in place of the last one."""
        write_durably(self.state, save(tensors, {"training": canonical_json(state.dump())}))

    def append_log(self, line: dict[str, float]) -> None:
        """Append the line of an epoch to the log."""
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self, record: TrainingRecord) -> None:
        """Write training.json."""
        write_durably(self.record, pretty_json(record.dump()))

    def cut_log(self, epoch: int) -> None:
        """Remove the lines of epochs that were not committed from the log."""
        if self.log.exists():
            lines = self.log.read_text().splitlines()[:epoch]
            write_durably(self.log, "".join(line + "\n" for line in lines).encode())

    def remove_work(self) -> None:
        """Remove the files that only a resume needs, the lock file last."""
        self.state.unlink(missing_ok=True)
        shutil.rmtree(self.work)


def check_identity(folder: Path, what: str, found: Section, wanted: Section) -> None:
    """Raise SpecError, listing the differences, if a folder holds a different `what`.

    Top-level fields that are None in ``wanted`` are not compared.
    """
    new = wanted.dump()
    old = {key: value for key, value in found.dump().items() if key in new}
    changes = differences(flat(old), flat(new), "now", show=str, missing="default")
    if changes:
        raise SpecError(f"{folder}: holds another {what}; use another folder", *(f"  {change}" for change in changes))
