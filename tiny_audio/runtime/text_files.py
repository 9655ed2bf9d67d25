"""Read users' text files in UTF-8, UTF-16 or UTF-32. UTF-32 needs a byte order mark.

Windows PowerShell, Excel and some editors write UTF-16 or a byte order mark.
"""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import TextIO

_MARKS = {
    # UTF-32 must come first, because its little-endian mark begins with UTF-16's little-endian mark.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of(head: bytes) -> str:
    """Return the encoding of a text, given its first four bytes.

    A byte order mark determines the encoding. Without a mark, the text is UTF-16 if exactly one of the first two bytes
    is zero, and UTF-8 otherwise. This works because the files start with an ASCII character, which has one zero byte in
    UTF-16 and none in UTF-8.
    """
    marked = next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), None)
    if marked is not None:
        return marked
    if len(head) >= 2 and bool(head[0]) != bool(head[1]):
        return "utf-16-le" if head[0] else "utf-16-be"
    return "utf-8-sig"


def decoded(content: bytes) -> str:
    """Decode the content of a whole file.

    Raises:
        UnicodeDecodeError: the content is not text in the encoding that :func:`encoding_of` returns.
    """
    return content.decode(encoding_of(content[:4]))


def open_text(path: Path, *, newline: str = "\n") -> TextIO:
    """Open a file to read its text. Bytes that cannot be decoded become lone surrogates.

    Args:
        path: the file.
        newline: as in :func:`open`. By default, a line ends only at a line feed.

    Raises:
        OSError: the file cannot be opened.
    """
    file = path.open("rb")
    return io.TextIOWrapper(file, encoding=encoding_of(file.peek(4)[:4]), errors="surrogateescape", newline=newline)
