"""Bounds of a zoo, and types of single values that several sections of a specification share."""

from typing import Annotated

from pydantic import Field

MAX_MODELS = 1_000_000
MAX_CHECKPOINTS = 10_000_000
"""Upper bounds of a zoo: the plan itself must fit in memory."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\r\n]*$")]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Size = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
