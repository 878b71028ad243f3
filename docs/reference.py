"""Render the reference of the Python interface, from the source alone: nothing is imported, so nothing waits for torch.

Public are the names of the two packages and of the modules that the documentation imports from: those in ``__all__``,
or in a module without it all classes and functions without an underscore. `MORE` adds what users catch, extend or call.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("zootools", "representation")
MORE = {
    "representation.loss_kinds": ("LossKind",),
    "zootools.building.options": ("BuildOptions",),
    "zootools.checkpoint_dataset": ("CheckpointDataset",),
    "zootools.conditions": ("parse_condition",),
    "zootools.difference": ("diff", "ZooDifference", "Matching", "KeyDifference", "ColumnDifference"),
    "zootools.engines.engine": ("BuildJob", "Engine", "Report"),
    "zootools.errors": (),
    "zootools.hub.publish": ("publish",),
    "zootools.hub.pull": ("pull",),
    "zootools.listing": ("model_table",),
    "zootools.phases": ("Phases",),
    "zootools.source": ("Request", "Source"),
    "zootools.training.backend": ("Backend", "Trainer", "StandardBackend"),
    "zootools.training.table": ("choose_backend",),
    "zootools.verify": ("Fault", "faults", "repair"),
}
"""Public names of modules that no example imports from; all classes where none is named."""
IMPORT = re.compile(r"^from ((?:zootools|representation)[\w.]*) import ", re.MULTILINE)
WIDTH = 100

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Public:
    """A public name and where it is defined."""

    module: str
    """The module that it is imported from."""
    name: str
    node: Definition


def render() -> str:
    """Return a heading for every public module, class and function, with signatures and docstrings, as Markdown.

    Raises SystemExit for a public name without a docstring.
    """
    parts: list[str] = []
    seen: set[Definition] = set()
    for module in public_modules():
        entries = [entry for entry in public_names(module) if entry.node not in seen]
        if not entries:
            continue
        seen |= {entry.node for entry in entries}
        parts += [f"## {module}", markdown(docstring(tree(module), module))]
        for entry in entries:
            parts += _entry(entry)
    return "\n\n".join(part for part in parts if part)


def public_modules() -> list[str]:
    """Return the public modules: the two packages, then those of the examples and `MORE` in alphabetical order."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.py")]
    imported = {module for page in pages for module in IMPORT.findall(page.read_text(encoding="utf-8"))}
    return [*PACKAGES, *sorted({*imported, *MORE} - {*PACKAGES})]


def public_names(module: str) -> Iterator[Public]:
    """Yield the public classes and functions of a module, in the order of ``__all__`` or of the source.

    Raises SystemExit for a name in `MORE` that the module does not have.
    """
    listed = MORE.get(module) or _listed(tree(module))
    if listed is None:
        kind = ast.ClassDef if module in MORE else Definition
        listed = [node.name for node in tree(module).body if isinstance(node, kind) and node.name[0] != "_"]
    for name in listed:
        node = definition(module, name)
        if isinstance(node, Definition):
            yield Public(module, name, node)
        elif module in MORE:
            raise SystemExit(f"{module} has no class or function {name}, which docs/reference.py lists")


@cache
def tree(module: str) -> ast.Module:
    """Return the parsed source of a module."""
    return ast.parse(_path(module).read_text(encoding="utf-8"))


def _path(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    file = path.with_suffix(".py")
    return file if file.exists() else path / "__init__.py"


def _listed(body: ast.Module) -> list[str] | None:
    for node in body.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
    return None


@cache
def definition(module: str, name: str) -> ast.AST | None:
    """Return the class, function or assignment behind a name, through as many imports as there are."""
    for node in ast.walk(tree(module)):
        if isinstance(node, Definition) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            source = node.module or ""
            return definition(source, name) if source.partition(".")[0] in PACKAGES else None
    return None


def docstring(node: ast.Module | Definition, name: str) -> str:
    """Return the docstring of a module, class or function. Raises SystemExit if it has none."""
    text = ast.get_docstring(node)
    if not text:
        raise SystemExit(f"{name} has no docstring, which docs/api.md needs")
    return text


# --- classes and functions ------------------------------------------------------------------------------------


def _entry(entry: Public) -> Iterator[str]:
    name = f"{entry.module}.{entry.name}"
    yield f"### {name}"
    if isinstance(entry.node, ast.ClassDef):
        bases = [ast.unparse(base) for base in entry.node.bases]
        heading = f"class {entry.name}" + (f"({', '.join(bases)})" if bases else "")
        yield _fenced(heading)
        yield markdown(docstring(entry.node, name))
        yield _attributes(entry.node)
        for method in _methods(entry.node):
            yield from _method(entry.name, method, name)
    else:
        yield _fenced(signature(entry.node))
        yield markdown(docstring(entry.node, name))


def _attributes(node: ast.ClassDef) -> str:
    """Return a list of the attributes of a class that have docstrings; of the documented fields of a dataclass."""
    lines = []
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and _is_text(text):
            about = " ".join(cleandoc(ast.literal_eval(ast.unparse(text))).split())
            lines.append(f"- `{ast.unparse(field.target)}: {_plain(field.annotation)}`: {about}")
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and _is_property(method) and method.name[0] != "_":
            about = " ".join(docstring(method, f"{node.name}.{method.name}").split())
            returned = f": {_plain(method.returns)}" if method.returns else ""
            lines.append(f"- `{method.name}{returned}`: {about}")
    return "\n".join(lines)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


class _Bare(ast.NodeTransformer):
    """Replaces ``Annotated[T, ...]`` by ``T``; the bounds of keys are in the tables of keys."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """Replace one subscript."""
        if ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            return self.visit(node.slice.elts[0])  # type: ignore[no-any-return]
        return self.generic_visit(node)


def _plain(annotation: ast.expr) -> str:
    """Return an annotation without bounds, and without the quotes of names that are defined later."""
    bare = _Bare().visit(ast.parse(ast.unparse(annotation), mode="eval"))
    return _quoted(bare).strip('"')


def _quoted(node: ast.AST) -> str:
    """Return the source of an expression, with double quotes as in the code."""
    return ast.unparse(node).replace("'", '"')


def _decorators(node: Definition) -> list[str]:
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def _is_property(node: Definition) -> bool:
    return any(name in ("property", "cached_property", "computed_field") for name in _decorators(node))


def _methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Yield the public methods of a class, without properties and overrides that have the docstring of their base."""
    for method in node.body:
        if not isinstance(method, ast.FunctionDef) or _is_property(method):
            continue
        overrides = bool(node.bases) and ast.get_docstring(method) is None
        constructor = method.name == "__init__" and len(method.args.args) > 1
        if (method.name[0] != "_" and not overrides) or constructor:
            yield method


def _method(owner: str, method: ast.FunctionDef, name: str) -> Iterator[str]:
    yield _fenced(signature(method, owner))
    if method.name != "__init__" or ast.get_docstring(method):
        yield markdown(docstring(method, f"{name}.{method.name}"))


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef, owner: str = "") -> str:
    """Return a function or method as it is called, one argument per line if it is long."""
    name, arguments, decorators = node.name, list(_arguments(node.args)), _decorators(node)
    if owner:
        if "staticmethod" not in decorators:
            del arguments[0]  # self or cls
        bound = {"classmethod", "staticmethod"} & {*decorators}
        name = owner if name == "__init__" else f"{owner if bound else owner.lower()}.{name}"
    returned = f" -> {_plain(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{name}({', '.join(arguments)}){returned}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {argument}," for argument in arguments), f"){returned}"])


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    """Yield the arguments one by one, with ``/`` and ``*``."""
    named = [*arguments.posonlyargs, *arguments.args]
    defaults = [*[None] * (len(named) - len(arguments.defaults)), *arguments.defaults]
    for index, (argument, default) in enumerate(zip(named, defaults, strict=True), start=1):
        yield _argument(argument, default)
        if index == len(arguments.posonlyargs):
            yield "/"
    if arguments.vararg:
        yield f"*{_argument(arguments.vararg, None)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(argument, default)
    if arguments.kwarg:
        yield f"**{_argument(arguments.kwarg, None)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    annotation = f": {_plain(argument.annotation)}" if argument.annotation else ""
    return f"{argument.arg}{annotation}" + (f" = {_quoted(default)}" if default is not None else "")


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"


# --- docstrings -----------------------------------------------------------------------------------------------


def markdown(text: str) -> str:
    """Return a docstring as Markdown: its ``Args:`` and ``Raises:`` as lists, its examples fenced."""
    parts = []
    for block in re.split(r"\n\s*\n(?=\S)", text):
        heading, _, rest = block.partition("\n")
        if heading in ("Args:", "Raises:", "Attributes:"):
            parts += [heading, _listed_names(rest)]
        elif heading in ("Returns:", "Yields:"):
            parts.append(f"{heading} {cleandoc(rest)}")
        else:
            parts.append(_fenced(block) if block.startswith(">>>") else block)
    return "\n\n".join(parts)


def _listed_names(text: str) -> str:
    """Return lines such as ``name: meaning`` as a list; lines that are indented further continue it."""
    lines = []
    for line in cleandoc(text).split("\n"):
        name, _, about = line.partition(": " if ": " in line else ":")
        continued = not line or line.startswith(" ")
        lines.append(f"  {line[4:]}".rstrip() if continued else f"- `{name}`: {about}".rstrip())
    return "\n".join(lines)
