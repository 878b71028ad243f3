"""The connection to a Ray cluster: a running one, or one that is started on this machine and stopped afterwards.

Every machine of a cluster needs the same zootools as this one: tasks name its functions, their code is not sent. The
environment of this process is not sent either, so tokens in it stay here.
"""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Any

from zootools.errors import ClusterError

SECONDS = 15
"""How long to wait for a cluster to accept a connection; Ray itself waits for minutes."""


@contextmanager
def connect(address: str | None = None, workers: int | None = None) -> Iterator[None]:
    """Connect this process to a Ray cluster for the duration of a block.

    Args:
        address: ``host:port`` of a cluster's head, or ``auto`` for the cluster that this machine belongs to. None means
            $RAY_ADDRESS, or, where that is not set, a Ray that is started here and stopped at the end.
        workers: number of cores that a Ray started here uses; None for all.

    A process that is already connected (`ray.init`) keeps its connection, whatever the address, and is still connected
    after the block. Ray's usage statistics are off unless $RAY_USAGE_STATS_ENABLED says otherwise.

    Raises ClusterError when Ray is not installed, or no cluster answers at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        with _stdout_kept():
            yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        where: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False}
    else:
        _check_address(address)
        where = {}
    try:
        try:
            with _signals_kept():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **where)
        except Exception as error:  # Ray also raises plain ones, for instance where it starts too slowly
            reason = " ".join(str(error).split())[:300]
            raise ClusterError(f"--address {address}: cannot be used ({reason})") from error
        with _stdout_kept():
            yield
    finally:
        ray.shutdown()


def _stdout_kept() -> redirect_stdout[Any]:
    """Redirect Ray's messages about dead workers to stderr; stdout is for results."""
    return redirect_stdout(sys.stderr)


def import_ray() -> Any:
    """Return the module ``ray``, with its usage statistics off. Raises ClusterError when it is not installed."""
    if find_spec("ray") is None:
        raise ClusterError("--engine ray needs the package ray, which is not installed: pip install 'zootools[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    return ray


def _check_address(address: str) -> None:
    """Raise ClusterError for an address at which nothing listens, sooner than Ray does."""
    if "://" in address:
        raise ClusterError(
            f"--address {address}: Ray's client protocol is not supported; run the command on a machine of the "
            "cluster, with --address auto"
        )
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"--address {address}: expected host:port, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"--address {address}: no Ray cluster answers there ({error})") from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore this process's handler of SIGTERM, which `ray.init` replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
