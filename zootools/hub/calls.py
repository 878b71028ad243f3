"""Calls to the Hub: which failures are retried, and what an error means, in one line.

Only one layer retries a request that fails: `retried`, in whose calls huggingface-hub sends each request once, or
huggingface-hub itself, in `sent_by_library`. Tokens are left to huggingface-hub (its environment variables and its
file); here a token is only checked for characters that a header cannot contain.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import constants, get_session, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined]
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

from zootools.errors import HubError, StorageError, ZooError, ZooNotFoundError

LOG = logging.getLogger(__name__)

PAUSES = (1, 2, 4, 8)
"""Seconds before each retry, unless the Hub names another time."""
LONGEST_WAIT = 300
"""Seconds that the pauses of one call may take together, where the Hub asks for longer ones (``Retry-After``)."""
TIMEOUT = 10
"""Seconds that the Hub may take to answer the first request."""
SILENCE = 60
"""Seconds that the Hub may take to answer a later request; huggingface-hub itself sets no limit."""
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
CONFLICT = {409, 412}

_OURS = {"UnsupportedProtocol", "LocalProtocolError", "TooManyRedirects"}
"""Errors of the HTTP client that this side causes; a retry cannot help."""

FAILURES = (ClientError, OSError, RuntimeError, ValueError)
"""What huggingface-hub raises for a request that failed."""

T = TypeVar("T")


class UnansweredError(ClientError):
    """A request got no answer; unlike its cause, this is not an error for which huggingface-hub retries it."""


class _Here(threading.local):
    """How requests of this thread are sent (see `each_request_once`)."""

    once = False
    """Whether a request that fails is not retried by huggingface-hub."""
    heads: set[str]
    """The URLs of the HEAD requests that were sent in this call."""


_HERE = _Here()


def offline() -> bool:
    """Whether huggingface-hub must not use the network (``HF_HUB_OFFLINE``)."""
    return bool(constants.HF_HUB_OFFLINE)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of huggingface-hub, None where there was no answer."""
    response = next((e.response for e in _chain(error) if isinstance(e, HfHubHTTPError)), None)
    return None if response is None else int(response.status_code)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    if any(isinstance(e, OfflineModeIsEnabled) for e in _chain(error)):
        return False
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT
    if _without_xet(error) or any(type(e).__name__ in _OURS for e in _chain(error)):
        return False
    # A ConnectionError is what hf_xet raises for network trouble.
    return any(
        isinstance(e, ClientError | ConnectionError) or "Consistency check failed" in str(e) for e in _chain(error)
    )


def is_unreachable(error: BaseException) -> bool:
    """Whether no connection could be made: the host's name cannot be resolved, or the host does not answer."""
    return any(type(e).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError", "gaierror") for e in _chain(error))


def retried(call: Callable[[], T], what: str, first: bool = False) -> T:
    """Return the result of a call, which is retried after a pause while its failures are transient.

    Args:
        call: what calls huggingface-hub.
        what: the subject of error messages.
        first: whether this is the first request; then it is not retried when the Hub cannot be reached at all.

    The pauses are `PAUSES`, 15 s together, or those that the Hub asks for (``Retry-After``), up to `LONGEST_WAIT`
    together. Raises the error of `translated`; a ZooError of the call passes through.
    """
    check_token()
    left = float(LONGEST_WAIT)
    for pause in (*PAUSES, None):
        try:
            with each_request_once():
                return call()
        except ZooError:
            raise
        except FAILURES as error:
            if pause is None or not is_transient(error) or (first and is_unreachable(error)):
                raise translated(error, what) from error
            left -= _wait(error, pause, what, left)
    raise AssertionError


def sent_by_library(call: Callable[[], T], what: str) -> T:
    """Return the result of a call that makes many requests, each of which huggingface-hub retries for 23 s.

    Raises the error of `translated`; a ZooError of the call passes through.
    """
    check_token()
    try:
        get_session().timeout = SILENCE
        return call()
    except ZooError:
        raise
    except FAILURES as error:
        raise translated(error, what) from error


def _wait(error: BaseException, pause: float, what: str, left: float) -> float:
    """Sleep before a retry, as long as the Hub asks for or else ``pause`` seconds; return the seconds.

    Raises the error of `translated` where the Hub asks for more than ``left`` seconds.
    """
    response = next((e.response for e in _chain(error) if isinstance(e, HfHubHTTPError)), None)
    asked = "" if response is None else response.headers.get("Retry-After", "")
    seconds = float(asked) if asked.isascii() and asked.isdigit() else pause
    if seconds > left:
        raise translated(error, what) from error
    LOG.info("%s: %s; retrying in %g s", what, _short(error), seconds)
    time.sleep(seconds)
    return seconds


@contextmanager
def each_request_once() -> Iterator[None]:
    """A context in which huggingface-hub sends each request of this thread once.

    With its own retries inside those of `retried`, a request that fails would be sent 30 times, over minutes.
    """
    client = get_session()
    client.timeout = SILENCE
    if "send" not in vars(client):
        client.send = _sending(client.send)  # type: ignore[method-assign]
    outer, _HERE.once, _HERE.heads = _HERE.once, True, set()
    try:
        yield
    finally:
        _HERE.once = outer


def _sending(send: Callable[..., Any]) -> Callable[..., Any]:
    """Return a client's ``send`` whose failures huggingface-hub does not retry inside `each_request_once`."""

    def send_once(request: Any, **options: Any) -> Any:
        try:
            response = send(request, **options)
        except ClientError as error:
            if _is_final(request):
                raise UnansweredError(f"{type(error).__name__}: {error}") from error
            raise
        if response.status_code in TRANSIENT and _is_final(request):
            response.read()
            hf_raise_for_status(response)
        return response

    return send_once


def _is_final(request: Any) -> bool:
    """Whether huggingface-hub must not retry a request that failed.

    After the first HEAD of a URL it looks in its cache, and sends the HEAD again only if nothing is there.
    """
    if not _HERE.once:
        return False
    if request.method == "HEAD" and str(request.url) not in _HERE.heads:
        _HERE.heads.add(str(request.url))
        return False
    return True


def check_token() -> bool:
    """Return whether there is an access token. Raises HubError for one that cannot be read or sent."""
    where = "the access token of the Hub (HF_TOKEN, or what `hf auth login` stored)"
    try:
        token = get_token()
    except (OSError, UnicodeDecodeError):
        raise HubError(f"{where} cannot be read; log in again with `hf auth login`") from None
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise HubError(
            f"{where} has characters that a token cannot have, such as spaces or accented letters; set it again"
        )
    return token is not None


def translated(error: BaseException, what: str) -> ZooError:
    """Return the error that says what happened to ``what``, and what to do."""
    chain, status = list(_chain(error)), status_of(error)
    login = "log in with `hf auth login`" if not check_token() else "check `hf auth whoami` and the token's rights"
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain) or offline():
        return HubError(f"{what}: not in the cache, and HF_HUB_OFFLINE is set; unset it to fetch from the Hub")
    if any(isinstance(e, GatedRepoError) for e in chain):
        return HubError(f"{what}: is gated; request access on its page on the Hub, and {login}")
    if any(isinstance(e, RevisionNotFoundError) for e in chain):
        return ZooNotFoundError(f"{what}: the Hub has no such revision; `zootools hub info` lists the tags")
    if any(isinstance(e, RepositoryNotFoundError) for e in chain):
        return ZooNotFoundError(
            f"{what}: there is no such data set on the Hub, or it is private; check the name, or {login}"
        )
    if status == 401:
        return HubError(f"{what}: the Hub does not accept the token; log in again with `hf auth login`")
    if status == 403:
        return HubError(f"{what}: the token may not do this; it needs write access to this organisation or user")
    if status in CONFLICT:
        return HubError(f"{what}: was changed by another user or process; check it, then run the same command again")
    if _without_xet(error):
        return HubError(
            f"{what}: this Hub has no Xet storage; set HF_HUB_DISABLE_XET=1, then run the same command again"
        )
    if is_unreachable(error):
        return StorageError(
            f"{what}: the Hub cannot be reached ({_short(error)}); check network, proxy and HF_ENDPOINT, or set "
            "HF_HUB_OFFLINE=1 to use what is in the cache"
        )
    return StorageError(f"{what}: the Hub failed ({_short(error)}); run the same command again to resume")


def _without_xet(error: BaseException) -> bool:
    return any("xet-write-token" in str(e) and "404" in str(e) for e in _chain(error))


def _short(error: BaseException) -> str:
    status = status_of(error)
    if status is not None:
        return f"HTTP {status}"
    last = list(_chain(error))[-1]
    return f"{type(last).__name__}: {last}".splitlines()[0][:200]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it, one after the other."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__
