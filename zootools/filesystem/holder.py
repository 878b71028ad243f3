"""The process that works in a place, as the lock of a folder or the lease of an object store describes it."""

import time
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

MOST_BYTES = 4096
"""Bytes of a description that are read."""

Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
"""Seconds since 1970 on the clock of the process."""


class Holder(BaseModel, frozen=True):
    """A process with the exclusive right to write; a field that is missing in its description has its default."""

    host: Annotated[str, Field(max_length=300)] | None = None
    process: int | None = None
    began: Seconds = 0
    engine: Annotated[str, Field(max_length=40)] | None = None
    """What trains (`zootools.engines.table.ENGINES`); None until a training begins."""
    trains_since: Seconds | None = None
    """When the training began."""
    trained_before: Annotated[int, Field(ge=0)] = 0
    """The model-epochs that were done when the training began."""

    def __str__(self) -> str:
        since = f", since {utc(self.began)}" if self.began else ""
        return f"process {self.process} on {self.host}{since}"


def parse_holder(data: bytes) -> Holder | None:
    """Return the process that a lock file describes; None if it describes none."""
    try:
        holder = Holder.model_validate_json(data)
    except ValidationError:
        return None
    return None if holder.process is None else holder


def utc(seconds: float) -> str:
    """Return a time, in seconds since 1970, as ``2026-11-26T10:00:05Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
