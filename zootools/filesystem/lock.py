"""The lock of a folder that a process writes into."""

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from zootools.errors import BusyError, DamagedZooError, SpecError, StorageError
from zootools.filesystem.files import storage_error
from zootools.filesystem.holder import MOST_BYTES, Holder, parse_holder
from zootools.filesystem.inside import NotPlainError, is_snapshot, open_inside, open_sole, stat_inside


class FolderLock:
    """The exclusive right to write into one folder: ``flock`` on a file, released by the system if its holder dies.

    Workers get a duplicate of the descriptor, so the lock is free when the last of them has ended. A user who removes
    the lock file takes the zoo from its holder: before anything becomes visible, `check_held` compares the lock file
    with the one that was locked. The folder must be on a file system on which flock works between all machines that
    build in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root, self._name = path.parents[1], "/".join(path.parts[-2:])
        self._holder = Holder(host=socket.gethostname(), process=os.getpid(), began=round(time.time()))
        self.descriptor = -1

    def __enter__(self) -> Self:
        if is_snapshot(self._root):
            raise SpecError(
                f"{self._root}: is a snapshot in the Hub's cache, which zootools never changes; "
                "`zootools pull` makes a copy to work on"
            )
        while True:
            try:
                descriptor = open_sole(self._root, self._name)
            except FileNotFoundError:
                continue  # a builder that has just finished has removed the folder
            except NotPlainError as error:
                raise DamagedZooError(f"{self.path}: {error.what}; remove it, zootools did not put it there") from error
            except OSError as error:
                raise storage_error(self.path, error) from error
            try:
                _lock(descriptor)
            except BlockingIOError:
                holder = parse_holder(os.read(descriptor, MOST_BYTES))
                os.close(descriptor)
                raise BusyError(
                    f"{self.path.parent.parent}: another process is at work there ({holder or 'just starting'}); "
                    "wait for it, or stop it"
                ) from None
            except OSError as error:
                os.close(descriptor)
                raise StorageError(
                    f"{self.path}: this file system has no locks (flock: {error.strerror}), without which two builders "
                    "could work on one zoo; build on a local disk, or mount this one with locks (Lustre: -o flock)"
                ) from error
            # The previous holder may have finished, and removed the file, after it was opened and before it was locked.
            if is_held(self.path, descriptor):
                break
            os.close(descriptor)
        self.descriptor = descriptor
        self.describe(self._holder)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def trains(self, engine: str, trained: int) -> None:
        """Describe, for `lock_state`, that a training begins, and how many model-epochs are done already."""
        change = {"engine": engine, "trains_since": time.time(), "trained_before": trained}
        self.describe(self._holder.model_copy(update=change))

    def describe(self, holder: Holder) -> None:
        """Write a description of this process into the lock file, which needs none: a full disk is no error."""
        text = holder.model_dump_json(exclude_defaults=True).encode() + b"\n"
        with suppress(OSError):
            os.pwrite(self.descriptor, text, 0)
            os.ftruncate(self.descriptor, len(text))


def _lock(descriptor: int) -> None:
    """Lock a file. Raises BlockingIOError if another process has it, but not if one only looks (`lock_state`)."""
    for pause in (0.01, 0.1):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(pause)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_state(path: Path) -> tuple[bool | None, Holder | None]:
    """Return whether a process holds a `FolderLock` (None if that cannot be seen), and which one does or last did.

    A process that holds the lock does not notice it; one that asks for it at the same moment asks again.
    """
    try:
        file = open_inside(path.parents[1], "/".join(path.parts[-2:]))
    except FileNotFoundError:
        return False, None
    except OSError:
        return None, None
    with file:
        holder = parse_holder(file.read(MOST_BYTES))
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True, holder
        except OSError:
            return None, holder
    return False, holder


def is_held(path: Path, descriptor: int) -> bool:
    """Whether the lock file at ``path`` (of a `FolderLock`) is still the one that ``descriptor`` has locked."""
    try:
        present = stat_inside(path.parents[1], "/".join(path.parts[-2:]))
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), present)


def check_held(path: Path, descriptor: int) -> None:
    """Raise unless the lock file ``<folder>/.work/lock`` is still the one that ``descriptor`` has locked.

    Raises StorageError when it does not exist, because the folder was moved or removed, its disk was unmounted, or the
    file alone was removed; BusyError when another builder has created a new one.
    """
    if is_held(path, descriptor):
        return
    folder = path.parent.parent
    moved = _present_path(descriptor)
    if moved is not None and moved.parts[-2:] == path.parts[-2:]:
        now = moved.parent.parent
        raise StorageError(
            f"{folder}: was moved to {now} during the build, which stops; nothing written is lost, "
            f"and --out {now} resumes it there"
        )
    try:
        path.stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise StorageError(
            f"{folder}: can no longer be read ({error.strerror or error}); the build stops, nothing written is lost"
        ) from error
    else:
        raise BusyError(f"{folder}: another builder has taken over this zoo; this one stops")
    if not folder.is_dir():
        raise StorageError(
            f"{folder}: is no longer there: it was moved or removed during the build, or its disk was unmounted. The "
            "build stops; where the folder still exists, the same command with its path after --out resumes it"
        )
    name = path.relative_to(folder)
    if not path.with_name("plan.json").exists():
        raise StorageError(
            f"{folder}: {name.parent} was removed during the build, which stops: without the records in it the build "
            "cannot be resumed. The checkpoints that were written are still there; build again in another folder"
        )
    raise StorageError(
        f"{folder}: {name} was removed during the build, which stops because another one could now begin there; "
        "nothing written is lost, and the same command resumes it"
    )


def _present_path(descriptor: int) -> Path | None:
    """Return the present path of an open file; None where it has been removed, or the system does not tell."""
    try:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return path if is_held(path, descriptor) else None
    except OSError:
        return None
