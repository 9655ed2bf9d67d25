"""Standard streams that never end a command: any encoding, closed streams, a reader that goes away."""

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
"""Characters of our own output, for encodings that lack them."""

_closed: set[str] = set()


def prepare_streams() -> None:
    """Replace closed streams, and write ``?`` for what an encoding lacks. Called once, before anything is printed."""
    codecs.register_error(_ERRORS, _readable)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file that is opened gets the number, and receives what is printed.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None and name != "stdin":
            _closed.add(name)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):  # such as a notebook's
            continue
        if sys.platform == "win32" and "PYTHONIOENCODING" not in os.environ:
            stream.reconfigure(encoding="utf-8", errors=_ERRORS)  # files there get an encoding that lacks much
        else:
            stream.reconfigure(errors=_ERRORS)


def stdout_is_closed() -> bool:
    """Whether the command was started without standard output."""
    return "stdout" in _closed


def discard_unwritable_output() -> None:
    """Discard what standard output does not take, so that Python does not try again, and complain, when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _readable(error: UnicodeError) -> tuple[str, int]:
    """Error handler: a plain form of our own characters, ``?`` for others."""
    assert isinstance(error, UnicodeEncodeError)
    text = "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end])
    try:
        text.encode(error.encoding)
    except UnicodeEncodeError:
        text = "?" * (error.end - error.start)
    return text, error.end
