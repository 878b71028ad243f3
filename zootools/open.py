"""Opening a zoo, wherever it is: a folder, a name on a hub, an object store, Parquet files of other tools."""

import logging
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc

from zootools.architectures import Schema
from zootools.hub.foreign import ParquetSource
from zootools.hub.locate import ZOO_SOURCES
from zootools.source import Request, Source
from zootools.zoo import Zoo

LOG = logging.getLogger(__name__)

SOURCES: tuple[Source, ...] = (ParquetSource(), *ZOO_SOURCES)
"""What can be opened; the first source that accepts a request opens it, and the last accepts every request."""


def open_zoo(
    path: str | Path,
    *,
    revision: str | None = None,
    hub: str | Path | None = None,
    schema: str | Path | Schema | None = None,
    split: str | None = None,
    where: str | pc.Expression | None = None,
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
        where: only the checkpoints for which this condition on metadata columns holds, such as
            ``"epoch == 25 and test_accuracy > 0.9"`` (`zootools.conditions`) or an Arrow expression.
        include_diverged: also the checkpoints of models that diverged later; `Zoo.counts` says how many they are.
        verify: compare every file with its sha256 before it is first read, and refuse weights that are not finite.

    Raises ZooNotFoundError when there is no such zoo, DamagedZooError when it is not what was written.
    """
    request = Request(path, revision, hub, schema, verify)
    zoo = next(source for source in SOURCES if source.accepts(request)).open(request)
    for note in zoo.notes:
        LOG.info("%s: %s", path, note)
    if not include_diverged:
        zoo = zoo.where(pc.field("status") == "ok")
    zoo = replace(zoo, opened=len(zoo))
    if split is not None:
        zoo = zoo.split(split)
    return zoo if where is None else zoo.where(where)
