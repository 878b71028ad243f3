"""The log of a zoo's builds, build.json: when, where and how long each session trained."""

import logging
import os
import platform
import time

from zootools.errors import DamagedZooError
from zootools.filesystem.holder import utc
from zootools.hashing import pretty_json
from zootools.storage.build_state import ZooFolder
from zootools.storage.unhashed import MAX_SESSIONS, read_build_log

LOG = logging.getLogger(__name__)

SECONDS_BETWEEN_WRITES = 60.0
"""A session that is killed loses at most this much of its duration."""


class SessionLog:
    """The entry of this session in build.json, the only file that equal zoos may differ in."""

    def __init__(self, zoo: ZooFolder, begun: float, device: str, backend: str, engine: str) -> None:
        """Args ``begun`` is the time at which the session began, in seconds since 1970."""
        self._zoo, self._begun, self._written = zoo, begun, time.monotonic()
        try:
            self._before = read_build_log(zoo.path)
        except DamagedZooError as error:  # a damaged log must not cost the trained models
            LOG.warning("%s; a new log is started", error)
            self._before = []
        self._session = {
            "began": utc(begun),
            "seconds": 0.0,
            "device": device,
            "backend": backend,
            "engine": engine,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "system": platform.system(),
        }

    def write(self) -> None:
        """Write the file, with the duration of the session so far. Raises as `ZooFolder.write`."""
        self._session["seconds"] = round(time.time() - self._begun, 1)
        self._zoo.write("build.json", pretty_json({"sessions": [*self._before, self._session][-MAX_SESSIONS:]}))
        self._written = time.monotonic()

    def write_if_old(self) -> None:
        """Write the file if it was not written for `SECONDS_BETWEEN_WRITES`."""
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self.write()
