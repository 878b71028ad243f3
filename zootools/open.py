"""Opening a zoo, wherever it is: a folder, a name on a hub, an object store, Parquet files of other tools."""

import logging
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc

from zootools.architectures import Schema
from zootools.hub.foreign import open_foreign
from zootools.hub.locate import locate
from zootools.zoo import Zoo, open_folder

LOG = logging.getLogger(__name__)


def open_zoo(
    path: str | Path,
    *,
    revision: str | None = None,
    hub: str | Path | None = None,
    schema: str | Path | Schema | None = None,
    split: str | None = None,
    where: pc.Expression | None = None,
    include_diverged: bool = False,
    verify: bool = True,
) -> Zoo:
    """Open a zoo: a folder, finished or still being built, or one that was published, by its name.

    Args:
        path: a folder, or ``org/name`` (or ``org/name@revision``) of a zoo in the folder $ZOOTOOLS_HUB or on the Hub.
            Of a zoo on the Hub only metadata is fetched now, and weights when they are asked for.
        revision: the branch, tag or commit of a name; the newest version by default.
        hub: look for a name in this folder or at this URL only.
        schema: for Parquet files with a weights column that zootools did not make: the layer schema, or a JSON file
            with it (a zoo.json will do) or with an index as published zoos have it (`zootools.hub.foreign`).
        split: only the checkpoints of this split.
        where: only the checkpoints for which this condition on metadata columns holds.
        include_diverged: also the checkpoints of models that diverged later; `Zoo.counts` says how many they are.
        verify: compare every file with its sha256 before it is first read, and refuse weights that are not finite.

    Raises ZooNotFoundError when there is no such zoo, DamagedZooError when it is not what was written.
    """
    if schema is not None:
        zoo: Zoo = open_foreign(path, schema, revision, hub)
    else:
        place = locate(path, revision, hub)
        zoo = replace(open_folder(place.folder, verify), place=place)
        for note in zoo.notes:
            LOG.info("%s: %s", path, note)
    if not include_diverged:
        zoo = zoo.where(pc.field("status") == "ok")
    if split is not None:
        zoo = zoo.split(split)
    return zoo if where is None else zoo.where(where)
