"""Format text for the terminal: aligned columns, wrapped lines, and names on one line."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def on_one_line(name: str) -> str:
    """Escape line breaks, tabs and other control characters in a name, such as a file name."""
    return _BREAKS.sub(lambda found: _SHORT.get(found[0], f"\\u{ord(found[0]):04x}"), name)


def wrapped(text: str) -> list[str]:
    """Wrap a text at spaces, to lines of 80 characters. All lines except the first are indented."""
    return textwrap.wrap(text, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def in_columns(rows: Sequence[Sequence[str]], *, num_texts: int) -> str:
    """Align cells in columns without truncation. The first ``num_texts`` columns align left, the rest right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index < num_texts else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
