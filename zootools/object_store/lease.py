"""One builder per zoo in an object store, which has no flock: an object that is made exclusively and kept fresh.

The lease names its holder. It is renewed every `HEARTBEAT` seconds, and one that has not been renewed for `EXPIRY`
seconds may be taken over, after it has been watched for longer than a heartbeat: clocks of two machines that differ
cannot make a living builder look dead. A holder on this machine whose process is gone is taken over at once.

What it cannot do: a put is not conditional on another object, so a builder that is stopped between `check` and a put,
for longer than `EXPIRY`, may still put one object when it wakes. Shards are the same bytes whoever puts them, and the
journal is replaced only if it is what this builder last saw (`ObjectStore.swap`), so nothing is lost by it.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from zootools.errors import BusyError, ZooError
from zootools.object_store.client import ConflictError, ObjectStore

LOG = logging.getLogger(__name__)

NAME = ".work/lease.json"
HEARTBEAT = 20.0
EXPIRY = 90.0


class Lease:
    """The right to build in one place of an object store, for as long as the block lasts.

    Raises BusyError, naming the holder, while somebody else has it.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._store = objects
        self._holder: dict[str, Any] = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "machine": _machine(),
            "token": secrets.token_hex(8),
            "began": round(time.time()),
        }
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
        with suppress(ZooError):  # a store that cannot be reached: the lease expires
            self.check()
            self._store.remove(NAME)

    def check(self) -> None:
        """Raise BusyError when somebody else has taken over; called before anything is put."""
        if self._lost or (self._read() or {}).get("token") != self._holder["token"]:
            raise BusyError(f"{self._store.url}: another builder has taken over this zoo; this one stops")

    def _take(self) -> str:
        with suppress(ConflictError):
            return self._store.swap(NAME, self._text(), None)
        tag, holder = self._store.tag(NAME), self._read() or {}
        if tag is None:  # it has just been given back
            return self._store.swap(NAME, self._text(), None)
        renewed = holder.get("renewed")
        age = time.time() - (renewed if isinstance(renewed, int | float) else 0)
        known = f"process {holder.get('process')} on {holder.get('host')}, heard of {max(0, age):.0f} s ago"
        if not self._is_dead(holder):
            if age < EXPIRY:
                raise self._busy(known)
            LOG.info("%s: %s; watching whether it is alive", self._store.url, known)
            time.sleep(1.5 * HEARTBEAT)
            if self._store.tag(NAME) != tag:
                raise self._busy(f"process {holder.get('process')} on {holder.get('host')}, which is alive")
        LOG.info("%s: taking over from %s", self._store.url, known)
        return self._store.swap(NAME, self._text(), tag)

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        """Whether the holder was a process of this very machine (and container), which is gone."""
        if not self._holder["machine"] or holder.get("machine") != self._holder["machine"]:
            return False
        return not Path(f"/proc/{holder.get('process')}").exists()

    def _keep(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                self._tag = self._store.swap(NAME, self._text(), self._tag)
            except ConflictError:
                self._lost = True
                return
            except ZooError as error:  # whoever puts next finds out how things stand
                LOG.info("%s: the lease could not be renewed (%s)", self._store.url, error)

    def _read(self) -> dict[str, Any] | None:
        data = self._store.read(NAME, 4096)  # more than it has; asked for like this, it is one request
        with suppress(ValueError):
            value = json.loads(data) if data else None
            return value if isinstance(value, dict) else None
        return None

    def _text(self) -> bytes:
        return json.dumps({**self._holder, "renewed": time.time()}).encode()

    def _busy(self, holder: str) -> BusyError:
        return BusyError(f"{self._store.url}: another process is at work there ({holder}); wait for it, or stop it")


def _machine() -> str:
    """Return what tells this running machine, and the container on it, from all others; nothing where that is unknown.

    Of two processes with the same value each can see whether the other one is there.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
