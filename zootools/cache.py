"""The user's cache: what is in it, how large it is, and its removal. Everything in it can be made again."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zootools.errors import BusyError, SpecError, did_you_mean
from zootools.filesystem.files import storage_error
from zootools.filesystem.inside import NotPlainError, entries_inside, names_inside, remove_tree_inside, stat_inside
from zootools.filesystem.lock import FolderLock
from zootools.paths import cache_folder, data_folder

KINDS = {
    "images": "image files of data sets, downloaded or converted",
    "native": "compiled kernels, and measured speeds",
    "verified": "notes of interrupted verifications",
    "stored": "files of zoos in object stores",
    "builds": "working folders of builds into object stores",
    "baselines": "results of the baselines of representations",
}
"""The subfolders of the cache, and what is in them."""
HUB = "hub"
"""The zoos in the cache of huggingface-hub, which are shown, but not removed."""
_ZOOS = "*--*--*/zootools"
"""The folders of zoos in the cache of huggingface-hub (`zootools.hub.remote`)."""


@dataclass(frozen=True)
class CacheEntry:
    """One kind of files in the cache."""

    kind: str
    description: str
    folder: str
    files: int
    bytes: int


@dataclass(frozen=True)
class Removed:
    """What a cleaning has removed, or kept and why."""

    path: str
    bytes: int
    kept: str | None = None
    """Why it is still there; None if it was removed."""


def cache_entries() -> list[CacheEntry]:
    """Return the kinds of files in the cache, those of other versions of zootools included, and the zoos of the Hub.

    Links are counted as links, and not followed.
    """
    root = cache_folder()
    entries = [_entry(root, kind, kind, KINDS.get(kind, "files of another version of zootools")) for kind in _kinds()]
    if (data := data_folder()) != root / "images":
        entries.append(_entry(data, "", "data", "image files ($ZOOTOOLS_DATA), which are not removed"))
    return [*entries, _hub_entry()]


def clean_cache(kind: str | None = None) -> Iterator[Removed]:
    """Remove one kind of files from the cache, or everything; yield each entry after its removal.

    Links inside the cache are removed, and what they lead to is not touched. The working folder of a build that runs is
    kept. Raises SpecError for an unknown kind, StorageError where a file cannot be removed.
    """
    root, kinds = cache_folder(), _kinds()
    if kind == HUB:
        raise SpecError(f"cache: {HUB} is the cache of huggingface-hub; remove from it with `hf cache`")
    if kind is not None and kind not in {*kinds, *KINDS}:
        raise SpecError(f"cache: found {kind!r}{did_you_mean(kind, {*kinds, *KINDS})}")
    for name in kinds if kind is None else [kind]:
        for entry in _contents(root, name):
            yield _remove(root, entry)


def _remove(root: Path, name: str) -> Removed:
    """Remove one entry of the cache, unless it is the working folder of a build that runs."""
    size = _size(root, name)[1]
    try:
        if name.startswith("builds/") and (root / name / ".work").is_dir():
            with FolderLock(root / name / ".work" / "lock"):
                remove_tree_inside(root, name)
        else:
            remove_tree_inside(root, name)
    except BusyError:
        return Removed(str(root / name), 0, "a build is running there")
    except OSError as error:
        raise storage_error(root / name, error, "removed") from error
    return Removed(str(root / name), size)


def _kinds() -> list[str]:
    with suppress(FileNotFoundError, NotPlainError, NotADirectoryError):
        return entries_inside(cache_folder())
    return []


def _contents(root: Path, kind: str) -> list[str]:
    """Return the entries of a kind's folder; the name itself for a file or a link in its place."""
    try:
        return [f"{kind}/{entry}" for entry in entries_inside(root, kind)]
    except FileNotFoundError:
        return []
    except (NotPlainError, NotADirectoryError):
        return [kind]


def _entry(root: Path, name: str, kind: str, description: str) -> CacheEntry:
    files, size = _size(root, name)
    return CacheEntry(kind, description, str(root / name) if name else str(root), files, size)


def _size(root: Path, name: str) -> tuple[int, int]:
    """Return the number of files at or below a name, and their bytes on the disk as their sizes say."""
    try:
        names = names_inside(root, name)
    except FileNotFoundError:
        return 0, 0
    except (NotPlainError, NotADirectoryError):
        names = [name]
    size = 0
    for file in names:
        with suppress(OSError):
            size += stat_inside(root, file).st_size
    return len(names), size


def _hub_entry() -> CacheEntry:
    """Return the zoos in the cache of huggingface-hub; a file and its verified copy are one, as on the disk."""
    hub, seen = _hub_cache(), dict[tuple[int, int], int]()
    for folder in sorted(hub.glob(_ZOOS)) if hub.is_dir() else []:
        for name in names_inside(folder):
            with suppress(OSError):
                state = stat_inside(folder, name)
                seen[state.st_dev, state.st_ino] = state.st_size
    return CacheEntry(
        HUB, "zoos from the Hub, in the cache of huggingface-hub", str(hub), len(seen), sum(seen.values())
    )


def _hub_cache() -> Path:
    """Return the cache of huggingface-hub by its environment variables, without importing it (half a second)."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
