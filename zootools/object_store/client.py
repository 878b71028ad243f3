"""A client of object stores, through fsspec: whole objects are put, conditionally where a store can do that.

Credentials and endpoints are left to fsspec (for S3 it uses the environment variables and files of the aws command):
they are not read here, and a URL must not contain them.
"""

import errno
import hashlib
import logging
import mimetypes
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zootools.errors import DamagedZooError, SpecError, StorageError, ZooError, ZooNotFoundError
from zootools.filesystem.files import durable_path
from zootools.filesystem.inside import NotPlainError, path_inside

LOG = logging.getLogger(__name__)

PAUSES: tuple[float, ...] = (1, 4, 15, 60)
"""Seconds before each retry of a call that failed for a transient reason.

The client of S3 sends each request once: with its own retries, those of botocore and these, one inside the other, a
request that fails would be sent 125 times. Other clients of fsspec may retry by themselves.
"""

_ONCE = {"retries": {"total_max_attempts": 1, "mode": "standard"}}
"""The setting of botocore for requests that are not retried."""

_S3 = ("s3", "s3a")
_ONE_PUT = 5 << 30
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)
_FINAL_NUMBERS = {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE, errno.EREMCHG}
_TRANSIENT = {"ConnectionError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError", "IncompleteRead"}
"""Transient errors of HTTP clients that are not OSErrors."""

T = TypeVar("T")


class ConflictError(Exception):
    """An object has changed since it was last read."""


@dataclass(frozen=True)
class StoredObject:
    """An object in the listing of a store."""

    size: int
    tag: str
    """The store's ETag, which changes with the content; empty where a store has none."""


class ObjectStore:
    """The objects below one URL, by their names relative to it.

    The constructor raises SpecError where fsspec does not know the store, or its package is not installed. Every
    method retries transient failures after `PAUSES`, and raises SpecError where the store refuses, StorageError where
    it fails or cannot be reached.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        self._has_answered = False
        protocol = url.partition("://")[0].lower()
        self._conditional = protocol in _S3
        try:
            # A cached listing would give the old sizes of objects.
            options = {"use_listings_cache": False, "config_kwargs": _ONCE} if self._conditional else {}
            self._files, self._root = fsspec.url_to_fs(self.url, skip_instance_cache=True, **options)
            if self._conditional:
                self._files.retries = 1  # the number of attempts
        except ImportError as error:
            install = "pip install 'zootools[s3]'" if self._conditional else str(error).rstrip(".")
            raise SpecError(f"{self.url}: needs a package that is not installed: {install}") from None
        except (ValueError, TypeError) as error:
            raise SpecError(f"{self.url}: fsspec knows no such store ({str(error).splitlines()[0]})") from None
        except Exception as error:  # some connect here already
            raise _error_of(self.url, error) from error

    def list(self) -> dict[str, StoredObject]:
        """Return all objects by name. Raises SpecError where there is no such bucket."""
        found = self._call("", lambda: self._fresh().find(self._root, detail=True))
        start = len(self._root.rstrip("/")) + 1
        return {
            path[start:]: StoredObject(int(info["size"]), str(info.get("ETag") or ""))
            for path, info in found.items()
            if len(path) > start
        }

    def read(self, name: str, limit: int | None = None) -> bytes | None:
        """Return an object, or its first ``limit`` bytes; None when there is none."""

        def read() -> bytes | None:
            try:
                return bytes(self._fresh().cat_file(self._path(name), start=None if limit is None else 0, end=limit))
            except FileNotFoundError:
                return None

        return self._call(name, read)

    def tag(self, name: str) -> str | None:
        """Return the tag of an object, None when there is none."""
        if not self._conditional:
            data = self.read(name)
            return None if data is None else hashlib.sha256(data).hexdigest()

        def look() -> str | None:
            try:
                return str(self._fresh().info(self._path(name))["ETag"])
            except FileNotFoundError:
                return None

        return self._call(name, look)

    def download(self, name: str, folder: Path) -> None:
        """Copy an object to the file of its name in a folder, which appears when it is whole."""

        def get() -> None:
            with durable_path(folder / name, folder) as temporary:
                self._fresh().get_file(self._path(name), str(temporary))

        self._call(name, get)

    def upload(self, name: str, folder: Path) -> None:
        """Put the plain file of its name in a folder as an object, over what is there. Raises DamagedZooError."""
        kind = mimetypes.guess_type(name)[0]
        options = {"ContentType": kind} if kind and self._conditional else {}

        def put() -> None:
            try:
                with path_inside(folder, name) as path:
                    self._files.put_file(str(path), self._path(name), **options)
            except NotPlainError as error:
                raise DamagedZooError(f"{folder}: {name}: {error.what}") from error

        self._call(name, put)

    def swap(self, name: str, data: bytes, old: str | None) -> str:
        """Put an object if it is still the one with the tag ``old``, or (None) still not there; return the new tag.

        On S3 the store itself compares the tags, atomically. Elsewhere an object is created as exclusively as fsspec's
        implementation does it; a replacement first compares and then puts, and where ``old`` is empty it only puts.
        Raises ConflictError.
        """

        def put() -> str:
            try:
                if old is None:
                    answer = self._files.pipe_file(self._path(name), data, mode="create", **self._whole())
                elif self._conditional:
                    answer = self._files.pipe_file(self._path(name), data, IfMatch=old, **self._whole())
                elif not old or self.tag(name) == old:
                    answer = self._files.pipe_file(self._path(name), data)
                else:
                    raise FileExistsError(name)
            except OSError as error:
                if not _is_conflict(error):
                    raise
                # The response to a put that succeeded may have been lost, and the client have retried it.
                if self.read(name) != data:
                    raise ConflictError(name) from None
                answer = None
            tag = answer.get("ETag") if isinstance(answer, dict) else self.tag(name)
            return str(tag)

        return self._call(name, put)

    def remove(self, name: str) -> None:
        """Remove an object, if there is one of that name."""

        def remove() -> None:
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return

        self._call(name, remove)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _whole(self) -> dict[str, int]:
        """Return the option that makes s3fs put an object in one request; only such a request can be conditional."""
        return {"chunksize": _ONE_PUT} if self._conditional else {}

    def _fresh(self) -> Any:
        self._files.invalidate_cache()
        return self._files

    def _call(self, name: str, action: Callable[[], T]) -> T:
        where = f"{self.url}/{name}".rstrip("/")
        for pause in (*PAUSES, None):
            try:
                result = action()
            except (ConflictError, ZooError):
                raise
            except Exception as error:  # the errors of fsspec's implementations have no common class
                mistyped = not self._has_answered and _is_unresolved(error)
                if pause is None or mistyped or not _is_transient(error):
                    raise _error_of(where, error) from error
                LOG.info("%s: %s; retrying in %g s", where, _short(error), pause)
                time.sleep(pause)
            else:
                self._has_answered = True
                return result
        raise AssertionError


def _is_unresolved(error: BaseException | None) -> bool:
    """Whether the name of the store's host cannot be resolved: in the first call, a wrong name or no network."""
    while error is not None:
        if isinstance(error, socket.gaierror) or type(error).__name__ == "ClientConnectorDNSError":
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_transient(error: Exception) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, OSError):
        return not isinstance(error, _FINAL) and error.errno not in _FINAL_NUMBERS
    return any(base.__name__ in _TRANSIENT for base in type(error).__mro__)


def _is_conflict(error: OSError) -> bool:
    return isinstance(error, FileExistsError) or _code(error) in ("PreconditionFailed", "412", "NoSuchKey")


def _code(error: BaseException) -> str | None:
    """Return the error code in the response of S3 that caused an error, None where there is none."""
    response = getattr(error.__cause__, "response", None)
    return str(response["Error"].get("Code")) if isinstance(response, dict) and "Error" in response else None


def _error_of(where: str, error: Exception) -> ZooError:
    """Return the one-line error for a failed call, with what helps and without any secret."""
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return SpecError(
            f"{where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            "as for the aws command"
        )
    if isinstance(error, PermissionError):
        return SpecError(f"{where}: these credentials are not allowed to do this ({_code(error) or 'forbidden'})")
    if isinstance(error, FileNotFoundError):
        return ZooNotFoundError(f"{where}: is not there ({_code(error) or 'not found'}); is the bucket's name right?")
    if isinstance(error, OSError) and error.errno not in _FINAL_NUMBERS:
        return StorageError(f"{where}: the store failed ({_short(error)}); run the same command again to resume")
    if _is_transient(error):
        return StorageError(
            f"{where}: the store cannot be reached ({_short(error)}); run the same command again to resume"
        )
    return SpecError(f"{where}: the store refuses ({_short(error)})")


def _short(error: BaseException) -> str:
    code = _code(error)
    return code if code else f"{type(error).__name__}: {error}".splitlines()[0][:200]
