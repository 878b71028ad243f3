"""Importing a population of another tool as a zoo: read it in blocks, check it on images, write the folder.

The same call again resumes an import that was interrupted. An import that is refused leaves nothing behind.
"""

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zootools import __version__
from zootools.errors import BusyError, SpecError, StorageError
from zootools.filesystem.files import exists
from zootools.filesystem.inside import remove_tree_inside
from zootools.filesystem.lock import FolderLock
from zootools.importers.check import NOT_RUN, Check, check_sample, images_of
from zootools.importers.columns import merged
from zootools.importers.importer import ImportOptions, LeftOut, Population
from zootools.importers.layout import Layout, laid_out
from zootools.importers.options import check_used, described, parse_options, zoo_name
from zootools.importers.source_files import source_files
from zootools.importers.spool import FINITE, Begin, Spool, is_begun
from zootools.importers.table import open_importer
from zootools.importers.writer import Import, counted, metadata_of, write_zoo
from zootools.memory import gigabytes
from zootools.progress import Progress
from zootools.spec import Training
from zootools.storage.audit import AUDIT, Audit
from zootools.storage.build_state import MANIFEST, PLAN, ZooFolder
from zootools.storage.imported import CheckReport, Parent
from zootools.storage.manifest import Manifest, read_manifest
from zootools.storage.manifest_checks import stored_spec
from zootools.text import say

COPIES = 3
"""Times that the weights are on the disk before the blocks are removed: in blocks, in shards, in tables."""
MAX_CHECKED = 100_000
_LIBRARIES = ("numpy", "pyarrow", "safetensors", "torch")


@dataclass(frozen=True)
class _Request:
    """An import whose arguments are valid."""

    path: Path
    zoo: ZooFolder
    population: Population
    options: ImportOptions
    what: Import
    check: Check
    quiet: bool

    @property
    def begin(self) -> Begin:
        """What an import must have in common with an interrupted one to resume it."""
        what = self.what
        return Begin(kind=what.kind, source=what.source, layer_schema=what.facts.schema, options=dict(what.options))


def import_zoo(
    kind: str,
    path: str | Path,
    out: str | Path,
    *,
    check: int | None = None,
    data: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Manifest:
    """Import a population of another tool as a zoo into the folder ``out``; resume an interrupted import there.

    Args:
        kind: a key of `zootools.importers.table.IMPORTERS`.
        path: the file or folder of the population.
        out: the folder of the zoo, which is created.
        check: number of checkpoints that are evaluated on the images, and whose accuracies are compared with the
            recorded ones; 0 for none. By default 16 if the images are known and their files are there.
        data: the folder of the image files (`zootools.paths.data_folder`).
        quiet: show no progress.
        **options: the fields of `zootools.importers.importer.ImportOptions` that the kind uses.

    Returns:
        The manifest of the zoo: the content of zoo.json.

    Raises:
        ZooNotFoundError: no population of this kind is at the path.
        SpecError: an argument is wrong, the files contradict the layer schema, two checkpoints are of one model and
            epoch, or the networks do not reach the recorded accuracies.
        DamagedZooError: a file cannot be read.
        BusyError: another process is at work in ``out``.
        StorageError: disk space is short, or the disk failed; the call can be repeated.
    """
    return _written(
        _check_request(kind, Path(path), Path(out), Check(check, Path(data) if data else None), options, quiet)
    )


def write_derived(
    population: Population,
    zoo: ZooFolder,
    kind: str,
    settings: Mapping[str, str],
    *,
    images_sha256: str | None = None,
    data: Path | None = None,
    audit: Audit | None = None,
    quiet: bool = False,
) -> Manifest:
    """Write networks that a command computed from those of a zoo as a zoo of their own; resume an interrupted call.

    Args:
        population: the networks. Its only file is zoo.json of the zoo that they were computed from, their parent.
        zoo: the folder, which is created. It must not be inside of the parent, or the reverse.
        kind: the command.
        settings: what decides the networks beside the parent, as texts.
        images_sha256: the digest of the images, if they are not loaded for the check.
        data: the folder of the image files. If they are there, 16 of the networks are evaluated, and must have the
            accuracies that the population says.
        audit: of networks that were sampled.
        quiet: show no progress.

    Returns:
        The manifest of the zoo. Its record of an import (`zootools.storage.imported.Imported`) names the parent.

    Raises:
        ZooNotFoundError: the parent is not a finished zoo.
        SpecError: the folder holds something else, or the networks do not reach their recorded accuracies.
        BusyError: another process is at work in the folder.
        StorageError: disk space is short, or the disk failed; the call can be repeated.
    """
    facts = population.facts
    _check_out(zoo, facts.root)
    parent = read_manifest(facts.root)
    what = Import(
        kind=kind,
        facts=facts,
        name=zoo_name(facts.name),
        description=facts.description,
        license=facts.license,
        source=source_files(facts.files, facts.root),
        options=settings,
        versions=_versions(),
        check=NOT_RUN,
        images_sha256=images_sha256,
        parent=Parent(name=parent.name, sha256=parent.sha256, training=_training_of(facts.root, parent)),
        audit=audit,
    )
    return _written(_Request(facts.root, zoo, population, ImportOptions(), what, Check(None, data), quiet))


def _training_of(folder: Path, manifest: Manifest) -> Training | None:
    """Return how the networks of a zoo were trained, or those that they were computed from."""
    if manifest.imported is None:
        return stored_spec(folder, manifest).training
    return manifest.imported.parent.training if manifest.imported.parent is not None else None


def _written(request: _Request) -> Manifest:
    """Write the zoo of a request, unless it is there already."""
    existed = exists(request.zoo.path)
    with FolderLock(request.zoo.lock) as lock:
        request = replace(request, zoo=ZooFolder(request.zoo.path, lock.descriptor))
        zoo = request.zoo
        zoo.check_folders()
        with _nothing_left(zoo, existed):
            manifest = _finished(request) or _import(request)
        zoo.remove_work()
    return manifest


def _check_request(kind: str, path: Path, out: Path, check: Check, options: dict[str, Any], quiet: bool) -> _Request:
    """Refuse invalid arguments; open the population, and hash its files."""
    importer = open_importer(kind)
    paths = {"model_schema", "properties"}
    parsed = parse_options({k: Path(v) if k in paths and isinstance(v, str) else v for k, v in options.items()})
    check_used(kind, parsed, importer.options)
    count = check.count
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_CHECKED):
        raise SpecError(f"--check: found {count!r:.80}; expected a whole number from 0 to {MAX_CHECKED:,}")
    zoo = ZooFolder(out)
    _check_out(zoo, path)
    population = importer.open(path, parsed)
    facts = population.facts if parsed.images is None else replace(population.facts, images=parsed.images)
    if not quiet:
        say(f"import: hashing {len(facts.files):,} files", err=True)
    what = Import(
        kind=kind,
        facts=facts,
        name=parsed.name or zoo_name(facts.name),
        description=facts.description if parsed.description is None else parsed.description,
        license=parsed.license or facts.license,
        source=source_files(facts.files, facts.root),
        options=described(parsed),
        versions=_versions(),
        check=NOT_RUN,
        images_sha256=None,
    )
    return _Request(path, zoo, population, parsed, what, check, quiet)


def _check_out(zoo: ZooFolder, path: Path) -> None:
    """Raise SpecError if the folder of the zoo cannot be made or holds something else."""
    inner, outer = Path(os.path.realpath(zoo.path)), Path(os.path.realpath(path))
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise SpecError(f"{zoo.path}: is inside of what is imported, or the reverse; choose another folder with --out")
    zoo.check_target()
    if zoo.has(PLAN):
        raise SpecError(f"{zoo.path}: holds a zoo that is being built; choose another folder with --out")


@contextmanager
def _nothing_left(zoo: ZooFolder, existed: bool) -> Iterator[None]:
    """Remove everything that a refused import has written; what an interruption leaves can be resumed."""
    had_zoo = zoo.has(MANIFEST)
    try:
        yield
    except (KeyboardInterrupt, SystemExit, StorageError, BusyError):
        raise
    except BaseException:
        if not had_zoo:
            for folder in ("checkpoints", "data", "metadata"):
                with suppress(FileNotFoundError):
                    remove_tree_inside(zoo.path, folder)
            for name in ("README.md", AUDIT):
                zoo.remove(name)
        zoo.remove_work()
        if not existed:
            with suppress(OSError):
                zoo.path.rmdir()
        raise


def _finished(request: _Request) -> Manifest | None:
    """Return the manifest of the same import, if it is finished. Raises SpecError if another zoo is there."""
    zoo, what = request.zoo, request.what
    if not zoo.has(MANIFEST):
        return None
    manifest = read_manifest(zoo.path)
    imported = manifest.imported
    same = imported is not None and (imported.kind, imported.source.sha256, imported.options, imported.name) == (
        what.kind,
        what.source.sha256,
        what.options,
        what.name,
    )
    if same and manifest.layer_schema == what.facts.schema:
        return manifest
    raise SpecError(f"{zoo.path}: holds another zoo; choose another folder with --out")


def _import(request: _Request) -> Manifest:
    """Read, check and write the population."""
    zoo, what = request.zoo, request.what
    _check_space(request)
    spool = Spool.opened(zoo, request.begin)
    total = max(1, what.facts.checkpoints)
    with Progress([total, total], 1, [spool.rows / total, 0], request.quiet, "checkpoints", "import") as bar:
        for block in request.population.blocks(start=len(spool.tables)):
            spool.add(block)
            bar.update(0, spool.rows / total)
        bar.update(0, 1)
        layout, properties, left_out = _laid_out(request, spool)
        metadata = metadata_of(layout, properties)
        report, digest = _checked(request, spool, layout, metadata)
        what = replace(what, check=report, images_sha256=digest or what.images_sha256)
        written = 0

        def tick(count: int) -> None:
            nonlocal written
            written += count
            bar.update(1, written / max(len(layout.taken), 1))

        return write_zoo(zoo, spool, layout, metadata, what, left_out, tick)


def _laid_out(request: _Request, spool: Spool) -> tuple[Layout, pa.Table, list[LeftOut]]:
    """Return the places of the checkpoints, their properties in the order of the population, and what is left out."""
    facts = request.what.facts
    if not spool.rows:
        raise SpecError(
            f"{request.path}: no checkpoint can be imported",
            *(f"  {row.count:,} {row.why}, such as {row.examples[0]}" for row in counted(spool.left_out)[:5]),
        )
    wanted = ("model", "epoch", "split", FINITE)
    parts = [table.select([name for name in wanted if name in table.column_names]) for table in spool.tables]
    keys = pa.concat_tables(parts, promote_options="permissive")  # null where a block has no split
    layout = laid_out(
        keys["model"].cast(pa.string()),
        keys["epoch"].to_numpy().astype(np.int64),
        keys["split"].cast(pa.string()) if "split" in keys.column_names else None,
        keys[FINITE].to_numpy(),
        facts.schema.size,
    )
    tables = [table.drop_columns([FINITE]) for table in spool.tables]
    properties, columns_left_out = merged(tables, request.options.constants, facts.schema.classes)
    return layout, properties, [*spool.left_out, *layout.left_out, *columns_left_out]


def _checked(request: _Request, spool: Spool, layout: Layout, metadata: pa.Table) -> tuple[CheckReport, str | None]:
    """Evaluate a sample of the checkpoints; return the report, and the sha256 of the images if they were loaded."""
    facts, check = request.what.facts, request.check
    images, reason = images_of(facts.images, check)
    if images is None:
        return NOT_RUN.model_copy(update={"not_checked": reason}), None
    report = check_sample(
        metadata, lambda rows: spool.gather(layout.taken[rows]), facts, images, check, str(request.path)
    )
    return report, images.digest


def _check_space(request: _Request) -> None:
    """Raise StorageError if the weights do not fit on the disk."""
    facts, folder = request.what.facts, request.zoo.path
    needed = COPIES * 4 * facts.schema.size * facts.checkpoints
    free = shutil.disk_usage(folder).free
    if not is_begun(request.zoo) and needed > free:
        raise StorageError(
            f"{folder}: {facts.checkpoints:,} checkpoints need up to {gigabytes(needed)} during the import; "
            f"{gigabytes(free)} are free"
        )


def _versions() -> dict[str, str]:
    """Return the versions of what reads the population, the fingerprint of an imported zoo."""
    found = {name: version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "zootools": __version__, **found}
