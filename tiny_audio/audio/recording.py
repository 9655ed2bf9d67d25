"""Decode recordings with libsndfile or FFmpeg. If a file is damaged, everything that can be decoded is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from tiny_audio.audio.errors import AudioError, warn_once
from tiny_audio.audio.ffmpeg import HINT, ffmpeg_blocks, has_ffmpeg
from tiny_audio.audio.load import audio_blocks

_OTHER_PROGRAM_MAY = ("undecodable", "truncated", "empty", "unknown_length", "channels", "sample_rate")
"""If :func:`audio_blocks` raises an :class:`AudioError` with one of these reasons, FFmpeg may still decode the file."""


def recording_blocks(
    path: Path, name: str, *, track: int | None = None, channel: int | None = None
) -> Iterator[Tensor]:
    """Yield a recording in blocks ``[samples]`` at 16 kHz. FFmpeg, if installed, decodes what libsndfile cannot.

    Damaged sections are replaced by silence, and a warning with their positions is logged.

    Args:
        name: the file's name in messages.
        track: the audio track, counted from 1. If None, the default track is used, or else the first.
        channel: the channel to use, counted from 1. If None, the channels are averaged. Where channels cancel each
            other, the strongest channel is used instead.

    Raises:
        AudioError: the recording cannot be used, for example because there is no such track or channel.
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
        if decoded or error.reason not in _OTHER_PROGRAM_MAY or path.stat().st_size == 0:
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
    if problem.reason == "truncated":
        warn_once(str(problem))
