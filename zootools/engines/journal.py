"""The journal of an engine whose workers send their epochs instead of writing them."""

import hashlib

from zootools.engines.worker import last_epoch
from zootools.errors import DamagedZooError
from zootools.storage.build_state import ZooFolder
from zootools.storage.records import Fingerprint, StackRecord, TrainedEpoch
from zootools.storage.shards import shard_name


class Journal:
    """Commits the epochs of stacks as they arrive: each once, however often it arrives.

    A retried task can deliver an epoch twice, when its first attempt was not dead; the bytes must then be equal.

    Args:
        folder: the zoo's folder, whose lock this process holds.
        fingerprint: the numeric fingerprint of the machines that train the epochs to come.
    """

    def __init__(self, folder: ZooFolder, fingerprint: Fingerprint) -> None:
        self._folder, self._fingerprint = folder, fingerprint
        self._records: dict[int, StackRecord] = {}
        self._states: dict[tuple[int, int], str] = {}

    def check(self) -> None:
        """Raise what `ZooFolder.fence` raises when this process must not write any more."""
        self._folder.fence()

    def record(self, stack: int) -> StackRecord:
        """Return the current record of a stack; create it for a stack that is new."""
        if stack not in self._records:
            self._records[stack] = self._folder.begin_stack(stack, self._fingerprint)
        return self._records[stack]

    def start(self, stack: int) -> TrainedEpoch | None:
        """Return the epoch after which to resume a stack, None for a stack that is to begin."""
        start = last_epoch(self._folder, stack, self.record(stack))
        if start is not None:
            self._states[stack, start.number] = _sha256(start.state)
        return start

    def take(self, stack: int, epoch: TrainedEpoch) -> bool:
        """Commit an epoch of a stack; return False if it was committed before.

        Raises DamagedZooError when it was committed before with other bytes.
        """
        record = self.record(stack)
        if epoch.number == record.epoch + 1 and not record.done:
            self._folder.commit(stack, record, epoch)
            self._states[stack, epoch.number] = _sha256(epoch.state)
            return True
        assert epoch.number <= record.epoch, "a task has computed, or was sent, the epoch before"
        committed = record.shards.get(shard_name(stack, epoch.number))
        journaled = committed.sha256 if committed is not None else "none"
        self._compare(stack, epoch.number, "shard", journaled, _sha256(epoch.shard))
        # Of the epochs that an earlier process committed, only the state of the last one is known.
        if (stack, epoch.number) in self._states:
            self._compare(stack, epoch.number, "state", self._states[stack, epoch.number], _sha256(epoch.state))
        return False

    def _compare(self, stack: int, epoch: int, what: str, journaled: str, arrived: str) -> None:
        if journaled != arrived:
            raise DamagedZooError(
                f"{self._folder.path}: stack {stack}, epoch {epoch} was trained twice with different results: the "
                f"sha256 of its {what} is {journaled} in the journal, and {arrived} the second time. One of the "
                "machines computes wrongly: find out which, then build the zoo again from the start"
            )


def _sha256(data: bytes | None) -> str:
    return "none" if data is None else hashlib.sha256(data).hexdigest()
