"""What a folder holds before a build begins: a finished zoo, an unfinished one, or nothing."""

import hashlib
from collections.abc import Sequence

from zootools.architectures import Schema
from zootools.building.planning import plan_stacks
from zootools.building.preflight import check_growth
from zootools.errors import SpecError
from zootools.object_store.sync import Output
from zootools.spec import ZooSpec
from zootools.spec.model_configs import ModelConfig
from zootools.storage.build_state import MANIFEST, PLAN, ZooFolder
from zootools.storage.finish import spec_yaml
from zootools.storage.manifest import Manifest, read_manifest
from zootools.storage.manifest_checks import stored_spec
from zootools.storage.records import Plan, StackRecord
from zootools.storage.reopening import reopened


def finished_manifest(output: Output, zoo: ZooFolder, spec: ZooSpec, models: Sequence[ModelConfig]) -> Manifest | None:
    """Return the manifest if the folder holds all of these models and every file; None if training is left to do.

    Only the names of the files are checked; `zootools.verify` reads them. Raises SpecError when the folder holds
    another zoo.
    """
    plan = zoo.read_plan()
    if plan is not None:
        check_growth(plan.spec, spec, models)
        return None
    if not zoo.has(MANIFEST):
        return None
    manifest = read_manifest(zoo.path)
    if manifest.imported is not None:
        raise SpecError(f"{zoo.path}: holds a zoo that was imported; choose another folder with --out")
    check_growth(_recorded_spec(zoo, manifest, spec), spec, models)
    whole = all(output.holds(name) for name in ("README.md", *manifest.files))
    whole = whole and not manifest.is_partial
    return manifest if whole and manifest.counts.expected == len(models) else None


def stored_plan(zoo: ZooFolder, spec: ZooSpec) -> tuple[Plan | None, Sequence[StackRecord | None]]:
    """Return the plan and the records in a folder; those of a finished zoo are made from its manifest.

    Nothing is written. Without a zoo the plan is None and there are no records.
    """
    plan = zoo.read_plan()
    if plan is not None:
        return plan, zoo.read_records(plan)
    if not zoo.has(MANIFEST):
        return None, []
    manifest = read_manifest(zoo.path)
    return reopened(zoo, manifest, _recorded_spec(zoo, manifest, spec))


def planned_stacks(
    old: Plan | None, spec: ZooSpec, schema: Schema, models: Sequence[ModelConfig], device: str
) -> list[list[str]]:
    """Return the ids of the models of each stack: the stacks of the old plan, then new stacks for new models."""
    kept = len(spec.training.kept_epochs)
    if old is None:
        return plan_stacks(models, schema, kept, device)
    check_growth(old.spec, spec, models)
    present = {model for stack in old.stacks for model in stack}
    return old.stacks + plan_stacks([model for model in models if model.model_id not in present], schema, kept, device)


def write_plan(zoo: ZooFolder, plan: Plan, old: Plan | None, records: Sequence[StackRecord | None]) -> None:
    """Write the plan; where a finished zoo grows, first its old plan and records, so that a kill loses none of it."""
    if old is not None and not zoo.has(PLAN):
        for stack, record in enumerate(records):
            assert record is not None, "a finished zoo has a record of every stack"
            zoo.write_record(stack, record)
        zoo.write_plan(old)
    if plan != old:
        zoo.write_plan(plan)


def _recorded_spec(zoo: ZooFolder, manifest: Manifest, spec: ZooSpec) -> ZooSpec:
    """Return the specification of a finished zoo; without its spec.yaml, ``spec`` if its sha256 is in the manifest."""
    if not zoo.has("spec.yaml") and hashlib.sha256(spec_yaml(spec)).hexdigest() == manifest.files["spec.yaml"].sha256:
        return spec
    return stored_spec(zoo.path, manifest)
