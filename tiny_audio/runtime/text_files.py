"""Text files from anywhere: UTF-8, UTF-16 and UTF-32, with or without a byte order mark.

Windows PowerShell, Excel and some editors write such files. Every text that a user gives is read through this module.
"""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import TextIO

_MARKS = {
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of(head: bytes) -> str:
    """The encoding of a text, by its first four bytes.

    A byte order mark decides. Without one, a zero byte next to the first character means UTF-16, since that character
    is ASCII in every format that is read here. Everything else is UTF-8.
    """
    marked = next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), None)
    if marked is not None:
        return marked
    if len(head) >= 2 and bool(head[0]) != bool(head[1]):
        return "utf-16-le" if head[0] else "utf-16-be"
    return "utf-8-sig"


def decoded(content: bytes) -> str:
    """The text of a whole file.

    Raises:
        UnicodeDecodeError: it is not text in one of these encodings.
    """
    return content.decode(encoding_of(content[:4]))


def open_text(path: Path, *, errors: str = "strict", newline: str = "\n") -> TextIO:
    """Open a file to read its text.

    Args:
        path: the file.
        errors: what to do with bytes that are not text, as in :func:`open`.
        newline: as in :func:`open`. By default, a line ends only at a line feed.

    Raises:
        OSError: it cannot be opened.
    """
    file = path.open("rb")
    return io.TextIOWrapper(file, encoding=encoding_of(file.peek(4)[:4]), errors=errors, newline=newline)
