"""Completion of arguments in the shell: specifications, recipes, tables and figures, zoos, models, encoders.

A shell runs `zootools` at every press of the tab key, so nothing here imports torch, pydantic or pyarrow. Files of
strangers are only read as JSON, and text from them that a shell could take for something else is left out.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from zootools.bundled import bundled_specs
from zootools.filesystem.files import home_expanded
from zootools.filesystem.inside import is_file_inside, open_inside

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

FIGURES = (
    "all",
    *(f"table{number}" for number in range(1, 14)),
    *(f"figure{number}" for number in range(4, 15)),
    "faults",
    "gap",
)
"""What `zootools reproduce` accepts; `representation.reproduction.items` takes seconds to import."""
DEPTH = 3
"""Levels of folders below the typed one in which zoos and encoders are found."""
MOST_ENTRIES = 2000
"""Maximal number of entries that are read of a folder, and of completions."""
LARGEST_MANIFEST = 1 << 26
"""Maximal size in bytes of a zoo.json that is read for the ids of models."""
_PLAIN = re.compile(r"[\w./@+~=-]+")


def complete_specs(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the name of a bundled specification, or the path of a YAML file."""
    return _items([*bundled_specs(), *_files(typed)], typed)


def complete_spec_names(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the name of a bundled specification."""
    return _items(bundled_specs(), typed)


def complete_recipes(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the name of a bundled recipe, or the path of a YAML file."""
    import representation

    folder = Path(representation.__path__[0]) / "recipes"
    return _items([*sorted(path.stem for path in folder.glob("*.yaml")), *_files(typed)], typed)


def complete_figures(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the name of a table or figure of the paper that was not given before."""
    given = context.params.get(parameter.name or "") or ()
    return _items((name for name in FIGURES if name not in given), typed)


def complete_zoos(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the folder of a zoo, finished or not, at most `DEPTH` levels below the typed folder."""
    return _items(_marked(typed, ("zoo.json", ".work/plan.json")), typed, "dir")


def complete_encoders(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the folder of an encoder, at most `DEPTH` levels below the typed folder."""
    return _items(_marked(typed, ("model.safetensors",)), typed, "dir")


def complete_models(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the id of a model of the finished zoo in the argument ``zoo``."""
    # click parses no arguments while the value of an option is missing; the first one is left over then.
    zoo = context.params.get("zoo") or next(iter(context.args), "")
    return _items(sorted(islice(_models(zoo), MOST_ENTRIES)), typed)


def _models(zoo: str) -> Iterator[str]:
    """Yield the ids of models in a zoo.json, as far as it has the form of one."""
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        with open_inside(home_expanded(zoo), "zoo.json") as file:
            manifest: Any = json.loads(file.read(LARGEST_MANIFEST))
        yield from (model for stack in manifest["stacks"] for model in stack["models"] if isinstance(model, str))


def _items(values: Iterable[str], typed: str, otherwise: str = "") -> list[CompletionItem]:
    """Return the values that begin as typed; without any, and if ``otherwise`` is given, let the shell list paths."""
    found = [CompletionItem(value) for value in values if value.startswith(typed) and _PLAIN.fullmatch(value)]
    return found or ([CompletionItem(typed, type=otherwise)] if otherwise else [])


def _files(typed: str) -> Iterator[str]:
    """Yield the YAML files of the typed folder and of those in it, spelled as typed."""
    for folder, entries in _below(typed, 1):
        yield from sorted(folder + name for name in entries if name.endswith((".yaml", ".yml")))


def _marked(typed: str, files: Iterable[str]) -> Iterator[str]:
    """Yield the folders that contain one of some files, spelled as typed."""
    for folder, _ in _below(typed, DEPTH):
        if folder and any(is_file_inside(home_expanded(folder), file) for file in files):
            yield folder.rstrip("/")


def _below(typed: str, depth: int) -> Iterator[tuple[str, list[str]]]:
    """Yield folders that begin as typed, with a slash at their end, and the names of the entries of each.

    The typed folder comes first, and then the others by depth and name. Links to folders and hidden names are left out.
    """
    start, _, prefix = typed.rpartition("/")
    waiting = [(start + "/" if "/" in typed else "", prefix, depth)]
    while waiting:
        folder, prefix, left = waiting.pop(0)
        with suppress(OSError), os.scandir(home_expanded(folder or ".")) as opened:
            entries = [entry for entry in islice(opened, MOST_ENTRIES) if not entry.name.startswith(".")]
            yield folder, [entry.name for entry in entries]
            inner = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            if left:
                waiting += [(f"{folder}{name}/", "", left - 1) for name in inner if name.startswith(prefix)]
