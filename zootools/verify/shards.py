"""The metadata of a zoo, derived again from its shards."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pyarrow as pa

from zootools.architectures import Schema
from zootools.errors import DamagedZooError
from zootools.spec import ZooSpec
from zootools.spec.model_configs import ModelConfig
from zootools.storage.shards import check_shard, stack_of
from zootools.storage.tables import check_scores, metadata_table
from zootools.storage.verified_files import VerifiedFiles


@dataclass(frozen=True)
class Shards:
    """The shards of a zoo, and what its metadata is derived from beside them."""

    files: VerifiedFiles
    schema: Schema
    spec: ZooSpec
    models: Mapping[str, ModelConfig]
    """The models of the specification by id."""
    stopped: Collection[str] = ()
    """The ids of the diverged models."""

    def metadata(self, name: str) -> pa.Table:
        """Return the metadata of the rows of a shard, whose every byte is read.

        Raises DamagedZooError for tensors that are not those of the schema, unknown models, and impossible scores.
        """
        try:
            info = check_shard(self.files, self.schema, name)
            table = metadata_table(self.spec, self.models, [(stack_of(name), info)], self.stopped)
            check_scores(table, self.schema.classes)
        except ValueError as error:
            raise DamagedZooError(str(error), path=self.files.folder / name) from error
        return table

    def fault(self, name: str) -> str | None:
        """Return what is wrong with a shard (see `metadata`), or None."""
        try:
            self.metadata(name)
        except DamagedZooError as error:
            return error.reason
        return None
