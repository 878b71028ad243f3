"""The place of a zoo's files: a folder, or a remote place from which they are downloaded on demand.

From a remote place, only files listed in the manifest are downloaded, and only if their size (and sha256, if the place
knows it) in the place's listing equals that in the manifest. A file becomes visible in the folder of its `FetchedPlace`
after it has been hashed.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from zootools.errors import DamagedZooError
from zootools.filesystem.files import link_or_copy
from zootools.filesystem.inside import is_file_inside, open_inside
from zootools.hashing import sha256_file
from zootools.storage.manifest import Manifest
from zootools.storage.verified_files import FileInfo

LOG = logging.getLogger(__name__)

THREADS = 8
"""Number of files downloaded at the same time."""
EXTRAS = ("README.md", "build.json")
"""Files of a zoo that its manifest does not list; downloaded only for a whole copy."""
MAX_EXTRA = 16 << 20
"""Maximal size of each of `EXTRAS`, in bytes."""


@dataclass(frozen=True)
class Place:
    """The place of a zoo's files; this class is a folder that contains all of them."""

    folder: Path
    name: str
    """The path or name that was asked for."""
    commit: str | None = None
    """The version of a zoo that came from a hub."""
    repository: str | None = None
    """``org/name`` of a zoo that was found by its name."""
    fetches: ClassVar[bool] = False
    """Whether files must be downloaded to `folder`."""

    @property
    def listed(self) -> Collection[str]:
        """The names of all files of the place, if they are known without reading `folder`."""
        return ()

    def fetch(self, files: Iterable[str], tick: Callable[[int], None] = lambda count: None) -> None:
        """Download some files, given by their names in the manifest, if `folder` lacks them.

        ``tick`` is called, one call at a time, with the size of every file of the manifest, in bytes.
        """

    def fetch_all(self) -> None:
        """Download all files of the zoo that `folder` lacks."""


@dataclass(frozen=True)
class Listed:
    """A file in the listing of a place: its size in bytes, and its sha256 if the place knows it."""

    size: int
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class FetchedPlace(Place, ABC):
    """A remote zoo; `folder` contains the downloaded files."""

    manifest: Manifest | None = None
    """The manifest of the zoo; None until it has been read."""
    listing: Mapping[str, Listed] = field(default_factory=dict)
    """All files of the place by name; empty if they are not known."""
    fetches: ClassVar[bool] = True

    @abstractmethod
    def download(self, file: str, size: int | None) -> Path:
        """Return the path of a copy of a file; ``size`` is its expected size in bytes, if known."""

    @abstractmethod
    def forget(self, path: Path) -> None:
        """Remove a copy that `download` returned, so that the next download fetches the file again."""

    @property
    def listed(self) -> Collection[str]:
        """The names of all files of the place."""
        return self.listing

    @property
    def promised(self) -> Mapping[str, FileInfo]:
        """The files of the manifest; none until it has been read."""
        return self.manifest.files if self.manifest is not None else {}

    def fetch(self, files: Iterable[str], tick: Callable[[int], None] = lambda count: None) -> None:
        """Download and verify the files that are not in `folder` yet; see `Place.fetch`.

        Raises DamagedZooError for a file that differs from the manifest, HubError, StorageError.
        """
        wanted = list(dict.fromkeys(files))
        missing = [file for file in wanted if not is_file_inside(self.folder, file)]
        if missing:
            size = sum(self.listing[file].size for file in missing if file in self.listing)
            LOG.info("%s: fetching %d files, %.1f MB", self.name, len(missing), size / 1e6)
        sizes = {file: info.size for file, info in self.promised.items()}
        tick(sum(sizes.get(file, 0) for file in {*wanted} - {*missing}))
        with ThreadPoolExecutor(THREADS) as pool:
            for file, _ in zip(missing, pool.map(self._fetch_one, missing), strict=True):
                tick(sizes.get(file, 0))

    def fetch_all(self) -> None:
        """Download and hash every file of the manifest, and the card."""
        self.fetch([*self.promised, *EXTRAS])

    def _fetch_one(self, file: str) -> None:
        listed, promised = self.listing.get(file), self.promised.get(file)
        if promised is None and file not in EXTRAS:
            raise DamagedZooError(f"{self.name}: {file} is not in the manifest")
        if promised is None:
            if listed is None:
                return
            if listed.size > MAX_EXTRA:
                raise DamagedZooError(f"{self.name}: {file} has {listed.size} bytes, more than {MAX_EXTRA}")
        path = self.download(file, promised.size if promised else listed.size if listed else None)
        if promised and (path.stat().st_size != promised.size or sha256_file(path) != promised.sha256):
            self.forget(path)
            raise DamagedZooError(
                f"{self.name}: {file} is not what the manifest promises (sha256); it was removed from the cache"
            )
        keep(path, self.folder, file)


def keep(path: Path, folder: Path, name: str) -> None:
    """Hard-link (or copy) a downloaded file, which may be a link, to the plain file ``folder/name``."""
    target = path.resolve()
    with open_inside(target.parent, target.name) as file:
        link_or_copy(file, folder, name)


def check_listing(name: str, files: Mapping[str, FileInfo], listing: Mapping[str, Listed]) -> None:
    """Compare the listing of a place with the files of a manifest, before anything is downloaded.

    Raises DamagedZooError.
    """
    for file, promised in files.items():
        listed = listing.get(file)
        if not listing or listed == Listed(promised.size, promised.sha256):
            continue
        if listed is None:
            raise DamagedZooError(f"{name}: {file} is in the manifest, but is missing there")
        if listed.size != promised.size or listed.sha256 is not None:
            raise DamagedZooError(f"{name}: {file} there is not the one in the manifest ({listed.size} bytes)")
