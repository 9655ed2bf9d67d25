"""Prevent errors if a standard stream is closed, has a limited encoding, or is no longer read."""

from __future__ import annotations

import codecs
import io
import os
import sys

_ERRORS = "tiny_audio.readable"
_PLAIN = {
    **dict(zip("✓✗×–—’‘“”·•−", "+xx--''\"\".*-", strict=True)),
    **dict(zip("±…→≤≥", ("+-", "...", "->", "<=", ">="), strict=True)),
}
"""Character that this package prints -> its replacement in encodings that lack it."""

_closed: set[str] = set()


def prepare_streams() -> None:
    """Replace closed streams, and set up replacements for characters that the encoding lacks.

    Call this once, before anything is printed.
    """
    codecs.register_error(_ERRORS, _readable)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Occupy the file descriptor. Otherwise, the next file that is opened would get this descriptor, and output
            # for the closed stream would go to that file.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None and name != "stdin":
            _closed.add(name)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):  # such as the stream of a notebook
            continue
        if sys.platform == "win32" and "PYTHONIOENCODING" not in os.environ:
            # The default encoding on Windows lacks many characters.
            stream.reconfigure(encoding="utf-8", errors=_ERRORS)
        else:
            stream.reconfigure(errors=_ERRORS)


def stdout_is_closed() -> bool:
    """Whether the command was started without standard output."""
    return "stdout" in _closed


def discard_unwritable_output() -> None:
    """If standard output cannot be written, discard its buffer. Otherwise, Python would report an error at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _readable(error: UnicodeError) -> tuple[str, int]:
    """Handle an encoding error: use the replacements in ``_PLAIN``, and ``?`` for other characters."""
    assert isinstance(error, UnicodeEncodeError)
    text = "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end])
    try:
        text.encode(error.encoding)
    except UnicodeEncodeError:
        text = "?" * (error.end - error.start)
    return text, error.end
