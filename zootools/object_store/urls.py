"""Telling paths, ``file://`` URLs and URLs of object stores apart."""

import re
from pathlib import Path

from zootools.errors import SpecError
from zootools.filesystem.files import home_expanded

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)")
_WEB = ("hf", "http", "https")
"""Protocols that fsspec knows, but which are not those of object stores."""
_HUB = re.compile(r"(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)(.*)", re.IGNORECASE)
_ON_THE_HUB = re.compile(
    r"(?:datasets/)?([\w.-]+/[\w.-]+?)(?:\.git)?(?:@([\w.-]+)|/(?:tree|blob|resolve)/([\w.-]+))?/?(?:[/?#].*)?",
    re.ASCII,
)


def is_url(text: str | Path) -> bool:
    """Whether something is a URL, and not a path."""
    return isinstance(text, str) and _URL.fullmatch(text) is not None


def folder_of(text: str | Path) -> Path | None:
    """Return the folder of a path or a ``file://`` URL; None for the URL of an object store.

    ``~`` is the home folder. Raises SpecError for an empty text, and for a URL with credentials, of a web page
    or of the Hub.
    """
    match = _URL.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return _folder(str(text))
    protocol, rest = match[1].lower(), match[2]
    if "@" in rest.partition("/")[0]:
        raise SpecError(f"{protocol}://...: this URL has credentials in it; give them in the environment instead")
    if protocol in _WEB:
        raise _web_address(str(text))
    if protocol != "file":
        return None
    if not rest.startswith("/"):
        raise SpecError(f"{text}: expected three slashes and an absolute path, as in file:///nfs/zoo")
    return Path(rest)


def _folder(text: str) -> Path:
    if not text.strip():
        raise SpecError(f"found an empty name ({text!r}); expected a folder, ORG/NAME or the URL of an object store")
    return home_expanded(text)


def _web_address(url: str) -> SpecError:
    """Return the error for the address of a data set on the Hub, which names its ORG/NAME, or of another web page."""
    on_the_hub = _HUB.fullmatch(url)
    match = _ON_THE_HUB.fullmatch(on_the_hub[1]) if on_the_hub else None
    if match is not None:
        revision = match[2] or match[3]
        name = match[1] + (f"@{revision}" if revision else "")
        return SpecError(f"{url}: is the address of a data set on the Hub; give its name instead: {name}")
    return SpecError(
        f"{url}: is not the address of an object store; expected a folder, ORG/NAME of a data set on the Hub, or a URL "
        "such as s3://BUCKET/PREFIX"
    )
