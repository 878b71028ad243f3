"""Calls to the Hub: which failures are worth another try, and what a refusal means in one line.

Tokens are huggingface-hub's business alone (its environment variables, its file): nothing here reads one.
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub import constants, get_session, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined]

from zootools.errors import HubError, StorageError, ZooError, ZooNotFoundError

LOG = logging.getLogger(__name__)

PAUSES = (1, 2, 4, 8)
"""Seconds before each further attempt, where the Hub does not name its own."""
LONGEST_PAUSE = 300
TIMEOUT = 10
"""Seconds that the Hub may take to answer the first request."""
SILENCE = 60
"""Seconds that a connection may be silent later on; huggingface-hub itself would wait for ever."""
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
CONFLICT = {409, 412}

T = TypeVar("T")


def offline() -> bool:
    """Whether huggingface-hub is told to stay off the network."""
    return bool(constants.HF_HUB_OFFLINE)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of huggingface-hub, None where there was no answer."""
    response = next((e.response for e in _chain(error) if isinstance(e, HfHubHTTPError)), None)
    return None if response is None else int(response.status_code)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may well succeed a little later."""
    if any(isinstance(e, OfflineModeIsEnabled) for e in _chain(error)):
        return False
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT
    if _without_xet(error):
        return False
    # A ConnectionError is what hf_xet raises for network trouble.
    return any(
        isinstance(e, ClientError | ConnectionError) or "Consistency check failed" in str(e) for e in _chain(error)
    )


def is_unreachable(error: BaseException) -> bool:
    """Whether no connection could be made at all."""
    return any(type(e).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError") for e in _chain(error))


def retried(call: Callable[[], T], what: str, first: bool = False) -> T:
    """Call, and call again after a pause while the failure is transient.

    A ``Retry-After`` of the Hub is obeyed. ``first`` marks the first request of all: a Hub that cannot be reached is
    then no passing trouble. Raises the refusal of `translated`.
    """
    get_session().timeout = SILENCE
    for pause in (*PAUSES, None):
        try:
            return call()
        except ZooError:
            raise
        except (ClientError, OSError, RuntimeError, ValueError) as error:
            if pause is None or not is_transient(error) or (first and is_unreachable(error)):
                raise translated(error, what) from error
            wait(error, pause, what)
    raise AssertionError


def wait(error: BaseException, pause: float, what: str) -> None:
    """Sleep before another attempt: as long as the Hub asks for, else ``pause`` seconds."""
    response = next((e.response for e in _chain(error) if isinstance(e, HfHubHTTPError)), None)
    asked = "" if response is None else response.headers.get("Retry-After", "")
    seconds = min(float(asked), LONGEST_PAUSE) if asked.isdigit() else pause
    LOG.info("%s: %s; trying again in %g s", what, _short(error), seconds)
    time.sleep(seconds)


def translated(error: BaseException, what: str) -> ZooError:
    """Return the refusal that says what happened to ``what``, and what to do."""
    chain, status = list(_chain(error)), status_of(error)
    login = "log in with `hf auth login`" if get_token() is None else "check `hf auth whoami` and the token's rights"
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain) or offline():
        return HubError(f"{what}: not in the cache, and HF_HUB_OFFLINE is set; unset it to fetch from the Hub")
    if any(isinstance(e, GatedRepoError) for e in chain):
        return HubError(f"{what}: is gated; ask for access on its page on the Hub, and {login}")
    if any(isinstance(e, RevisionNotFoundError) for e in chain):
        return ZooNotFoundError(f"{what}: the Hub has no such revision; `zootools hub info` lists the tags")
    if any(isinstance(e, RepositoryNotFoundError) for e in chain):
        return ZooNotFoundError(f"{what}: no such data set on the Hub, or not yours to see; check the name, or {login}")
    if status == 401:
        return HubError(f"{what}: the Hub does not accept the token; log in again with `hf auth login`")
    if status == 403:
        return HubError(f"{what}: the token may not do this; it needs the right to write to this organisation or user")
    if status in CONFLICT:
        return HubError(f"{what}: somebody else has changed it meanwhile; look at it, then run the same command again")
    if _without_xet(error):
        return HubError(f"{what}: this Hub has no Xet storage; set HF_HUB_DISABLE_XET=1 and run the same command again")
    if is_unreachable(error):
        return HubError(f"{what}: the Hub cannot be reached ({_short(error)}); check network, proxy and HF_ENDPOINT")
    return StorageError(f"{what}: the Hub failed ({_short(error)}); run the same command again, it goes on from here")


def _without_xet(error: BaseException) -> bool:
    return any("xet-write-token" in str(e) and "404" in str(e) for e in _chain(error))


def _short(error: BaseException) -> str:
    status = status_of(error)
    if status is not None:
        return f"HTTP {status}"
    last = list(_chain(error))[-1]
    return f"{type(last).__name__}: {last}".splitlines()[0][:200]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__
