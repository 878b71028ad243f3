"""The content of a data set repository on the Hub, at one revision."""

from dataclasses import dataclass

from huggingface_hub import HfApi

from zootools import __version__
from zootools.hub.calls import TIMEOUT, retried
from zootools.zoo_name import ZooName


@dataclass(frozen=True)
class HubFile:
    """A file of a commit."""

    size: int
    """In bytes."""
    sha256: str | None
    """Of a file that the Hub stores as a large file (LFS or Xet); None for any other."""
    blob_id: str
    """The hash of the git blob: of the file itself, or of the pointer to a large file."""


@dataclass(frozen=True)
class Content:
    """What a revision holds."""

    commit: str
    files: dict[str, HubFile]
    private: bool


def hub_api(endpoint: str | None) -> HfApi:
    """Return huggingface-hub's client of a Hub, by default of the one that huggingface-hub is set to."""
    return HfApi(endpoint=endpoint, library_name="zootools", library_version=__version__)


def read_content(api: HfApi, name: ZooName, revision: str | None, first: bool = False) -> Content:
    """Return the content of a revision, by default of the main branch; see `retried` for ``first`` and errors."""
    info = retried(
        lambda: api.dataset_info(name.repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT),
        str(name),
        first=first,
    )
    files = {
        entry.rfilename: HubFile(entry.size or 0, entry.lfs.sha256 if entry.lfs else None, str(entry.blob_id))
        for entry in info.siblings or ()
    }
    return Content(str(info.sha), files, bool(info.private))
