"""Decode, down-mix and resample audio files to mono float32 waveforms at 16 kHz, with limits for hostile files."""

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
from tiny_audio.audio.errors import AudioError, FileError

if TYPE_CHECKING:
    import soundfile

MIN_DURATION_S = 0.025
"""The length of one analysis window of the usual front ends. Shorter clips cannot contain speech."""
MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_CHANNELS = 64
MAX_AMPLITUDE = 65_536.0
"""Some float files have samples on the 16-bit scale. Larger values would overflow later."""

_BLOCK_SAMPLES = 1 << 20
"""Number of samples decoded at a time, over all channels. Memory does not depend on the length in the header."""
_UNKNOWN_FRAMES = 1 << 60
"""libsndfile reports at least this number of frames if the header does not state the length."""
_SHORT_DATA_CHUNK = re.compile(r"data : (\d+) \(should be (\d+)\)")
_MP3_HEAD_BYTES = 65_536
_MP3_TRAILER_BYTES = 1_024
"""Maximum size of the tags at the end of a file."""
_READ_BYTES = 1 << 20
_DISK_REASONS = ("undecodable", "truncated", "empty")
"""Reasons of an :class:`AudioError` that may be caused by a failing disk."""
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP)
"""Errors that are caused by the path itself, so retrying does not help."""
_STREAMED_SIZES = frozenset({0, 0x7FFFFFFF, 0xFFFFFFFF})


def load_audio(source: Path | bytes, *, max_duration_s: float, name: str | None = None) -> torch.Tensor:
    """Load a clip as a mono float32 waveform ``[samples]`` at 16 kHz.

    The channels are averaged, then the result is resampled. For sampling rates without a simple ratio to 16 kHz, such
    as 44,101 Hz, the ratio is rounded by less than 0.1 %.

    Args:
        source: a file, or the bytes of one, in a format that libsndfile reads: WAV, FLAC, Ogg, MP3 and others.
        max_duration_s: a longer clip is rejected, never cut.
        name: the clip's name in messages. None uses the file's path.

    Raises:
        AudioError: the clip cannot be used.
        FileError: the file cannot be read.
    """
    name = _name(source, name)
    with _opened(source, name) as (file, stream):
        if file.frames > max_duration_s * file.samplerate:
            raise AudioError(
                "too_long",
                f"{name}: {file.frames / file.samplerate:.2f} s of audio; at most {max_duration_s:g} s is allowed",
            )
        blocks = list(_mono_blocks(file, stream, name))
        return resampled(blocks[0] if len(blocks) == 1 else torch.cat(blocks), file.samplerate)


def audio_blocks(source: Path | bytes, *, name: str | None = None) -> Iterator[torch.Tensor]:
    """Decode a clip of any length in blocks ``[samples]``. Together they equal the result of :func:`load_audio`.

    A block lasts between some seconds and a minute. Only a few blocks are held in memory.

    Raises:
        AudioError: the clip cannot be used. Good blocks come first; damage is found only when decoding reaches it.
        FileError: the file cannot be read.
    """
    name = _name(source, name)
    with _opened(source, name) as (file, stream):
        yield from resampled_blocks(_mono_blocks(file, stream, name), file.samplerate)


def waveform_of(samples: torch.Tensor, rate: int, *, max_duration_s: float, name: str) -> torch.Tensor:
    """Down-mix and resample decoded samples. The result equals that of :func:`load_audio`.

    Args:
        samples: floating-point, ``[samples]`` or ``[channels, samples]``, between -1 and 1.
        rate: sampling rate in Hz.
        max_duration_s: longer audio is rejected, never cut.
        name: the name in messages.

    Raises:
        AudioError: the samples cannot be used.
    """
    if not samples.is_floating_point():
        raise AudioError(
            "undecodable",
            f"{name}: the samples are {str(samples.dtype).removeprefix('torch.')}; floating-point samples between -1 "
            "and 1 are required, so divide 16-bit samples by 32768",
        )
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[0] <= MAX_CHANNELS):
        raise AudioError(
            "channels",
            f"{name}: the samples have the shape {tuple(samples.shape)}; [samples], or [channels, samples] with at "
            f"most {MAX_CHANNELS} channels, is required (soundfile.read returns the transpose)",
        )
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError("sample_rate", f"{name}: a rate of {rate:,} Hz; {MIN_RATE:,} to {MAX_RATE:,} Hz are allowed")
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
    """Duration in seconds, from the header alone.

    Raises:
        AudioError: the file cannot be decoded, or its header does not contain the length.
        FileError: the file cannot be read.
    """
    name = _name(source, name)
    with _opened(source, name) as (file, _):
        return float(file.frames / file.samplerate)


def _name(source: Path | bytes, name: str | None) -> str:
    if name is not None:
        return name
    return f"audio of {len(source):,} bytes" if isinstance(source, bytes) else str(source)


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[tuple[soundfile.SoundFile, io.BytesIO | int]]:
    """Like :func:`_decoder`, but raise disk errors. libsndfile treats them as the end of the file."""
    try:
        with _decoder(source, name) as opened:
            yield opened
    except AudioError as error:
        if not isinstance(source, bytes) and error.reason in _DISK_REASONS:
            _check_readable(source)
        raise


def _check_readable(path: Path) -> None:
    """Read a whole file to find disk errors.

    Raises:
        FileError: the disk reports an error.
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
        f"{path}: cannot be read: {error.strerror}; the clip may be good, so it is not skipped; check the disk and the "
        "file's permissions"
    )


@contextmanager
def _decoder(source: Path | bytes, name: str) -> Iterator[tuple[soundfile.SoundFile, io.BytesIO | int]]:
    """Open a file and check its header. Also yield the stream or descriptor that the decoder reads from."""
    import soundfile

    # Open a descriptor, because libsndfile would treat the path "x.raw" as headerless audio.
    stream = io.BytesIO(source) if isinstance(source, bytes) else _descriptor(source, name)
    if _size(stream) == 0:
        if isinstance(stream, int):
            os.close(stream)
        raise AudioError("empty", f"{name}: a file of 0 bytes")
    try:
        file = _forward_file()(stream)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise AudioError("undecodable", f"{name}: not an audio file that can be decoded: {_message(error)}") from error
    with file:
        if not 1 <= file.channels <= MAX_CHANNELS:
            raise AudioError("channels", f"{name}: {file.channels} channels; 1 to {MAX_CHANNELS} are allowed")
        if not MIN_RATE <= file.samplerate <= MAX_RATE:
            raise AudioError(
                "sample_rate", f"{name}: a rate of {file.samplerate:,} Hz; {MIN_RATE:,} to {MAX_RATE:,} Hz are allowed"
            )
        # libsndfile silently shortens a WAV file that was cut off. Only its log reports that.
        short = _SHORT_DATA_CHUNK.search(file.extra_info)
        if short and int(short[1]) not in _STREAMED_SIZES:
            raise _truncated(name, int(short[1]), int(short[2]), "bytes of audio")
        if file.frames >= _UNKNOWN_FRAMES:
            raise AudioError("unknown_length", f"{name}: the header does not state the length; write the file again")
        if file.frames == 0:
            raise AudioError("empty", f"{name}: holds no samples")
        yield file, stream


@cache
def _forward_file() -> type[soundfile.SoundFile]:
    """A SoundFile that never seeks. soundfile seeks to the current position after each read, which takes a sixth of the
    decoding time of a FLAC file."""
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
        if error.errno not in _NAME_ERRORS:
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
    """Decoded blocks ``[frames, channels]``, never with more frames than the header states."""
    import soundfile

    size, left = _BLOCK_SAMPLES // file.channels, file.frames
    # Reading at the end of the file would be as slow as searching the whole file.
    while left > 0:
        try:
            block = file.read(min(size, left), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, ValueError, AssertionError) as error:
            raise AudioError(
                "undecodable", f"{name}: decoding failed, the file is damaged or cut off: {_message(error)}"
            ) from error
        if len(block) == 0:
            return
        left -= len(block)
        yield torch.from_numpy(block)


def _mono_blocks(file: soundfile.SoundFile, stream: io.BytesIO | int, name: str) -> Iterator[torch.Tensor]:
    """Channel means ``[frames]``. After the last block, check that the length agrees with the header."""
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
    # Check first, because one bad sample spreads through the mean and the resampling filter.
    low, high = (float(bound) for bound in torch.aminmax(block))  # NaN if a sample is NaN
    if not math.isfinite(high - low):
        raise AudioError("non_finite", f"{name}: holds NaN or infinite samples")
    if max(high, -low) > MAX_AMPLITUDE:
        raise AudioError("out_of_range", f"{name}: holds samples above {MAX_AMPLITUDE:,.0f} times full scale")
    return block[:, 0] if block.shape[1] == 1 else block.mean(dim=1)  # [frames, channels] -> [frames]


def length_is_guessed(path: Path) -> bool:
    """Whether a file is an MP3 without a length tag. The decoder then guesses the length and may omit the end."""
    with path.open("rb") as file:
        head = file.read(_MP3_HEAD_BYTES)
    is_mp3 = head.startswith(b"ID3") or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
    return is_mp3 and not any(tag in head for tag in (b"Xing", b"Info", b"VBRI"))


def _check_mp3(stream: io.BytesIO | int, frames: int, expected: int, name: str) -> None:
    """Check that an MP3 was decoded to its end. If there is no length tag, an overestimated length is harmless."""
    position = os.lseek(stream, 0, os.SEEK_CUR) if isinstance(stream, int) else stream.tell()
    unread = _size(stream) - position
    if unread > max(_MP3_TRAILER_BYTES, _size(stream) // 20):
        raise AudioError(
            "unknown_length",
            f"{name}: an MP3 of variable bit rate without a length tag; {unread:,} bytes would be left out; convert it "
            "to FLAC",
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
    return AudioError("truncated", f"{name}: cut off: the header says {promised:,} {what}, but there are {found:,}")


def _message(error: Exception) -> str:
    # str() of a libsndfile error begins with the stream's address.
    return str(getattr(error, "error_string", error)).strip()
