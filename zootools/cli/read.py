"""Commands that read a zoo as a whole."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zootools.cli.completion import complete_zoos
from zootools.cli.output import in_words, show_pairs
from zootools.cli.sampling import show_audit
from zootools.cli.shared import JSON, QUIET, SCHEMA, ZOO, located, print_value, show_accuracy, without_pandas
from zootools.errors import DamagedZooError
from zootools.text import say

if TYPE_CHECKING:
    from zootools.difference import Matching
    from zootools.storage.imported import Imported
    from zootools.zoo import Zoo

MOST_NAMES = 5
"""Names of models, checkpoints or files that are printed of each kind; `--json` has all of them."""


@click.command()
@ZOO
@SCHEMA
@JSON
def info(zoo: str, schema: Path | None, as_json: bool) -> None:
    """Describe the contents of a zoo.

    \b
    Examples:
      zootools info zoos/digits_seed
      zootools info my-group/tetris_seed --json
    """
    from zootools.open import open_zoo
    from zootools.storage.status import status as read_status
    from zootools.storage.tables import accuracy_summary

    without_pandas()
    opened = open_zoo(zoo, schema=schema, include_diverged=True)
    spec, origin = opened.stored_spec, opened.stored_spec or opened.imported
    if opened.finished:
        counts = opened.counts.model_dump()
    else:
        found = read_status(opened.folder)
        counts = {**found.counts.model_dump(), **(asdict(found.progress) if found.progress else {})}
    axes: dict[str, Any] = {name: list(values) for name, values in spec.grid.axes.items()} if spec else {}
    if spec and spec.sample:
        axes |= {name: draw.dump() for name, draw in spec.sample.axes.items()}
    value = {
        "name": opened.name,
        "finished": opened.finished,
        **counts,
        "checkpoints": len(opened),
        "parameters": opened.schema.size,
        "architecture": opened.schema.name,
        "images": origin.images.name if origin and origin.images else None,
        **_about(opened),
        "imported": _import_of(opened.imported),
        "axes": axes,
        "test_accuracy": accuracy_summary(opened.metadata) if origin else {},
        "left_out": opened.left_out,
    }

    def show(value: dict[str, Any]) -> None:
        imported = dict(value["imported"] or {})
        audit = imported.pop("audit", None)
        outcomes = {key: value[key] for key in ("ok", "diverged", "failed", "missing") if key in value}
        models = {"models": f"{in_words(value['expected'])}: {in_words(outcomes)}"} if outcomes else {}
        later = ("test_accuracy", "left_out", "imported", "expected", *outcomes)
        shown = {key: item for key, item in value.items() if key not in later and (item or item == 0)}
        show_pairs({"name": shown.pop("name"), **models, **shown, **imported})
        if audit is not None:
            say("audit of the samples")
            show_audit(audit)
        for name, reason in value["left_out"].items():
            say(f"left out: {name}: {reason}")
        if value["test_accuracy"]:
            show_accuracy(value["test_accuracy"])

    print_value(value, as_json, show)


def _about(zoo: "Zoo") -> dict[str, Any]:
    """Return what is known about the images and the authors of a zoo, for `info`; keys without a value are left out."""
    spec, facts = zoo.stored_spec, zoo.image_facts
    found = {
        "classes": list(zoo.class_names),
        "mean": facts.mean,
        "std": facts.std,
        "authors": list(spec.authors) if spec else [],
        "homepage": spec.homepage if spec else None,
        "citation": spec.citation if spec else "",
    }
    return {key: value for key, value in found.items() if value}


def _import_of(imported: "Imported | None") -> dict[str, Any] | None:
    """Return where an imported zoo comes from, for `info`; None for a zoo that was built."""
    if imported is None:
        return None
    check = imported.check
    found = f"{check.checkpoints} checkpoints on {check.images}"
    if check.column:
        found += f", {check.column} within {check.largest_difference:g}"
    checked = f"no: {check.not_checked}" if check.not_checked else found
    if imported.parent is not None:
        return {
            "made_by": f"zootools {imported.kind}, not by training",
            "parent": imported.parent.name,
            "parent_sha256": imported.parent.sha256,
            "settings": imported.options,
            **({"audit": imported.audit.model_dump()} if imported.audit is not None else {}),
            "checked": checked,
        }
    return {
        "imported_from": imported.kind,
        "source_files": imported.source.count,
        "source_sha256": imported.source.sha256,
        "not_imported": "; ".join(f"{row.count:,} {row.why}" for row in imported.left_out) or "nothing is left out",
        "checked": checked,
    }


@click.command()
@ZOO
@JSON
def status(zoo: str, as_json: bool) -> None:
    """Print the progress of a build, and whether it runs or was interrupted.

    A running build is shown with its process, its speed and the time left; an interrupted one with the time when it was
    last written, and what resumes it. The build does not notice it. Of a build on Ray the process is the driver; in an
    object store, a builder that was not heard of for 90 seconds may run or not.

    \b
    Examples:
      zootools status zoos/digits_seed
    """
    from zootools.hub.locate import locate
    from zootools.object_store.reader import build_status_of
    from zootools.object_store.urls import folder_of
    from zootools.storage.status import status as build_status

    found = build_status_of(zoo) if folder_of(zoo) is None else build_status(locate(zoo).folder)
    print_value(found.to_json(), as_json, lambda value: show_pairs({k: v for k, v in value.items() if v is not None}))


@click.command()
@ZOO
@QUIET
@JSON
def verify(zoo: str, quiet: bool, as_json: bool) -> None:
    """Compare every file of a zoo with its manifest and with the data it is derived from; exit code 3 for any fault.

    Tables are compared with the checkpoints, models and layers with the specification, the card with all of them.
    Hidden files at the top of the folder are ignored. After an interruption, files that were hashed before are not
    hashed again.

    \b
    Examples:
      zootools verify zoos/digits_seed
    """
    import sys

    from tqdm import tqdm

    from zootools.hub.locate import locate
    from zootools.verify import card_repository, place_faults

    place = locate(zoo)
    with tqdm(desc="verifying", unit="B", unit_scale=True, disable=quiet or not sys.stderr.isatty()) as bar:
        found = [str(fault) for fault in place_faults(place, bar.update)]
    print_value({"zoo": zoo, "faults": found}, as_json, lambda value: None)
    if found:
        raise DamagedZooError(f"{zoo}: {len(found)} faults", *(f"  {fault}" for fault in found))
    if not as_json:
        say(f"{zoo}: no faults")
        if place.repository is None and (named := card_repository(place.folder)):
            say(f"according to its card it was published as {named}")


@click.command()
@click.argument("zoo", shell_complete=complete_zoos)
@JSON
def repair(zoo: str, as_json: bool) -> None:
    """Remove damaged files from a zoo folder; the next build makes them again, with the same bytes.

    \b
    Examples:
      zootools repair zoos/digits_seed
    """
    from zootools.errors import SpecError, ZooNotFoundError, nearest_path
    from zootools.filesystem.files import exists
    from zootools.object_store.urls import folder_of
    from zootools.verify import UNLISTED
    from zootools.verify import repair as repair_zoo

    folder = folder_of(zoo)
    if folder is None:
        raise SpecError(f"{zoo}: is the URL of an object store; only folders can be repaired")
    if not exists(folder):
        raise ZooNotFoundError(f"{zoo}: there is no such folder{nearest_path(folder)}")
    found = repair_zoo(folder)
    dropped = [str(fault) for fault in found if fault.what != UNLISTED]
    left = [fault.name for fault in found if fault.what == UNLISTED]

    def show(value: dict[str, Any]) -> None:
        for fault in value["dropped"]:
            say(f"removed {fault}")
        for name in value["left_alone"]:
            say(f"kept: {name}, which does not belong to the zoo")
        say("now build the zoo again with its specification" if value["dropped"] else "nothing to repair")

    print_value({"zoo": zoo, "dropped": dropped, "left_alone": left}, as_json, show)


@click.command()
@located(["first"], ["second"])
@click.argument("first", metavar="ZOO")
@click.argument("second", metavar="ZOO")
@JSON
def diff(first: str, second: str, as_json: bool) -> None:
    """Compare two zoos: specifications, models, scores of common checkpoints, files; exit code 1 if they differ.

    Files are compared by the digests in the manifests, so no weights are fetched; `zootools verify` compares the files
    of one zoo with its manifest. README.md, build.json and zoo.json are not compared.

    \b
    Examples:
      zootools diff zoos/digits_seed ORG/digits_seed
    """
    import sys

    from zootools.difference import diff as compare

    found = compare(first, second)

    def show(value: dict[str, Any]) -> None:
        if found.equal:
            counts = (("models", found.models), ("checkpoints", found.checkpoints), ("files", found.files))
            say("equal: " + ", ".join(f"{matching.both:,} {name}" for name, matching in counts))
            return
        for key in found.specification:
            missing = "no such key"
            say(f"specification  {key.key}: {key.first or missing} in the first, {key.second or missing} in the second")
        for name in ("models", "checkpoints", "files"):
            _show_matching(name, getattr(found, name), found.changed if name == "files" else [])
        if found.columns_in_one:
            say(f"{'columns':<14} in one zoo only: {', '.join(found.columns_in_one)}")
        for column in found.columns:
            most = "" if column.largest is None else f", by at most {column.largest:g}"
            say(f"{'column':<14} {column.column}: {column.checkpoints:,} of {found.checkpoints.both:,} differ{most}")

    print_value(found.to_json(), as_json, show)
    if not found.equal:
        sys.exit(1)


def _show_matching(what: str, found: "Matching", changed: list[str]) -> None:
    """Print how many names two zoos share, and the first ones that are in one only or (``changed``) differ."""
    equal = f"{found.both - len(changed):,} equal" if what == "files" else f"{found.both:,} in both"
    say(f"{what:<14} {equal}, {len(changed):,} differ" if what == "files" else f"{what:<14} {equal}")
    for where, names in (
        ("differ", changed),
        ("only in the first", found.only_first),
        ("only in the second", found.only_second),
    ):
        if names:
            more = f", ... ({len(names) - MOST_NAMES:,} more)" if len(names) > MOST_NAMES else ""
            say(f"{'':<14} {where}: {', '.join(names[:MOST_NAMES])}{more}")
