"""The layout of the source: which module may import which, and how long a function and a module may be."""

import ast
from graphlib import CycleError, TopologicalSorter
from itertools import chain, pairwise

import grimp
import pytest
from samples import ROOT

LAYERS = (
    "zootools.spec",
    "zootools.architectures",
    "zootools.storage",
    "zootools.zoo",
    "zootools.training",
    "zootools.engines",
    "zootools.hub",
    "zootools.building",
    "representation",
    "zootools.cli",
)
"""From the ground up: none of these imports a later one, not even through other modules."""

HEAVY = {
    *("torch", "torchvision", "numpy", "scipy", "sklearn", "pyarrow", "safetensors", "datasets", "huggingface_hub"),
    *("ray", "fsspec", "s3fs", "jinja2", "matplotlib", "plotly", "umap", "PIL", "trackio"),
}
"""Packages that take long to import, or that a user may not have installed."""
INSIDE = {
    "zootools/engines/ray.py: zootools": "the version of the machine on which the task runs",
}
"""Imports inside functions, outside of the command line, that have another reason than `HEAVY`."""

LONGEST_FUNCTION = 60
"""Lines, from ``def`` to the last one."""
LONGEST_MODULE = 450

PACKAGES = ("zootools", "representation")
SOURCES = sorted(chain(*(ROOT.glob(f"{package}/**/*.py") for package in PACKAGES)))


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import of both packages, those inside functions too, without those that only type checkers follow."""
    return grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Return the nodes of one cycle of a directed graph, or nothing."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def room(module: str) -> str:
    """Return the folder of a module, or the module itself if it is at the top of `zootools`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "zootools" else parts[0]


def test_no_module_imports_itself_through_others(graph: grimp.ImportGraph) -> None:
    edges = {module: graph.find_modules_directly_imported_by(module) - {module} for module in graph.modules}
    assert len(edges) > 100
    assert cycle(edges) == []


def test_no_folder_imports_itself_through_others(graph: grimp.ImportGraph) -> None:
    """A package's ``__init__`` belongs to its folder; the lazy one of `zootools` imports nothing by itself."""
    edges: dict[str, set[str]] = {room(module): set() for module in graph.modules}
    for module in graph.modules - {"zootools"}:
        edges[room(module)] |= {room(other) for other in graph.find_modules_directly_imported_by(module)} - {
            room(module),
            "zootools",
        }
    assert cycle(edges) == []


def test_no_layer_imports_a_higher_one(graph: grimp.ImportGraph) -> None:
    assert set(LAYERS) <= graph.modules
    found = graph.find_illegal_dependencies_for_layers(LAYERS[::-1])
    chains = [
        " -> ".join([min(route.heads), *route.middle, min(route.tails)])
        for dependency in found
        for route in dependency.routes
    ]
    assert sorted(chains) == []


@pytest.mark.parametrize(("lower", "higher"), list(pairwise(LAYERS)))
def test_an_import_of_a_higher_layer_would_be_found(lower: str, higher: str) -> None:
    graph = grimp.ImportGraph()
    for module in (lower, f"{lower}.x", "zootools.between", higher, f"{higher}.y"):
        graph.add_module(module)
    graph.add_import(importer=f"{lower}.x", imported="zootools.between")
    graph.add_import(importer="zootools.between", imported=f"{higher}.y")
    assert graph.find_illegal_dependencies_for_layers((higher, lower))


def test_an_import_inside_a_function_keeps_a_heavy_package_out() -> None:
    """Nothing else is a reason for one, least of all a cycle; the commands of the command line import all they need."""
    graph = grimp.build_graph(
        *PACKAGES, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    found, light = 0, set()
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("zootools/cli/"):
            continue
        functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        for node in chain(*map(ast.walk, functions)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    module = inner if inner in graph.modules else node.module
                    found += 1
                    if not HEAVY & (graph.find_upstream_modules(module) | {module}):
                        light.add(f"{name}: {module}")
    assert found > 20
    assert light == INSIDE.keys()


def test_functions_and_modules_are_short() -> None:
    """Parameters are counted by ruff (PLR0913)."""
    assert len(SOURCES) > 100
    long = []
    for path in SOURCES:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        lines = len(text.splitlines())
        if lines > LONGEST_MODULE:
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long.append(f"{name}:{node.lineno}: {node.name} has {length} lines")
    assert long == []
