"""A connection to a Ray cluster: one that is there, or one that is started on this machine and stopped again.

Every machine of a cluster has zootools installed as this one has: tasks name functions of it, no code travels. Nothing
of this process's environment is sent along either, so a token stays where it is.
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
"""Within which a cluster answers; Ray itself would wait for minutes."""


@contextmanager
def connect(address: str | None = None, workers: int | None = None) -> Iterator[None]:
    """Let this process use Ray while the block runs.

    Args:
        address: ``host:port`` of a cluster's head, or ``auto`` for the cluster that this machine belongs to; by default
            what $RAY_ADDRESS names, else Ray is started here and stopped at the end.
        workers: cores that a Ray started here uses; by default all.

    A process that is connected already (`ray.init`) stays so, before and after. Ray's usage statistics are off unless
    $RAY_USAGE_STATS_ENABLED says otherwise.

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
        except Exception as error:  # Ray raises plain ones too, of a machine that is too slow to start it
            reason = " ".join(str(error).split())[:300]
            raise ClusterError(f"--address {address}: cannot be used ({reason})") from error
        with _stdout_kept():
            yield
    finally:
        ray.shutdown()


def _stdout_kept() -> redirect_stdout[Any]:
    """Let Ray tell of dead workers on stderr: stdout, where it does so by itself, is for results."""
    return redirect_stdout(sys.stderr)


def import_ray() -> Any:
    """Return the module ``ray`` with its usage statistics off. Raises ClusterError where it is not installed."""
    if find_spec("ray") is None:
        raise ClusterError("--engine ray needs the package ray, which is not installed: pip install 'zootools[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    return ray


def _check_address(address: str) -> None:
    """Refuse an address that no cluster answers at, sooner than Ray does."""
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
    """Keep what this process does about signals, which `ray.init` changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
