"""Plan and records of a finished zoo, as they were before it was finished."""

from zootools.filesystem.inside import is_file_inside
from zootools.spec import ZooSpec
from zootools.storage.build_state import ZooFolder
from zootools.storage.manifest import Manifest
from zootools.storage.records import Plan, Resumption, StackRecord


def reopen(zoo: ZooFolder, manifest: Manifest, spec: ZooSpec) -> Plan:
    """Write the records of a finished zoo again, so that a build can extend or repair it; return its plan."""
    plan, records = reopened(zoo, manifest, spec)
    for number, record in enumerate(records):
        zoo.write_record(number, record)
    return plan


def reopened(zoo: ZooFolder, manifest: Manifest, spec: ZooSpec) -> tuple[Plan, list[StackRecord]]:
    """Return plan and records of a finished zoo, as they were before it was finished; nothing is written.

    A stack that lacks a shard, or was not trained to the end, will be trained again; until then its remaining shards
    stay readable.
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
    assert manifest.images_sha256 is not None, "a zoo that was built has images"
    return Plan(spec, manifest.layer_schema, manifest.images_sha256, stacks, manifest.images), records
