"""The options of a build, the same for `zootools.build` and `zootools.building.builder.preview`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from zootools.phases import Phases

if TYPE_CHECKING:
    from zootools.training.backend import Backend


@dataclass(frozen=True)
class BuildOptions:
    """How to train a zoo. `zootools.build` takes the fields as keyword arguments."""

    device: str = "auto"
    """``cpu``, ``cuda``, or ``auto`` for CUDA where there is a CUDA device and the CPU is not faster (docs/gpu.md)."""
    backend: "str | Backend" = "auto"
    """``native``, ``torch``, ``auto``, or a `zootools.training.backend.Backend` of your own."""
    engine: str = "local"
    """``local`` for processes on this machine, ``ray`` for tasks of a Ray cluster; the bytes are the same."""
    address: str | None = None
    """Address of the Ray cluster; by default a cluster is started on this machine."""
    workers: int | None = None
    """How many stacks to train at once, 1 to 1024."""
    data: Path | None = None
    """The folder of the image files (`zootools.paths.data_folder`)."""
    allow_fingerprint_change: bool = False
    """Resume although the device or the versions of libraries differ from those of the first session."""
    keep_state: bool = False
    """Keep the weights and optimizer state of the last epoch, so that a later build can train more epochs."""
    quiet: bool = False
    """Show no progress."""
    phases: Phases | None = None
    """Gets the processor seconds of each phase of the build."""


class BuildKeywords(TypedDict, total=False):
    """The fields of `BuildOptions` as keyword arguments; mypy compares the two."""

    device: str
    backend: "str | Backend"
    engine: str
    address: str | None
    workers: int | None
    data: Path | None
    allow_fingerprint_change: bool
    keep_state: bool
    quiet: bool
    phases: Phases | None
