"""The folders that zootools uses outside of zoos: the user's cache, and the image files."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def data_folder(data: Path | None = None) -> Path:
    """Return the folder of the image files: ``data`` if given, else ``$ZOOTOOLS_DATA``, else in the user's cache."""
    if data is not None:
        return data
    if os.environ.get("ZOOTOOLS_DATA"):
        return Path(os.environ["ZOOTOOLS_DATA"])
    return cache_folder() / "images"


def cache_folder() -> Path:
    """Return the folder in the user's cache for what zootools can make or download again.

    On Linux that is ``$XDG_CACHE_HOME/zootools``, by default ``~/.cache/zootools``.
    """
    return user_cache_path("zootools", appauthor=False)
