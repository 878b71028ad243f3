"""The lock of a zoo in an object store, which has no flock: an object that is created exclusively and renewed.

The lease names its holder, which renews it every `HEARTBEAT` seconds. A lease that has not been renewed for `EXPIRY`
seconds can be taken over, after it has been watched for longer than a heartbeat: two machines whose clocks differ
cannot take a living builder for dead. The lease of a process of this machine that has ended is taken over at once.

A put is not conditional on another object, so a builder that is stopped between `check` and a put for longer than
`EXPIRY` may still put one object when it continues. Nothing is lost by that: two builders put the same bytes as a
shard, and a plan or record is replaced only if it is the one that this builder last saw (`ObjectStore.swap`).
"""

import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from zootools.errors import BusyError, ZooError
from zootools.filesystem.holder import MOST_BYTES, Holder, Seconds
from zootools.object_store.client import ConflictError, ObjectStore

LOG = logging.getLogger(__name__)

NAME = ".work/lease.json"
HEARTBEAT = 20.0
EXPIRY = 90.0


class LeaseHolder(Holder, frozen=True):
    """The builder that holds a lease."""

    machine: str = ""
    """See `_machine`."""
    token: str = ""
    """Random, to tell the lease of one builder from that of another."""
    renewed: Seconds = 0


class Lease:
    """A context manager in which this process alone may build in one place of an object store.

    Entering raises BusyError, naming the holder, while another builder has the lease.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._holder = LeaseHolder(
            host=socket.gethostname(),
            process=os.getpid(),
            machine=_machine(),
            token=secrets.token_hex(8),
            began=round(time.time()),
        )
        self._tag, self._lost, self._stop = "", False, threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._tag = self._take()
        except ConflictError:
            raise self._busy("another one has just begun") from None
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=2)  # it may be waiting for a store that does not answer
        with suppress(ZooError):  # if the store cannot be reached, the lease expires
            self.check()
            self._store.remove(NAME)

    def check(self) -> None:
        """Raise BusyError when another builder has taken over; called before anything is put."""
        if self._lost or self._read().token != self._holder.token:
            raise BusyError(f"{self._store.url}: another builder has taken over this zoo; this one stops")

    def trains(self, engine: str, trained: int) -> None:
        """Describe, from the next renewal on, that a training begins, and how many model-epochs are done already."""
        change = {"engine": engine, "trains_since": time.time(), "trained_before": trained}
        self._holder = self._holder.model_copy(update=change)

    def _take(self) -> str:
        with suppress(ConflictError):
            return self._store.swap(NAME, self._text(), None)
        tag, holder = self._store.tag(NAME), self._read()
        if tag is None:  # its holder has removed it since
            return self._store.swap(NAME, self._text(), None)
        age = time.time() - holder.renewed
        known = f"{holder}, heard of {max(0, age):.0f} s ago"
        if not _has_ended(holder):
            if age < EXPIRY:
                raise self._busy(known)
            LOG.info("%s: %s; watching whether it is alive", self._store.url, known)
            time.sleep(1.5 * HEARTBEAT)
            if self._store.tag(NAME) != tag:
                raise self._busy(f"{holder}, which is alive")
        LOG.info("%s: taking over from %s", self._store.url, known)
        return self._store.swap(NAME, self._text(), tag)

    def _keep(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                self._tag = self._store.swap(NAME, self._text(), self._tag)
            except ConflictError:
                self._lost = True
                return
            except ZooError as error:  # `check` finds out whether the lease is lost
                LOG.info("%s: the lease could not be renewed (%s)", self._store.url, error)

    def _read(self) -> LeaseHolder:
        return _read(self._store) or LeaseHolder()

    def _text(self) -> bytes:
        return self._holder.model_copy(update={"renewed": time.time()}).model_dump_json().encode()

    def _busy(self, holder: str) -> BusyError:
        return BusyError(f"{self._store.url}: another process is at work there ({holder}); wait for it, or stop it")


def lease_state(store: ObjectStore) -> tuple[bool | None, LeaseHolder | None]:
    """Return whether a builder holds the lease (None if it has not been renewed for long), and which one.

    The clocks of this machine and the builder's are compared. Nothing is written.
    """
    holder = _read(store)
    if holder is None or _has_ended(holder):
        return False, holder
    return (True if time.time() - holder.renewed < EXPIRY else None), holder


def _read(store: ObjectStore) -> LeaseHolder | None:
    """Return the holder of the lease in a store; None where there is no lease, all defaults where it is damaged."""
    data = store.read(NAME, MOST_BYTES)  # more than it has; asked for like this, it is one request
    if data is None:
        return None
    with suppress(ValidationError):
        return LeaseHolder.model_validate_json(data)
    return LeaseHolder()


def _has_ended(holder: LeaseHolder) -> bool:
    """Whether the holder was a process of this machine and this container, and has ended."""
    if not holder.machine or holder.machine != _machine():
        return False
    return not Path(f"/proc/{holder.process}").exists()


def _machine() -> str:
    """Return an identifier of this machine since it was started, and of the container; "" where that is unknown.

    Two processes with the same identifier see each other in /proc.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
