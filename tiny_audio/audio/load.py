"""Decode, down-mix, resample: any audio file to a mono float32 waveform at 16 kHz, within bounds on hostile files."""

from __future__ import annotations

import errno
import io
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tiny_audio.audio._resampling import resampled, resampled_blocks
from tiny_audio.config import UserError

if TYPE_CHECKING:
    import soundfile

MIN_DURATION_S = 0.025
"""One analysis window of the usual front ends; less is no speech."""
MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_CHANNELS = 64
MAX_AMPLITUDE = 65_536.0
"""Some float files hold samples on the 16-bit scale; more than that overflows further on."""

SUFFIXES = (
    *(
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
        ".w64",
        ".rf64",
    ),
    *(".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr"),
)
"""Of files that people keep audio in; those of the second line cannot be decoded here, which is then said of each."""

_BLOCK_SAMPLES = 1 << 20
"""Samples over all channels that are decoded at a time: what a header promises is never allocated."""
_UNKNOWN_FRAMES = 1 << 60
"""libsndfile reports at least this for a stream whose header does not tell its length."""
_SHORT_DATA_CHUNK = re.compile(r"data : (\d+) \(should be (\d+)\)")
_MP3_HEAD_BYTES = 65_536
_MP3_TRAILER_BYTES = 1_024
"""Tags at the end."""
_READ_BYTES = 1 << 20
_AS_IF_CUT = ("undecodable", "truncated", "empty")
_OF_THE_NAME = (errno.ENAMETOOLONG, errno.ELOOP)
"""Errors that no disk that comes back mends."""
_STREAMED_SIZES = frozenset({0, 0x7FFFFFFF, 0xFFFFFFFF})


class AudioError(UserError):
    """A clip that cannot be used.

    Attributes:
        reason: a short code to count by: ``not_a_file``, ``unreadable``, ``undecodable``, ``truncated``, ``empty``,
            ``too_short``, ``too_long``, ``non_finite``, ``out_of_range``, ``sample_rate``, ``channels``,
            ``unknown_length``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


class FileError(UserError):
    """A file that cannot be read now, such as one on a disk that is away: which says nothing about the clip in it."""


def load_audio(source: Path | bytes, *, max_duration_s: float, name: str | None = None) -> torch.Tensor:
    """The clip as a float32 waveform ``[samples]``, mono, at 16 kHz.

    The channels are averaged, then the result is resampled. Sampling rates in an awkward ratio to 16 kHz (44,101 Hz)
    are resampled by a ratio that is less than 0.1 % off.

    Args:
        source: a file, or the bytes of one: WAV, FLAC, Ogg, MP3 and whatever else libsndfile reads.
        max_duration_s: a longer clip is refused, never cut.
        name: what messages call it; a file's own path without one.

    Raises:
        AudioError: the clip cannot be used, whatever is wrong with it.
        FileError: its file cannot be read.
    """
    name = _name(source, name)
    with _opened(source, name) as (file, stream):
        if file.frames > max_duration_s * file.samplerate:
            raise AudioError(
                "too_long",
                f"{name}: {file.frames / file.samplerate:.2f} s of audio; at most {max_duration_s:g} s is allowed, "
                "and a clip is never cut",
            )
        blocks = list(_mono_blocks(file, stream, name))
        return resampled(blocks[0] if len(blocks) == 1 else torch.cat(blocks), file.samplerate)


def audio_blocks(source: Path | bytes, *, name: str | None = None) -> Iterator[torch.Tensor]:
    """A clip of any length, decoded as it is needed: put together, the blocks ``[samples]`` are :func:`load_audio`'s.

    A block is some seconds to a minute long, and no more than a few of them are held.

    Raises:
        AudioError: as :func:`load_audio`, while the blocks are taken; damage is found where it is, after good blocks.
    """
    name = _name(source, name)
    with _opened(source, name) as (file, stream):
        yield from resampled_blocks(_mono_blocks(file, stream, name), file.samplerate)


def waveform_of(samples: torch.Tensor, rate: int, *, max_duration_s: float, name: str) -> torch.Tensor:
    """Samples that are decoded already, as :func:`load_audio` would give them.

    Args:
        samples: floating-point, ``[samples]`` or ``[channels, samples]``, between -1 and 1.
        rate: of the samples, in Hz.
        max_duration_s: longer audio is refused, never cut.
        name: what messages call it.

    Raises:
        AudioError: they cannot be used.
    """
    if not samples.is_floating_point():
        raise AudioError(
            "undecodable",
            f"{name}: samples of {str(samples.dtype).removeprefix('torch.')}; floating-point ones between -1 and 1 are "
            "needed, so divide 16-bit samples by 32768",
        )
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[0] <= MAX_CHANNELS):
        raise AudioError(
            "channels",
            f"{name}: samples of the shape {tuple(samples.shape)}; [samples], or [channels, samples] with at most "
            f"{MAX_CHANNELS} channels is needed (soundfile.read gives the transpose)",
        )
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError("sample_rate", f"{name}: {rate:,} samples a second; {MIN_RATE:,} to {MAX_RATE:,} are allowed")
    count = samples.shape[-1]
    if count > max_duration_s * rate:
        raise AudioError("too_long", f"{name}: {count / rate:.2f} s of audio; at most {max_duration_s:g} s is allowed")
    if count < MIN_DURATION_S * rate:
        raise AudioError(
            "too_short", f"{name}: {count:,} samples at {rate:,} Hz; at least {MIN_DURATION_S} s is needed"
        )
    # [channels, samples] -> [samples, channels]
    block = samples.detach().cpu().float().reshape(-1, count).T
    return resampled(_mean_of_channels(block, name), rate)


def audio_duration(source: Path | bytes, *, name: str | None = None) -> float:
    """Seconds of audio, by the header alone.

    Raises:
        AudioError: not an audio file that can be decoded, or its header does not tell.
        FileError: the file cannot be read.
    """
    name = _name(source, name)
    with _opened(source, name) as (file, _):
        return float(file.frames / file.samplerate)


def is_audio_name(name: str) -> bool:
    """Whether a file looks like audio, by its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _name(source: Path | bytes, name: str | None) -> str:
    if name is not None:
        return name
    return f"audio of {len(source):,} bytes" if isinstance(source, bytes) else str(source)


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[tuple[soundfile.SoundFile, io.BytesIO | int]]:
    """See :func:`_decoder`."""
    try:
        with _decoder(source, name) as opened:
            yield opened
    except AudioError as error:
        if not isinstance(source, bytes) and error.reason in _AS_IF_CUT:
            _check_readable(source)
        raise


def _check_readable(path: Path) -> None:
    """libsndfile takes an error of the disk for the end of the file.

    Raises:
        FileError: there is one.
    """
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                pass
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> FileError:
    if isinstance(error, FileNotFoundError):
        return FileError(f"{path}: no such file")
    return FileError(
        f"{path}: cannot be read: {error.strerror}; the clip may be good, so it is not left out: see to the disk, and "
        "to who may read the file"
    )


@contextmanager
def _decoder(source: Path | bytes, name: str) -> Iterator[tuple[soundfile.SoundFile, io.BytesIO | int]]:
    """The open file, its header checked, and what it reads from: a stream or a descriptor."""
    import soundfile

    # A descriptor, not a path: by a path, libsndfile would take "x.raw" for headerless audio.
    stream = io.BytesIO(source) if isinstance(source, bytes) else _descriptor(source, name)
    if _size(stream) == 0:
        if isinstance(stream, int):
            os.close(stream)
        raise AudioError("empty", f"{name}: a file of 0 bytes")
    try:
        file = _forward_file()(stream)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise AudioError("undecodable", f"{name}: not an audio file that can be decoded: {_words(error)}") from error
    with file:
        if not 1 <= file.channels <= MAX_CHANNELS:
            raise AudioError("channels", f"{name}: {file.channels} channels; 1 to {MAX_CHANNELS} are allowed")
        if not MIN_RATE <= file.samplerate <= MAX_RATE:
            raise AudioError(
                "sample_rate", f"{name}: {file.samplerate:,} samples a second; {MIN_RATE:,} to {MAX_RATE:,} are allowed"
            )
        # libsndfile quietly shortens a WAV to what is there; only its log tells.
        short = _SHORT_DATA_CHUNK.search(file.extra_info)
        if short and int(short[1]) not in _STREAMED_SIZES:
            raise _truncated(name, int(short[1]), int(short[2]), "bytes of audio")
        if file.frames >= _UNKNOWN_FRAMES:
            raise AudioError("unknown_length", f"{name}: its header does not tell its length; write the file anew")
        if file.frames == 0:
            raise AudioError("empty", f"{name}: holds no samples")
        yield file, stream


@cache
def _forward_file() -> type[soundfile.SoundFile]:
    """Reads from the beginning to the end, as we do. soundfile seeks to where it stands after each read, where it can,
    which takes a sixth of the time of a FLAC file.
    """
    import soundfile

    class ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # untyped
        def seekable(self) -> bool:
            return False

    return ForwardFile


def _descriptor(path: Path, name: str) -> int:
    try:
        # Opening a pipe for reading would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except IsADirectoryError as error:
        raise AudioError("not_a_file", f"{name}: a folder, not an audio file") from error
    except OSError as error:
        if error.errno not in _OF_THE_NAME:
            raise _unreadable(path, error) from error
        raise AudioError("unreadable", f"{name}: cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise AudioError("unreadable", f"{name}: cannot be opened: {error}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise AudioError("not_a_file", f"{name}: {what}, not an audio file")
    return descriptor


def _size(stream: io.BytesIO | int) -> int:
    return os.fstat(stream).st_size if isinstance(stream, int) else len(stream.getbuffer())


def _blocks(file: soundfile.SoundFile, name: str) -> Iterator[torch.Tensor]:
    """Decoded pieces ``[frames, channels]``, no more of them than the header promises."""
    import soundfile

    size, left = _BLOCK_SAMPLES // file.channels, file.frames
    # Asking for nothing more at the end would cost as much as a search through the file.
    while left > 0:
        try:
            block = file.read(min(size, left), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, ValueError, AssertionError) as error:
            raise AudioError(
                "undecodable", f"{name}: decoding failed, the file is damaged or cut off: {_words(error)}"
            ) from error
        if len(block) == 0:
            return
        left -= len(block)
        yield torch.from_numpy(block)


def _mono_blocks(file: soundfile.SoundFile, stream: io.BytesIO | int, name: str) -> Iterator[torch.Tensor]:
    """Channel means ``[frames]``; after the last, that no more and no less was there than the header promises."""
    frames = 0
    for block in _blocks(file, name):
        frames += len(block)
        yield _mean_of_channels(block, name)
    if file.format == "MP3":
        _check_mp3(stream, frames, file.frames, name)
    elif frames < file.frames:
        raise _truncated(name, file.frames, frames, "samples")
    if frames < MIN_DURATION_S * file.samplerate:
        raise AudioError(
            "too_short", f"{name}: {frames:,} samples at {file.samplerate:,} Hz; at least {MIN_DURATION_S} s is needed"
        )


def _mean_of_channels(block: torch.Tensor, name: str) -> torch.Tensor:
    # Checked before anything is computed: one such sample poisons the mean and the resampling filter.
    low, high = (float(bound) for bound in torch.aminmax(block))  # NaN where there is one
    if not math.isfinite(high - low):
        raise AudioError("non_finite", f"{name}: holds NaN or infinite samples")
    if max(high, -low) > MAX_AMPLITUDE:
        raise AudioError("out_of_range", f"{name}: holds samples above {MAX_AMPLITUDE:,.0f} times full scale")
    return block[:, 0] if block.shape[1] == 1 else block.mean(dim=1)  # [frames, channels] -> [frames]


def length_is_guessed(path: Path) -> bool:
    """Whether a file is an MP3 without a tag that says how long it is; its decoder may then leave out the end."""
    with path.open("rb") as file:
        head = file.read(_MP3_HEAD_BYTES)
    is_mp3 = head.startswith(b"ID3") or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
    return is_mp3 and not any(tag in head for tag in (b"Xing", b"Info", b"VBRI"))


def _check_mp3(stream: io.BytesIO | int, frames: int, expected: int, name: str) -> None:
    """An MP3 without a length tag has a guessed length: too high a guess is harmless, too low a one cuts the clip."""
    position = os.lseek(stream, 0, os.SEEK_CUR) if isinstance(stream, int) else stream.tell()
    unread = _size(stream) - position
    if unread > max(_MP3_TRAILER_BYTES, _size(stream) // 20):
        raise AudioError(
            "unknown_length",
            f"{name}: an MP3 of variable bit rate without a length tag, of which {unread:,} bytes would be left out; "
            "convert it to FLAC",
        )
    if frames < expected:
        if isinstance(stream, int):
            os.lseek(stream, 0, os.SEEK_SET)
            head = os.read(stream, _MP3_HEAD_BYTES)
        else:
            head = stream.getvalue()[:_MP3_HEAD_BYTES]
        if b"Xing" in head or b"Info" in head:
            raise _truncated(name, expected, frames, "samples")


def _truncated(name: str, promised: int, found: int, what: str) -> AudioError:
    return AudioError("truncated", f"{name}: cut off: the header promises {promised:,} {what}, {found:,} are there")


def _words(error: Exception) -> str:
    # libsndfile's own words; str() of it puts the address of our stream before them.
    return str(getattr(error, "error_string", error)).strip()
