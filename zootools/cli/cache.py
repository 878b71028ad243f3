"""The command that shows and cleans the user's cache."""

from dataclasses import asdict
from typing import Any

import click

from zootools.cli.output import show_table, size
from zootools.cli.shared import JSON, Group, print_value
from zootools.text import say


@click.group(cls=Group, invoke_without_command=True)
@JSON
@click.pass_context
def cache(context: click.Context, as_json: bool) -> None:
    """Show what lies in the cache, where, and how large it is.

    \b
    Examples:
      zootools cache
      zootools cache --json
    """
    if context.invoked_subcommand is not None:
        return
    from zootools.cache import cache_entries

    def show(value: dict[str, Any]) -> None:
        columns = ("files", "bytes", "description", "folder")
        show_table(["kind", *columns], [[kind, *(entry[c] for c in columns)] for kind, entry in value.items()])

    print_value({e.kind: {k: v for k, v in asdict(e).items() if k != "kind"} for e in cache_entries()}, as_json, show)


@cache.command()
@click.argument("kind", required=False)
@JSON
def clean(kind: str | None, as_json: bool) -> None:
    """Remove one KIND of files from the cache, or everything in it, and print what was removed.

    Nothing outside the cache is touched, and no link is followed. Everything is made or downloaded again when it is
    needed.

    \b
    Examples:
      zootools cache clean
      zootools cache clean native
    """
    from zootools.cache import clean_cache

    removed = []
    for entry in clean_cache(kind):
        removed.append(asdict(entry))
        if not as_json:
            say(f"kept {entry.path}: {entry.kept}" if entry.kept else f"removed {entry.path}, {size(entry.bytes)}")
    total = sum(entry["bytes"] for entry in removed)
    print_value({"removed": removed, "bytes": total}, as_json, lambda value: say(f"removed {size(total)} in all"))
