"""Zoos whose networks are computed from those of another one: what their record says, and their properties."""

from collections.abc import Sequence

import pyarrow as pa

from zootools.errors import SpecError
from zootools.importers.importer import Facts
from zootools.spec import DatasetImages, FolderImages, Images, TetrisImages
from zootools.storage.imported import OWN_COLUMNS, SOURCE_MODEL
from zootools.zoo import Zoo


def known_images(zoo: Zoo) -> Images | None:
    """Return the section of the images that a zoo's models were trained on; None if they are not known here."""
    origin = zoo.stored_spec or zoo.imported
    images = origin.images if origin is not None else None
    return images if isinstance(images, DatasetImages | FolderImages | TetrisImages) else None


def derived_facts(zoo: Zoo, name: str, description: str, checkpoints: int, notes: Sequence[str] = ()) -> Facts:
    """Return the facts of networks that are computed from those of ``zoo`` (`zootools.importers.write_derived`).

    Raises SpecError for a zoo without zoo.json, which cannot be named as a parent: it must be finished or imported.
    """
    if not zoo.finished or (origin := zoo.stored_spec or zoo.imported) is None:
        raise SpecError(f"{zoo.folder}: is not a finished zoo; finish it with zootools build, or import it")
    return Facts(
        name=name,
        schema=zoo.schema,
        files=[zoo.folder / "zoo.json"],
        root=zoo.folder,
        checkpoints=checkpoints,
        description=description,
        license=origin.license,
        images=known_images(zoo),
        runs=zoo.runs,
        notes=notes,
    )


def property_table(metadata: pa.Table) -> pa.Table:
    """Return the metadata of checkpoints as the table of a `zootools.importers.importer.Block`."""
    own = {*OWN_COLUMNS, SOURCE_MODEL} - {"epoch", "split"}
    kept = [name for name in metadata.column_names if name not in own]
    return metadata.select(kept).append_column("model", metadata["model_id"])
