"""Write the generated parts of the documentation: tables of keys and commands, and the reference of the interface.

Keys come from the pydantic models, commands from click, the reference from docstrings and signatures (`reference`).
``python docs/generate.py`` replaces the text between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` in the pages of
this folder; with ``--check`` it writes nothing, and exits with 1 if a page is not current.
"""

import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click
import reference
from pydantic import BaseModel

from representation.benchmark.methods.table import METHODS
from representation.benchmark.results import Summary, read_rows, summarise
from representation.benchmark.tables import markdown
from representation.benchmark.tasks import bundled_tasks, load_task
from representation.recipes import Recipe, bundled_recipes, load_recipe
from representation.search.space import Space
from zootools.bundled import bundled_specs
from zootools.cli import main
from zootools.errors import ZooError
from zootools.spec import Hyperparameters, ZooSpec, load_spec
from zootools.spec.sections import field_docstrings

FOLDER = Path(__file__).parent
BLOCK = re.compile(r"(<!-- begin ([\w-]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
Json = dict[str, Any]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown; cells are one line each."""
    lines = [head, ["---"] * len(head), *([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- keys of specifications and recipes ----------------------------------------------------------------


class Keys:
    """The keys of a document, from the JSON schema of its model: a heading and a table for every section."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.schema = model.model_json_schema()
        self.definitions: dict[str, Json] = self.schema["$defs"]

    def render(self) -> str:
        """Return all tables."""
        return "\n\n".join(self._section("", self.schema))

    def _section(self, path: str, section: Json) -> Iterator[str]:
        prefix, rows = path.partition(":")[0], []
        inner: dict[str, Json] = {}
        alike: dict[str, list[str]] = {}
        for name, field in section["properties"].items():
            key = f"{prefix}.{name}" if prefix else name
            targets = dict(self._targets(key, field))
            if not field.get("description") and key in targets:  # one of several that are alike, such as sample.lr
                targets = {f"{prefix}.AXIS": targets[key]}
                alike.setdefault(f"{prefix}.AXIS", []).append(f"`{key}`")
            else:
                rows.append([f"`{key}`", *self._row(name, field, name in section.get("required", ()), path, targets)])
            inner |= targets
        for target, keys in alike.items():
            rows.append([", ".join(keys), _links([target]), "", "", inner[target]["description"].partition("\n")[0]])
        yield f"### {path or 'Top level'}"
        yield cleandoc(section["description"])
        yield table(["key", "type", "bounds", "default", "meaning"], rows)
        for key, target in inner.items():
            yield from self._section(key, target)

    def _targets(self, key: str, field: Json) -> Iterator[tuple[str, Json]]:
        """Yield the sections of a field, each with its path; a choice of sections has their names appended."""
        for option in [field, *field.get("anyOf", ())]:
            if "$ref" in option:
                yield key, self._resolve(option)
            if "$ref" in (values := option.get("additionalProperties") or {}):
                yield f"{key}.KEY", self._resolve(values)
        for option in field.get("oneOf", ()) if "discriminator" in field else ():
            variant = self._resolve(option)
            names = _literals(variant["properties"][field["discriminator"]["propertyName"]])
            yield f"{key}: {', '.join(names)}", variant

    def _resolve(self, reference: Json) -> Json:
        return self.definitions[reference["$ref"].rpartition("/")[2]]

    def _row(self, name: str, field: Json, required: bool, path: str, targets: dict[str, Json]) -> list[str]:
        """Return type, bounds, default and meaning of a field."""
        meaning = field.get("description")
        default = "required" if required else _plain(field.get("default"))
        if path == "grid":  # an axis is documented in the class of one model's hyper-parameters
            axis = Hyperparameters.model_fields[name]
            meaning = field_docstrings(Hyperparameters)[name]
            default = "required" if axis.is_required() else _plain(axis.default)
        if not meaning:
            raise SystemExit(f"{path}.{name}: has no docstring, which the tables of keys need")
        if targets:
            return [_links(targets), "", "required" if required else "", meaning]
        alternatives = field.get("anyOf") or field.get("oneOf") or [field]
        options = [option for option in alternatives if option.get("type") != "null"]
        # A number that may also be a word, such as auto, has the bounds of the number.
        words = [f"`{name}`" for option in options[1:] if "const" in option for name in _literals(option)]
        kind, bounds = _type(options[0])
        if "oneOf" in field:  # a number, or a list of such numbers
            kind = " or ".join(_type(option)[0] for option in options)
        return [" or ".join([kind, *words]), bounds, default, meaning]


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as Markdown viewers make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _links(sections: Iterable[str]) -> str:
    return "section: " + ", ".join(f"[{section}](#{anchor(section)})" for section in sections)


def _literals(field: Json) -> list[str]:
    return list(field.get("enum", [field.get("const")]))


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`" if value != "" else "empty"


def _type(field: Json) -> tuple[str, str]:
    """Return type and bounds of a plain value or a list, in words."""
    if "enum" in field or "const" in field:
        return "one of", ", ".join(f"`{name}`" for name in _literals(field))
    if "anyOf" in field:
        return " or ".join(_type(option)[0] for option in field["anyOf"]), ""
    if field["type"] == "array" and "prefixItems" in field:
        kind, bounds = _type(field["prefixItems"][0])
        return f"pair of {kind}s", bounds
    if field["type"] == "array":
        kind, bounds = _type(field["items"])
        length = f"{field.get('minItems', 0):,} to {field['maxItems']:,} items" if "maxItems" in field else ""
        kind = "list" if kind == "one of" else f"list of {' or '.join(f'{word}s' for word in kind.split(' or '))}"
        return kind, "; ".join(part for part in (bounds, length) if part)
    bounds = []
    if "minimum" in field and "maximum" in field:
        bounds.append(f"{field['minimum']:,} to {field['maximum']:,}")
    else:
        words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
        numbers = {key: "2^63" if field.get(key) == 2**63 else f"{field.get(key, 0):,}" for key in words}
        bounds += [f"{word} {numbers[key]}" for key, word in words.items() if key in field]
    if "maxLength" in field:
        bounds.append(f"at most {field['maxLength']:,} characters")
    if "pattern" in field:
        bounds.append(f"matches `{field['pattern']}`")
    return field["type"], ", ".join(bounds)


def specs() -> str:
    """Return a table of the bundled specifications."""
    rows = []
    for name, path in bundled_specs().items():
        spec = load_spec(path)
        counts = [f"{spec.model_count:,}", f"{len(spec.training.kept_epochs)}"]
        rows.append([f"`{name}`", spec.images.name, spec.architecture.name, *counts, spec.description])
    return table(["name", "images", "architecture", "models", "checkpoints of each", ""], rows)


def recipes() -> str:
    """Return a table of the bundled recipes."""
    return table(["name", ""], [[f"`{name}`", load_recipe(name).description] for name in bundled_recipes()])


# --- the benchmark -----------------------------------------------------------------------------------------


def tasks() -> str:
    """Return a table of the bundled tasks."""
    rows = []
    for name in bundled_tasks():
        task = load_task(name)
        numbers = [f"{task.ceiling:.3f}" if task.ceiling is not None else "", f"{task.statistics.majority:.3f}"]
        split = task.statistics.splits["test"]
        size = f"{split.checkpoints:,} of {split.models:,} models"
        rows.append([f"`{name}`", task.description, task.metric, *numbers, size])
    return table(["name", "", "metric", "ceiling", "majority", "test networks"], rows)


def methods() -> str:
    """Return a table of the methods of the benchmark."""
    rows = [
        [f"`{name}`", cleandoc(kind.__doc__ or "").partition("\n\n")[0], *("yes" if has else "no" for has in marks)]
        for name, kind in METHODS.items()
        for marks in [(kind.invariant, kind.trains, kind.runs)]
    ]
    return table(["name", "", "invariant", "needs seeds", "runs the networks"], rows)


@functools.cache
def recorded() -> list[Summary]:
    """Return the recorded result rows, one entry for each task and method."""
    return summarise(read_rows(FOLDER / "benchmark.json"))


def results() -> str:
    """Return the table of the recorded result rows."""
    return markdown(recorded()).strip()


def overview() -> str:
    """Return the mean score of every method on every task, a table for each zoo that methods are fitted to."""
    found = {(entry.task, entry.method): entry.score for entry in recorded()}
    tasks = [load_task(name) for name in dict.fromkeys(name for name, _ in found)]
    lines = []
    for zoo in sorted({task.zoo.name for task in tasks}):
        own = [task for task in tasks if task.zoo.name == zoo]
        rows = [["ceiling", *("" if task.ceiling is None else f"{task.ceiling:.3f}" for task in own)]]
        rows += [[f"`{method}`"] for method in METHODS]
        for task in own:
            scores = [found.get((task.name, method), "") for method in METHODS]
            best = max(score for score in scores if isinstance(score, float))
            for row, score in zip(rows[1:], scores, strict=True):
                row.append(_score(score, best))
        lines += [f"Fitted to `{zoo}`:", table([zoo, *(task.name.removeprefix(f"{zoo}_") for task in own)], rows)]
    return "\n\n".join(lines)


def _score(score: float | str | None, best: float) -> str:
    if isinstance(score, float):
        return f"**{score:.3f}**" if score == best else f"{score:.3f}"
    return "none" if score is None else score


# --- commands ----------------------------------------------------------------------------------------------


def commands() -> str:
    """Return every command with its help, arguments and options."""
    with click.Context(main, info_name="zootools") as context:
        return "\n\n".join(_command(main, context))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    if context.parent is not None:
        text, *example = re.split(r"\x08\nExamples?:\n", cleandoc(command.help or ""))
        yield f"### {context.command_path}"
        yield f"`{' '.join([context.command_path, *command.collect_usage_pieces(context)])}`"
        yield text.strip()
        if example:
            yield f"```text\n{cleandoc(example[0]).strip()}\n```"
    options = [option for option in command.params if isinstance(option, click.Option)]
    if options:
        rows = [[_spelling(option, context), _meaning(option), _default(option)] for option in options]
        yield table(["option", "meaning", "default"], rows)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            with click.Context(inner, parent=context, info_name=name) as below:
                yield from _command(inner, below)


def _spelling(option: click.Option, context: click.Context) -> str:
    names = " / ".join(
        ", ".join(f"`{name}`" for name in names) for names in (option.opts, option.secondary_opts) if names
    )
    if option.is_flag:
        return names
    if isinstance(option.type, click.IntRange) and option.metavar is None:
        upper = f" to {option.type.max}" if option.type.max is not None else ""
        return f"{names} `INTEGER` from {option.type.min}{upper}"
    return f"{names} `{option.make_metavar(context)}`"


def _meaning(option: click.Option) -> str:
    if not option.help:
        raise SystemExit(f"the option {option.opts[0]} has no help, which the table of options needs")
    return option.help.replace("<", "&lt;") + (" May be given several times." if option.multiple else "")


def _default(option: click.Option) -> str:
    return "required" if option.required else f"`{option.default}`" if option.show_default else ""


def exit_codes() -> str:
    """Return a table of exit codes, from the errors that have them."""
    rows = [
        ["0", "Done."],
        ["1", "`diff`: the zoos differ. Else an internal error; please report it with the output of `--debug`."],
    ]
    classes, found = [ZooError], dict[int, list[str]]()
    for error in classes:
        classes += error.__subclasses__()
        if error is not ZooError and error.__module__ == ZooError.__module__:
            found.setdefault(error.exit_code, []).append(cleandoc(error.__doc__ or ""))
    rows += [[str(code), " ".join(meanings)] for code, meanings in sorted(found.items())]
    return table(["code", "meaning"], rows)


GENERATED = {
    "spec-keys": lambda: Keys(ZooSpec).render(),
    "specs": specs,
    "recipe-keys": lambda: Keys(Recipe).render(),
    "recipes": recipes,
    "search-keys": lambda: Keys(Space).render(),
    "benchmark-tasks": tasks,
    "benchmark-methods": methods,
    "benchmark-overview": overview,
    "benchmark-results": results,
    "commands": commands,
    "exit-codes": exit_codes,
    "api": reference.render,
}


def render(page: str) -> str:
    """Return a page with its generated parts replaced."""
    return BLOCK.sub(lambda match: f"{match[1]}{GENERATED[match[2]]()}\n{match[3]}", page)


def run(check: bool) -> int:
    """Write, or check, all pages; return the exit code."""
    stale = 0
    for path in sorted(FOLDER.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            stale += 1
            print(f"{path.name}: {'is not current; run python docs/generate.py' if check else 'written'}")
            if not check:
                path.write_text(new, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(run("--check" in sys.argv[1:]))
