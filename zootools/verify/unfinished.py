"""Verification of an unfinished zoo: its plan, records, committed shards and images."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from zootools.errors import DamagedZooError, ZooNotFoundError
from zootools.storage.build_state import IMAGES, PLAN, ZooFolder
from zootools.storage.manifest_checks import schema_fault
from zootools.storage.records import Plan, StackRecord
from zootools.storage.shards import stack_of
from zootools.storage.verified_files import FileInfo, VerifiedFiles
from zootools.verify.fault import Fault
from zootools.verify.files import IntactFiles, file_faults, in_threads
from zootools.verify.finished import build_log_faults
from zootools.verify.shards import Shards


def unfinished_faults(zoo: ZooFolder, tick: Callable[[int], None]) -> Iterator[Fault]:
    """Yield everything that is wrong with an unfinished zoo (see `zootools.verify.faults`)."""
    try:
        plan = zoo.read_plan()
        if plan is None:
            raise ZooNotFoundError(f"{zoo.path}: holds no zoo")
    except DamagedZooError as error:
        yield Fault(PLAN, error.reason)
        return
    yield from build_log_faults(zoo.path)
    try:
        models = plan.models()
    except DamagedZooError as error:
        yield Fault(PLAN, error.reason)
        return
    if contradiction := schema_fault(plan.schema, plan.spec):
        yield Fault(PLAN, f"schema: {contradiction}")
        return
    named: dict[str, FileInfo] = {}
    records: list[StackRecord | None] = []
    for stack in range(len(plan.stacks)):
        record = None
        try:
            record = zoo.check_record(plan, stack, zoo.read_record(stack))
            if record is not None:
                named |= record.shards
                zoo.state_bytes(stack)
        except DamagedZooError as error:
            yield Fault(zoo.record_name(stack), error.reason)
        records.append(record)
    files, damaged, intact = VerifiedFiles(zoo.path, named), set[str](), IntactFiles(zoo.path)
    for fault in file_faults(files, tick, intact):
        damaged.add(fault.name)
        yield fault
    check = partial(_shard_fault, Shards(files, plan.schema, plan.spec, models), zoo, plan, records)
    for name, what in in_threads(check, sorted(named.keys() - damaged)):
        if what is not None:
            yield Fault(name, what)
    if zoo.has(IMAGES) and not _images_intact(zoo, plan):
        yield Fault(IMAGES, "does not hold the images of this zoo")
    intact.forget()


def _shard_fault(
    shards: Shards, zoo: ZooFolder, plan: Plan, records: Sequence[StackRecord | None], name: str
) -> str | None:
    """Return why a shard does not hold models of its stack, in their order, with their scores; or None."""
    stack = stack_of(name)
    record = records[stack]
    assert record is not None, "the record names the shard"
    try:
        zoo.read_shard(plan, stack, record, name)
    except DamagedZooError as error:
        return error.reason
    return shards.fault(name)


def _images_intact(zoo: ZooFolder, plan: Plan) -> bool:
    from zootools.storage.image_tensors import map_images

    try:
        return map_images(zoo, plan.schema.classes, "cpu").digest == plan.images_sha256
    except DamagedZooError:
        return False
