"""Recognize files that have the name of an audio file but other content, such as a web page."""

from __future__ import annotations

import re

HEAD_BYTES = 512
_KINDS = {
    rb"version https://git-lfs": "a Git LFS pointer, not audio; run `git lfs pull` in its folder",
    rb"\s*(?:<!doctype html|<html)": "a web page, not audio; download the file again",
    rb"\s*<\?xml|\s*[{[]\s*[\"{]": "a text file (XML or JSON), not audio; if it was downloaded, download it again",
    rb"#EXTM3U|\[playlist\]": "a playlist, not audio; give the files that it names",
    rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!|(?s:.{257})ustar": "an archive, not audio; unpack it",
}
"""Regular expressions for the beginnings of files, and the message for each."""


def other_content(head: bytes) -> str | None:
    """Return a message that says what a file is and what to do; None if its first bytes are not recognized."""
    text = head.removeprefix(b"\xef\xbb\xbf")
    return next((message for start, message in _KINDS.items() if re.match(start, text, re.IGNORECASE)), None)
