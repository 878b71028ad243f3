"""What a folder holds before a build begins: a finished zoo, an unfinished one, or nothing."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zootools.architectures import Schema
from zootools.building.planning import check_spec, plan_stacks
from zootools.building.preflight import check_folder, check_growth, check_same_layers, images_of
from zootools.errors import SpecError
from zootools.images.shapes import has_images
from zootools.object_store.sync import Output, open_output
from zootools.spec import ZooSpec, parse_stored_spec
from zootools.spec.model_configs import ModelConfig, count_models, expand
from zootools.storage.build_state import MANIFEST, PLAN, ZooFolder
from zootools.storage.finish import spec_yaml
from zootools.storage.kept_state import FOLDER as STATE
from zootools.storage.kept_state import continued, state_names
from zootools.storage.manifest import Manifest, read_manifest
from zootools.storage.manifest_checks import stored_spec
from zootools.storage.part import require_whole
from zootools.storage.records import Plan, StackRecord
from zootools.storage.reopening import reopened
from zootools.storage.status import epochs_done


@dataclass(frozen=True)
class Present:
    """What a folder has of the models of a specification before a build begins."""

    there: int
    """Models that are trained to the end, diverged ones included."""
    to_train: int
    """Models that a build trains, from their beginning or from the last whole epoch of their stack."""
    model_epochs: int
    """Epochs that these models lack, summed over the models."""
    finished: Manifest | None = None
    """The manifest, if nothing is left to do."""
    plan: Plan | None = None
    """The plan of the zoo in the folder, if it has one and something is left to do."""
    records: Sequence[StackRecord | None] = field(default=(), repr=False)


@dataclass(frozen=True)
class SpecCheck:
    """A specification that can be built into a folder."""

    schema: Schema
    present: Present | None
    """None for an object store, into which only a build looks."""
    images: bool
    """Whether the images are on this machine; otherwise a build downloads them."""


def check_build(spec: ZooSpec, out: Path | str, data: Path | None = None) -> SpecCheck:
    """Run the checks of a build that do not depend on the machine; return the layers and what the folder has.

    Numbers and sizes of the images are checked in the headers of their files. Pixels are only read if the folder has
    a zoo that a build would continue. Nothing is written or downloaded.

    Args:
        spec: the specification.
        out: the folder, or the URL of an object store, whose content is not checked.
        data: the folder of the image files (`zootools.paths.data_folder`).

    Raises SpecError, StorageError and DamagedZooError as a build does.
    """
    schema, output = check_spec(spec, data), open_output(out)
    present = look_into(output, spec, schema)
    images = has_images(spec.images, data)
    if images and present is not None and present.plan is not None:
        images_of(spec.images, data, present.plan)
    return SpecCheck(schema, present, images)


def look_into(
    output: Output, spec: ZooSpec, schema: Schema, models: Sequence[ModelConfig] | None = None
) -> Present | None:
    """Return what a folder has of the models of a specification; None for an object store.

    Args:
        output: where the zoo is to be built.
        spec: the specification.
        schema: the layers of its models.
        models: its models (`expand`), if already computed; otherwise they are computed only if the folder has a zoo.

    Raises SpecError if a build would be refused: the folder has other files, or a zoo of another specification.
    """
    zoo = output.present()
    if zoo is None:
        return None
    check_folder(zoo)
    epochs = spec.training.epochs
    if not (zoo.has(PLAN) or zoo.has(MANIFEST)):
        count = count_models(spec)
        return Present(0, count, count * epochs)
    models = expand(spec) if models is None else models
    finished = finished_manifest(output, zoo, spec, models)
    if finished is not None:
        check_same_layers(spec, finished.layer_schema, schema)
        return Present(len(models), 0, 0, finished)
    plan, records = stored_plan(zoo, spec)
    if plan is None:  # another process has removed it since
        return Present(0, len(models), len(models) * epochs)
    check_same_layers(spec, plan.schema, schema)
    stacks = list(zip(map(len, plan.stacks), records, strict=True))
    there = sum(size for size, record in stacks if record is not None and record.done)
    done = sum(size * epochs_done(record, spec) for size, record in stacks)
    return Present(there, len(models) - there, len(models) * epochs - done, None, plan, records)


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
    require_whole(zoo.path, "built")
    if manifest.imported is not None:
        raise SpecError(f"{zoo.path}: holds a zoo that was imported; choose another folder with --out")
    whole = all(output.holds(name) for name in ("README.md", *manifest.files))
    whole = whole and not manifest.is_partial
    old = _recorded_spec(zoo, manifest, spec)
    states = state_names(zoo, len(manifest.stacks))
    if spec.training.epochs > old.training.epochs and whole and all(map(output.holds, states)):
        check_growth(_longer(old, spec), spec, models)
        return None
    check_growth(old, spec, models)
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
    old = _recorded_spec(zoo, manifest, spec)
    plan, records = reopened(zoo, manifest, old)
    if spec.training.epochs <= old.training.epochs or not all(record.done for record in records):
        return plan, records
    plan = replace(plan, spec=_longer(old, spec))
    return plan, continued(zoo, plan, records, old.training.epochs)


def planned_stacks(
    old: Plan | None,
    spec: ZooSpec,
    schema: Schema,
    models: Sequence[ModelConfig],
    device: str,
    mixed: int | None = None,
) -> list[list[str]]:
    """Return the ids of the models of each stack: the stacks of the old plan, then new stacks for new models."""
    kept = len(spec.training.kept_epochs)
    if old is None:
        return plan_stacks(models, schema, kept, device, mixed)
    check_growth(old.spec, spec, models)
    check_same_layers(spec, old.schema, schema)
    present = {model for stack in old.stacks for model in stack}
    new = [model for model in models if model.model_id not in present]
    return old.stacks + plan_stacks(new, schema, kept, device, mixed)


def write_plan(zoo: ZooFolder, plan: Plan, old: Plan | None, records: Sequence[StackRecord | None]) -> None:
    """Write the plan; where a finished zoo grows, first its old plan and records, so that a kill loses none of it.

    The records of a zoo that is to be trained for more epochs get their kept state.
    """
    if old is not None and not zoo.has(PLAN):
        for stack, record in enumerate(records):
            assert record is not None, "a finished zoo has a record of every stack"
            zoo.write_record(stack, record, zoo.state_bytes(stack, STATE) if record.state.size else b"")
        zoo.write_plan(old)
    if plan != old:
        zoo.write_plan(plan)


def _longer(old: ZooSpec, new: ZooSpec) -> ZooSpec:
    """Return the specification of a finished zoo with the epochs of another one."""
    training = {**old.dump()["training"], "epochs": new.training.epochs}
    return parse_stored_spec({**old.dump(), "training": training}, "spec.yaml")


def _recorded_spec(zoo: ZooFolder, manifest: Manifest, spec: ZooSpec) -> ZooSpec:
    """Return the specification of a finished zoo; without its spec.yaml, ``spec`` if its sha256 is in the manifest."""
    if not zoo.has("spec.yaml") and hashlib.sha256(spec_yaml(spec)).hexdigest() == manifest.files["spec.yaml"].sha256:
        return spec
    return stored_spec(zoo.path, manifest)
