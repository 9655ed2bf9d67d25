"""Errors and warnings about audio files."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tiny_audio.config import UserError

_LOG = logging.getLogger(__name__)
_MAX_REMEMBERED = 10_000
_LISTED_GAPS = 5
_WARNED: dict[str, None] = {}


class AudioError(UserError):
    """A clip that cannot be used.

    Attributes:
        reason: a code by which rejected clips can be counted: ``not_a_file``, ``not_audio``, ``unreadable``,
            ``undecodable``, ``truncated``, ``empty``, ``too_short``, ``too_long``, ``non_finite``, ``out_of_range``,
            ``sample_rate``, ``channels``, ``no_such_channel``, ``no_such_track``, ``unknown_length``,
            ``duration_differs``, ``audio_missing``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


DAMAGED = "damaged: no sound could be decoded"
"""The ``problem`` argument of :func:`warn_of_gaps` for damaged recordings."""


class FileError(UserError):
    """A file that cannot be read now, for example because its disk is not mounted. The clip itself may be good."""


def warn_of_gaps(name: str, gaps: Sequence[tuple[float, float]], problem: str, cause: str | None = None) -> None:
    """Log a warning that silence replaces missing sound.

    Args:
        name: the recording's name in messages.
        gaps: start and end of each gap in seconds.
        problem: a description of the gaps, such as ``no sound``.
        cause: the decoder's message, which is appended to the warning.
    """
    listed = ", ".join(f"{start:.2f} to {end:.2f} s" for start, end in gaps[:_LISTED_GAPS])
    more = f" and {len(gaps) - _LISTED_GAPS} more" if len(gaps) > _LISTED_GAPS else ""
    why = f"; {cause}" if cause else ""
    warn_once(f"{name}: {problem} from {listed}{more}; silence takes its place{why}")


def warn_once(message: str) -> None:
    """Log a warning about a file, unless this process has logged it before."""
    if message in _WARNED:
        return
    if len(_WARNED) >= _MAX_REMEMBERED:
        _WARNED.clear()
    _WARNED[message] = None
    _LOG.warning("%s", message)
