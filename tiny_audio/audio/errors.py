"""Errors of audio files."""

from __future__ import annotations

from tiny_audio.config import UserError


class AudioError(UserError):
    """A clip that cannot be used.

    Attributes:
        reason: a code for counting: ``not_a_file``, ``unreadable``, ``undecodable``, ``truncated``, ``empty``,
            ``too_short``, ``too_long``, ``non_finite``, ``out_of_range``, ``sample_rate``, ``channels``,
            ``unknown_length``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


class FileError(UserError):
    """A file that cannot be read now, for example because its disk is not mounted. The clip may be good."""
