"""Commands that publish, find and download zoos."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from zootools.cli.completion import complete_zoos
from zootools.cli.output import show_pairs, show_table, size
from zootools.cli.shared import HUB, JSON, QUIET, REVISION, Group, PathType, print_value
from zootools.text import say


@click.command()
@click.argument("zoo", shell_complete=complete_zoos)
@click.argument("name", metavar="ORG/NAME")
@HUB
@click.option("--public/--private", default=None, help="Who may read the zoo; a new one is private by default.")
@click.option("--revision", help="The branch to publish to; default main.")
@click.option("--tag", help="A name for this version, such as v1.0; tags cannot be changed.")
@click.option("--allow-partial", is_flag=True, help="Publish an unfinished zoo; its card says so.")
@click.option("--dry-run", is_flag=True, help="Print the card and the files with their sizes; upload nothing.")
@QUIET
@JSON
def publish(
    zoo: str,
    name: str,
    hub: str | None,
    public: bool | None,
    revision: str | None,
    tag: str | None,
    allow_partial: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Publish a zoo; after an interruption the same command resumes.

    \b
    Examples:
      zootools publish zoos/tetris_seed my-group/tetris_seed --tag v1.0
      zootools publish zoos/tetris_seed my-group/tetris_seed --hub /data/hub
    """
    from zootools.hub.names import require_name
    from zootools.hub.publish import publish as publish_zoo
    from zootools.hub.release import prepare

    if dry_run:
        with prepare(zoo, require_name(name, revision), allow_partial) as planned:
            sizes = {file: info.size for file, info in planned.files.items()}
            value: dict[str, Any] = {"name": name, "bytes": planned.size, "files": sizes, "card": planned.card.decode()}
        print_value(value, as_json, _show_plan)
        return
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # ours counts all files
    done = publish_zoo(
        zoo, name, hub=hub, public=public, revision=revision, tag=tag, allow_partial=allow_partial, quiet=quiet
    )
    value = {
        "name": name,
        "hub": done.where,
        "commit": done.commit,
        "commits": done.commits,
        "files": done.files,
        "bytes": done.size,
        "changes": list(done.changes),
        "address": done.address,
        "load": list(done.load),
    }
    print_value(value, as_json, _show_published)


def _show_published(value: dict[str, Any]) -> None:
    show_pairs({key: item for key, item in value.items() if key not in ("changes", "load")})
    say("", "To load it:", *(f"  {line}" for line in value["load"]))
    if not value["changes"]:
        say("nothing to do: this version was already published", err=True)


def _show_plan(value: dict[str, Any]) -> None:
    say(*(f"  {line}".rstrip() for line in value["card"].split("\n")), limit=None)
    show_table(["file", "bytes"], list(value["files"].items()))
    say(f"{size(value['bytes'])} in {len(value['files'])} files")


@click.command()
@click.argument("name", metavar="ORG/NAME|URL")
@click.argument("folder", metavar="[DIR]", required=False, type=PathType(new=True))
@click.option("--where", metavar="EXPR", help='Only checkpoints for which this holds, such as "test_accuracy > 0.5".')
@click.option("--epochs", metavar="LIST", help="Only these epochs: numbers and ranges, such as 0,10,20-25.")
@click.option("--metadata-only", is_flag=True, help="Only the metadata, without weights.")
@REVISION
@HUB
@QUIET
@JSON
def pull(
    name: str,
    folder: Path | None,
    where: str | None,
    epochs: str | None,
    metadata_only: bool,
    revision: str | None,
    hub: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Download a published zoo, or a part of it, into a folder (./NAME by default) and check every file.

    A part has the metadata of the whole zoo, the weights of the checkpoints that were chosen, and the file part.json,
    which names the whole zoo and the choice. All commands that read a zoo read the chosen checkpoints; the same
    command without --where, --epochs and --metadata-only completes the zoo.

    \b
    Examples:
      zootools pull my-group/tetris_seed zoos/tetris_seed
      zootools pull my-group/tetris_seed best --where "test_accuracy > 0.9" --epochs 0,50-75
    """
    from zootools.hub.names import require_name
    from zootools.hub.pull import pull as pull_zoo
    from zootools.object_store.urls import is_url
    from zootools.storage.part import Selection, parse_epochs

    folder = folder or Path(name.rstrip("/").rpartition("/")[2] if is_url(name) else require_name(name, revision).name)
    only = Selection(where, parse_epochs(epochs) if epochs is not None else None, not metadata_only)
    place = pull_zoo(name, folder, revision=revision, hub=hub, only=only, quiet=quiet)
    print_value({"zoo": str(folder), "name": place.name, "commit": place.commit}, as_json, show_pairs)


@click.group(cls=Group)
def hub() -> None:
    """Find published zoos."""


@hub.command("list")
@HUB
@JSON
def list_zoos(hub: str | None, as_json: bool) -> None:
    """List the zoos of a hub.

    \b
    Examples:
      zootools hub list
      zootools hub list --hub /data/hub
    """
    _print_zoos("", hub, as_json)


@hub.command()
@click.argument("word")
@HUB
@JSON
def search(word: str, hub: str | None, as_json: bool) -> None:
    """List the zoos whose name or description contains a word.

    \b
    Examples:
      zootools hub search digits
    """
    _print_zoos(word, hub, as_json)


def _print_zoos(word: str, hub: str | None, as_json: bool) -> None:
    from zootools.hub.catalog import zoos

    def show(value: dict[str, Any]) -> None:
        columns = ("models", "bytes", "date", "description")
        rows = [[name, *(entry[column] for column in columns)] for name, entry in value.items()]
        show_table(["name", *columns], rows)

    found = {entry.name: {k: v for k, v in asdict(entry).items() if k != "name"} for entry in zoos(word, hub)}
    print_value(found, as_json, show)
    if not found:
        say("no zoo found" + (f" with {word!r} in its name or description" if word else ""), err=True)


@hub.command()
@click.argument("name", metavar="ORG/NAME")
@REVISION
@HUB
@JSON
def info(name: str, revision: str | None, hub: str | None, as_json: bool) -> None:
    """Describe a published zoo, without downloading weights.

    \b
    Examples:
      zootools hub info my-group/tetris_seed
      zootools hub info my-group/tetris_seed --revision v1.0
    """
    from zootools.hub.catalog import describe

    print_value(describe(name, revision=revision, hub=hub).to_json(), as_json, show_pairs)
