"""Every path inside a zoo is reached through `zootools.filesystem.inside`: the source names no other way (row X5)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("zootools/**/*.py"))

METHODS = {
    *("exists", "is_file", "is_dir", "is_symlink", "is_fifo", "samefile", "stat", "lstat", "readlink", "resolve"),
    *("iterdir", "glob", "rglob", "walk", "open", "read_bytes", "read_text", "write_bytes", "write_text"),
    *("unlink", "rmdir", "mkdir", "touch", "rename", "chmod", "lchmod", "symlink_to", "hardlink_to"),
}
"""Methods of `pathlib.Path`; ``replace`` too where it has one argument (that of a string has two)."""

OF_OS = {
    *("open", "stat", "lstat", "listdir", "scandir", "walk", "fwalk", "access", "readlink", "statvfs", "truncate"),
    *("unlink", "remove", "rmdir", "removedirs", "mkdir", "makedirs", "mkfifo", "rename", "replace", "link", "symlink"),
    *("chmod", "chown", "utime", "path.exists", "path.lexists", "path.isfile", "path.isdir", "path.islink"),
    *("path.getsize", "path.getmtime", "path.realpath", "path.samefile"),
}

FUNCTIONS = {"open", "io.open", "safe_open", "load_file", "save_file", "np.load", "np.save", "np.memmap", "sha256_file"}
FUNCTIONS |= {"TemporaryDirectory", "NamedTemporaryFile"}

OF_PARQUET = {"ParquetFile", "ParquetWriter", "read_table", "read_schema", "read_metadata", "write_table"}
STREAMS = {"file", "source", "stream", "opened"}
"""Names of open files, from which Parquet is read; a path has another name."""

ROOTED = {"durable_file": 2, "durable_path": 2, "write_durably": 3}
"""Functions of `zootools.filesystem.files`, and their number of arguments with ``root``, below which they refuse
links."""

ITSELF = "the zoo's own folder, or the hub's, which a user has named and which may be a link; nothing inside it"
CACHE = "a file of the user's own cache, or of huggingface-hub's"
SCRATCH = "a temporary folder of this process"
NAMED = "a path that the user has named"
OPENED = "a path to a file that `path_inside` has opened, or a method `open` that opens inside"

NO_ZOO = {
    "zootools/filesystem/inside.py": "where it is done",
    "zootools/filesystem/lock.py": "the lock of a folder, opened inside it; /proc",
    "zootools/filesystem/files.py": "opens relative to descriptors; and outputs that a user names",
    "zootools/bundled.py": "files of the package",
    "zootools/cli/completion.py": "names of files and folders below a typed path; reads through `inside`",
    "zootools/cli/specs.py": "files of the package",
    "zootools/doctor.py": "the working folder, and torch's own libraries",
    "zootools/errors.py": "names near a mistyped path, for a message",
    "zootools/hub/foreign.py": "Parquet files other than zoos, at a path from the user",
    "zootools/hashing.py": "what a caller names",
    "zootools/images/sets.py": "image data",
    "zootools/images/datasets.py": "image data",
    "zootools/object_store/lease.py": "/proc",
    "zootools/importers/export.py": "the new folder of an export, not a zoo",
    "zootools/importers/pickles.py": "a population of another tool, at a path from the user",
    "zootools/importers/ray_zoo.py": "a population of another tool, at a path from the user",
    "zootools/importers/small_cnn_zoo.py": "a population of another tool, at a path from the user",
    "zootools/importers/state_dicts.py": "a population of another tool, at a path from the user",
    "zootools/importers/unpickle.py": "a file of another tool, in a process of its own",
    "zootools/listing.py": "a table in memory",
    "zootools/memory.py": "/proc and /sys",
    "zootools/native/compiler.py": "sources of the package, and kernels in the user's cache",
    "zootools/native/cuda.py": "a source of the package, and kernels in the user's cache",
    "zootools/native/sealed.py": "files in the user's cache",
    "zootools/native/kernel.py": "kernels in the user's cache, and a temporary copy of one",
    "zootools/images/folders.py": "image data",
    "zootools/plots/page.py": "files of the package",
    "zootools/spec/yaml_reader.py": NAMED,
    "zootools/starter.py": "a specification that is written, and image data",
    "zootools/testing/importers.py": "populations that tests write",
}
"""Modules that touch no path inside a zoo, and what they touch."""

ALLOWED = {
    "zootools/cache.py:_remove": CACHE,
    "zootools/cache.py:_hub_entry": CACHE,
    "zootools/cli/look.py:view": NAMED,
    "zootools/storage/finish.py:add_page": ITSELF,
    "zootools/hub/catalog.py:describe": ITSELF,
    "zootools/hub/folder.py:check_target": ITSELF,
    "zootools/hub/folder.py:require": ITSELF,
    "zootools/hub/locate.py:_entries": "names near a mistyped path, for a message",
    "zootools/hub/locate.py:find": ITSELF,
    "zootools/hub/locate.py:looks_like_a_path": ITSELF,
    "zootools/hub/pull.py:pull": ITSELF,
    "zootools/hub/pull.py:_check_target": ITSELF,
    "zootools/hub/release.py:_partial": SCRATCH,
    "zootools/hub/remote.py:_remember_commit": CACHE,
    "zootools/hub/remote.py:fetch": CACHE,
    "zootools/hub/remote.py:forget": CACHE,
    "zootools/object_store/reader.py:forget": CACHE,
    "zootools/object_store/reader.py:build_status_of": SCRATCH,
    "zootools/hub/upload.py:upload": OPENED,
    "zootools/importers/importing.py:_check_out": ITSELF,
    "zootools/importers/importing.py:_check_request": OPENED,
    "zootools/importers/importing.py:_check_space": ITSELF,
    "zootools/importers/importing.py:_nothing_left": ITSELF,
    "zootools/open.py:open_zoo": OPENED,
    "zootools/storage/image_tensors.py:map_images": OPENED,
    "zootools/storage/place.py:_fetch_one": CACHE,
    "zootools/storage/place.py:keep": CACHE,
    "zootools/storage/build_state.py:check_target": ITSELF,
    "zootools/storage/shards.py:open_shard": OPENED,
    "zootools/storage/table_reader.py:data_fault": OPENED,
    "zootools/verify/files.py:__init__": CACHE,
    "zootools/verify/files.py:forget": CACHE,
    "zootools/verify/files.py:write": CACHE,
}
"""Functions that touch a path otherwise, and which one."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def is_path_call(call: ast.Call) -> bool:
    """Return whether a call may open a path without naming the folder below which links are refused."""
    name, keywords = dotted(call.func), {keyword.arg for keyword in call.keywords}
    module, _, last = name.rpartition(".")
    if name in ROOTED:
        return len(call.args) < ROOTED[name] and "root" not in keywords
    if module == "pq" and last in OF_PARQUET:
        first = call.args[0] if call.args else None
        return not (isinstance(first, ast.Call) or (isinstance(first, ast.Name) and first.id in STREAMS))
    if module in ("os", "os.path"):
        return name.removeprefix("os.") in OF_OS
    if module in ("shutil", "tempfile"):
        return last != "copyfileobj"
    is_method = isinstance(call.func, ast.Attribute)
    replaces = is_method and last == "replace" and len(call.args) == 1 and not keywords
    return name in FUNCTIONS or replaces or (is_method and last in METHODS)


def path_calls(source: str) -> Iterator[tuple[str, str]]:
    """Yield the function in which a path is touched, and how."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and is_path_call(child):
                yield function, f"line {child.lineno}: {dotted(child.func)}"
            yield from walk(child, child.name if isinstance(child, ast.FunctionDef) else function)

    return walk(ast.parse(source), "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_x5_paths_inside_a_zoo_are_reached_through_inside_only(path: Path) -> None:
    module = path.relative_to(ROOT).as_posix()
    if module not in NO_ZOO:
        others = [call for function, call in path_calls(path.read_text()) if f"{module}:{function}" not in ALLOWED]
        assert others == [], "use zootools.filesystem.inside, or say in ALLOWED why this is not a path inside a zoo"


def test_x5_every_exception_is_still_needed() -> None:
    found = {
        f"{p.relative_to(ROOT).as_posix()}:{function}" for p in SOURCES for function, _ in path_calls(p.read_text())
    }
    assert set(ALLOWED) - found == set()
    assert {module for module in NO_ZOO if not (ROOT / module).is_file()} == set()


@pytest.mark.parametrize(
    "line",
    [
        "zoo.plan.exists()",
        "(folder / name).is_file()",
        "for path in folder.rglob('*'): pass",
        "path.unlink(missing_ok=True)",
        "path.replace(target)",
        "open(path)",
        "path.open('rb')",
        "os.listdir(path)",
        "os.path.getsize(path)",
        "shutil.rmtree(path)",
        "shutil.copyfile(source, target)",
        "tempfile.mkdtemp(dir=folder)",
        "pq.ParquetFile(path)",
        "pq.read_table(folder / name)",
        "safe_open(path, framework='pt')",
        "write_durably(path, data)",
        "durable_file(path)",
        "sha256_file(path)",
    ],
)
def test_x5_the_search_finds_what_it_looks_for(line: str) -> None:
    assert list(path_calls(f"def function():\n    {line}")) != []


@pytest.mark.parametrize(
    "line",
    [
        "text.replace('a', 'b')",
        "replace(place, folder=folder)",
        "os.close(descriptor)",
        "open_inside(folder, name)",
        "pq.ParquetFile(source)",
        "pq.read_metadata(pa.BufferReader(data))",
        "write_durably(folder / name, data, folder)",
        "durable_file(path, root=folder)",
    ],
)
def test_x5_the_search_finds_nothing_else(line: str) -> None:
    assert list(path_calls(f"def function():\n    {line}")) == []
