"""The weights and optimizer state of a finished zoo, from which a later build trains more epochs.

``build(keep_state=True)`` leaves the last record of every stack in the hidden folder `FOLDER` of the zoo. It is not
part of the zoo: the manifest does not name it, and `verify`, `publish` and readers ignore it, as all hidden files. A
record has its own sha256 and those of the shards that it follows, so a build can tell that both belong together.
"""

from contextlib import suppress

from zootools.errors import SpecError
from zootools.filesystem.inside import remove_folder_inside
from zootools.storage.build_state import ZooFolder, epoch_of
from zootools.storage.records import Plan, StackRecord
from zootools.storage.shards import shard_name, stack_of

FOLDER = ".state"
"""The folder of the kept records; it may be removed at any time."""


def keep_states(zoo: ZooFolder, stacks: int, keep: bool) -> None:
    """Make the kept records those of a zoo that is trained to the end.

    Records that are kept already stay, unless they are of another number of epochs. ``keep`` tells whether to copy
    those of the stacks that have just been trained. Nothing is lost if this is interrupted and called again.
    """
    for stack in range(stacks):
        found, name = zoo.record_bytes(stack), zoo.record_name(stack, FOLDER)
        assert found is not None, "the zoo is trained to the end"
        if keep and found[0].state.size > 0:
            zoo.write(name, found[1])
        elif not _is_kept(zoo, stack, found[0]):
            zoo.remove(name)
    with suppress(OSError):  # it holds states, or is missing
        remove_folder_inside(zoo.path, FOLDER)


def state_names(zoo: ZooFolder, stacks: int) -> list[str]:
    """Return the names of the kept records of all stacks, whether or not they exist."""
    return [zoo.record_name(stack, FOLDER) for stack in range(stacks)]


def continued(zoo: ZooFolder, plan: Plan, records: list[StackRecord], epochs: int) -> list[StackRecord]:
    """Return the records of a finished zoo as those of one that is trained for more epochs, and has reached its last.

    Shards of epochs that the longer zoo does not keep are left out. A loss is looked at in epochs that are kept only:
    what was found in the last epoch is forgotten if the longer zoo does not keep that epoch.

    Args:
        zoo: the folder.
        plan: the plan of the longer zoo.
        records: the records of the finished one.
        epochs: the number of epochs of the finished one.

    Raises DamagedZooError if a kept record is damaged, SpecError if it is of another zoo.
    """
    kept, result = set(plan.spec.training.kept_epochs), []
    for stack, record in enumerate(records):
        state = zoo.read_record(stack, FOLDER)
        if state is None or not _is_kept(zoo, stack, record):
            raise SpecError(
                f"{zoo.path / zoo.record_name(stack, FOLDER)}: is not the state of this zoo, which therefore cannot be "
                "trained for more epochs; train again in a new folder: -o NEW"
            )
        stopped = record.stopped
        if epochs not in kept:
            stopped = {id_: s for id_, s in stopped.items() if s.epoch < epochs or s.reason == "non-finite weights"}
        shards = {name: info for name, info in record.shards.items() if epoch_of(name) in kept}
        done = len(stopped) == len(plan.stacks[stack])
        result.append(
            record.model_copy(update={"done": done, "stopped": stopped, "shards": shards, "state": state.state})
        )
    return result


def sweep_shards(zoo: ZooFolder, plan: Plan) -> None:
    """Remove the shards of epochs that a plan does not keep: a shorter zoo has kept its last epoch."""
    kept = set(plan.spec.training.kept_epochs)
    for name in zoo.names("checkpoints"):
        epoch = epoch_of(name)
        if epoch >= 0 and epoch not in kept and name == shard_name(stack_of(name), epoch):
            zoo.remove(name)


def _is_kept(zoo: ZooFolder, stack: int, record: StackRecord) -> bool:
    """Whether a record is kept for a stack, of the same epoch, shards, divergences and fingerprints."""
    kept = zoo.read_record(stack, FOLDER)
    fields = ("epoch", "shards", "stopped", "fingerprint", "resumed")
    return kept is not None and all(getattr(kept, field) == getattr(record, field) for field in fields)
