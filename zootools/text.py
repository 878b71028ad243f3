"""Printing to the terminal, with untrusted text escaped. All output of zootools uses `say`.

Names of files and columns, keys, descriptions and the errors of libraries can contain control characters that move the
cursor, change the title of the window or reverse the order of letters, and line breaks that make one message look like
two. All of these are printed as escapes; line breaks are printed only between lines.
"""

import logging
import re
import sys
import unicodedata
import warnings

LONGEST = 4000
"""Maximal number of characters of a line on the terminal or in an error message."""
MOST_LINES = 100
"""Maximal number of lines of an error message."""

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories: control, format (bidi, zero width), surrogate, private, unassigned, line and paragraph break."""
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
"""Letters and marks without width, or without a glyph."""
_SUSPECT = re.compile(r"[^ -~]")


def printable(value: object, limit: int | None = LONGEST) -> str:
    r"""Return text as one line of visible characters; other characters become escapes such as ``\x1b`` or ``\u202e``.

    Letters, marks and symbols of all scripts are kept. If the text is longer than ``limit`` characters, the number of
    omitted characters replaces its middle. Printable text is returned unchanged.
    """
    text = str(value)
    if limit is not None and len(text) > limit:
        left = len(text) - limit
        text = f"{text[: limit * 3 // 4]}... ({left:,} more characters) ...{text[len(text) - limit // 4 :]}"
    return _SUSPECT.sub(lambda match: _visible(match[0]), text)


def say(*lines: object, err: bool = False, limit: int | None = LONGEST) -> None:
    """Print lines, each made `printable`, to stdout or (``err``) stderr; characters it cannot encode become escapes."""
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    for line in lines:
        text = printable(line, limit)
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def tame_libraries() -> None:
    """Make every log record and warning of this process, also those of libraries, one printable line."""
    logging.setLogRecordFactory(_PrintableRecord)
    warnings.formatwarning = lambda message, category, filename, lineno, line=None: (
        printable(f"{filename}:{lineno}: {category.__name__}: {message}") + "\n"
    )


class _PrintableRecord(logging.LogRecord):
    """A log record whose message is one printable line."""

    def getMessage(self) -> str:
        """Return the message as one printable line."""
        return printable(super().getMessage())


def _visible(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN or character in _BLANK:
        return character.encode("unicode_escape").decode()
    return character
