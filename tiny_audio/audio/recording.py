"""Decoding of recordings to transcribe: with libsndfile, or with FFmpeg, as much as can be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.ffmpeg import HINT, ffmpeg_blocks, has_ffmpeg
from tiny_audio.audio.load import audio_blocks

_OTHER_PROGRAM_MAY = ("undecodable", "truncated", "empty", "unknown_length", "channels", "sample_rate")
"""Reasons of an :class:`AudioError` for which FFmpeg may still be able to decode the file."""


def recording_blocks(
    path: Path, name: str, *, track: int | None = None, channel: int | None = None
) -> Iterator[Tensor]:
    """Decode a recording in blocks ``[samples]`` at 16 kHz, with FFmpeg if libsndfile cannot and FFmpeg is installed.

    What is damaged is replaced by silence, and a warning tells where it is.

    Args:
        path: the file.
        name: its name in messages.
        track: the audio track, from 1. None uses the default track, or else the first.
        channel: the channel, from 1. None averages the channels, or uses the stronger one if they cancel.

    Raises:
        AudioError: nothing can be decoded, or there is no such track or channel.
        FileError: the file cannot be read.
    """
    decoded = False
    try:
        if track in (None, 1):
            for block in audio_blocks(path, name=name, channel=channel, keep_damaged=True):
                decoded = True
                yield block
            return
        problem = AudioError("no_such_track", f"{name}: libsndfile reads only track 1")
    except AudioError as error:
        if decoded or error.reason not in _OTHER_PROGRAM_MAY:
            raise
        problem = error
    if not has_ffmpeg():
        raise AudioError(problem.reason, f"{problem}; {HINT}") from problem
    try:
        yield from ffmpeg_blocks(path, name, track=track, channel=channel)
    except AudioError as other:
        if other.reason != "undecodable" or problem.reason == "no_such_track":
            raise
        raise AudioError(problem.reason, f"{problem}; {str(other).removeprefix(f'{name}: ')}") from other
