"""The metadata of a zoo, derived again from its shards."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from zootools.architectures import Schema
from zootools.errors import DamagedZooError
from zootools.spec.model_configs import ModelConfig
from zootools.storage.imported import Imported, Origin
from zootools.storage.shards import check_shard, stack_of
from zootools.storage.tables import check_properties, check_scores, imported_table, metadata_table
from zootools.storage.verified_files import VerifiedFiles


@dataclass(frozen=True)
class Shards:
    """The shards of a zoo, and what its metadata is derived from beside them."""

    files: VerifiedFiles
    schema: Schema
    origin: Origin
    """The specification, or the record of the import."""
    models: Mapping[str, ModelConfig]
    """The models of the specification by id; none of an imported zoo."""
    stopped: Collection[str] = ()
    """The ids of the diverged models."""
    class_names: Sequence[str] = ()
    """The names of the classes that the zoo stores."""

    def metadata(self, name: str) -> pa.Table:
        """Return the metadata of the rows of a shard, whose every byte is read.

        Raises DamagedZooError for tensors that are not those of the schema, unknown models, and impossible scores.
        """
        try:
            if isinstance(self.origin, Imported):
                info = check_shard(self.files, self.schema, name, self.origin)
                table = imported_table(self.origin, [(stack_of(name), info)], self.stopped)
                check_properties(table, self.schema.classes)
                return table
            info = check_shard(self.files, self.schema, name)
            rows = [(stack_of(name), info)]
            table = metadata_table(self.origin, self.models, rows, self.stopped, self.class_names)
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
