"""Text on the terminal: the one way in which zootools prints, and what it does to text that others wrote.

Names of files and columns, keys, descriptions and the errors of libraries can contain control characters that move the
cursor, retitle the window or reverse the order of letters, and line breaks that make one message look like two. All of
them are shown as escapes; a line break is printed only between two lines, never inside one.
"""

import logging
import re
import sys
import unicodedata
import warnings

LONGEST = 4000
"""Characters of a line on the terminal, and of a line of an error message."""
MOST_LINES = 100
"""Lines of an error message."""

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories: control, format (bidi, zero width), surrogate, private, unassigned, line and paragraph break."""
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
"""Letters and marks without width, or without a glyph."""
_SUSPECT = re.compile(r"[^ -~]")


def printable(value: object, limit: int | None = LONGEST) -> str:
    r"""Return text as one line in which every character is visible: others are escaped, as ``\x1b`` or ``\u202e``.

    Letters, marks and symbols of every script stay. Of text longer than ``limit`` characters the middle is left out,
    and the number of missing characters takes its place. What was made printable stays as it is.
    """
    text = str(value)
    if limit is not None and len(text) > limit:
        left = len(text) - limit
        text = f"{text[: limit * 3 // 4]}... ({left:,} more characters) ...{text[len(text) - limit // 4 :]}"
    return _SUSPECT.sub(lambda match: _visible(match[0]), text)


def say(*lines: object, err: bool = False, limit: int | None = LONGEST) -> None:
    """Print lines, each made `printable`, on stdout or (``err``) on stderr; characters it cannot encode as escapes."""
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    for line in lines:
        text = printable(line, limit)
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def tame_libraries() -> None:
    """Make log records and warnings of all libraries in this process one printable line each."""
    logging.setLogRecordFactory(_PrintableRecord)
    warnings.formatwarning = lambda message, category, filename, lineno, line=None: (
        printable(f"{filename}:{lineno}: {category.__name__}: {message}") + "\n"
    )


class _PrintableRecord(logging.LogRecord):
    """A log record whose message is one printable line."""

    def getMessage(self) -> str:
        return printable(super().getMessage())


def _visible(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN or character in _BLANK:
        return character.encode("unicode_escape").decode()
    return character
