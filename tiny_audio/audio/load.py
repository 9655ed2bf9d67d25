"""Decode, down-mix and resample audio files to mono float32 waveforms at 16 kHz, with limits for hostile files."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import torch

from tiny_audio.audio._decode import MAX_RATE, MIN_RATE, Block, Decoder
from tiny_audio.audio._files import opened
from tiny_audio.audio._resampling import resampled, resampled_blocks
from tiny_audio.audio.channels import MAX_CHANNELS, DownMix
from tiny_audio.audio.errors import AudioError

MIN_DURATION_S = 0.025
"""Shorter clips are rejected. The usual window for computing mel features has this duration."""


def load_audio(
    source: Path | bytes,
    *,
    max_duration_s: float,
    name: str | None = None,
    channel: int | None = None,
    keep_damaged: bool = False,
) -> torch.Tensor:
    """Load a clip as a mono float32 waveform ``[samples]`` at 16 kHz.

    For sampling rates without a simple ratio to 16 kHz, such as 44,101 Hz, the ratio is rounded by less than 0.1 %. If
    the file contains more audio than its header states, all audio is used and a warning is logged.

    Args:
        source: a file, or the bytes of a file, in a format that libsndfile reads: WAV, FLAC, Ogg, MP3 and others.
        max_duration_s: a longer clip is rejected, never cut.
        name: the clip's name in messages. If None, the file's path is used, or the number of bytes if ``source``
            is bytes.
        channel: the channel to use, counted from 1. If None, the channels are averaged. Where channels cancel each
            other, the strongest channel is used instead.
        keep_damaged: replace damaged sections by silence and log a warning with their positions. If False, clips that
            are damaged or cut off are rejected.

    Raises:
        AudioError: the clip cannot be used.
        FileError: the file cannot be read.
    """
    name = _name(source, name)
    with opened(source, name) as data:
        blocks = list(_checked(Decoder(data, name, channel, max_duration_s, keep_damaged), name))
    if len(blocks) == 1:
        return resampled(blocks[0].samples, blocks[0].rate)
    groups = [(rate, [block.samples for block in group]) for rate, group in groupby(blocks, attrgetter("rate"))]
    return torch.cat([resampled(torch.cat(group), rate) for rate, group in groups])


def audio_blocks(
    source: Path | bytes, *, name: str | None = None, channel: int | None = None, keep_damaged: bool = False
) -> Iterator[torch.Tensor]:
    """Decode a clip of any length in blocks ``[samples]``. The joined blocks equal the result of :func:`load_audio`.

    Only a few blocks are held in memory.

    Args:
        source, name, channel, keep_damaged: see :func:`load_audio`.

    Raises:
        AudioError: the clip cannot be used. Damage may be found only after good blocks have been yielded.
        FileError: the file cannot be read.
    """
    name = _name(source, name)
    with opened(source, name) as data:
        blocks = _checked(Decoder(data, name, channel, None, keep_damaged), name)
        for rate, group in groupby(blocks, attrgetter("rate")):
            yield from resampled_blocks((block.samples for block in group), rate)


def audio_duration(source: Path | bytes, *, name: str | None = None) -> float:
    """Return the duration in seconds, according to the headers.

    Raises:
        AudioError: the clip cannot be used, or its header does not contain the length.
        FileError: the file cannot be read.
    """
    name = _name(source, name)
    with opened(source, name) as data:
        return Decoder(data, name, None, None, keep_damaged=False).header_duration_s


def waveform_of(samples: torch.Tensor, rate: int, *, max_duration_s: float, name: str) -> torch.Tensor:
    """Down-mix and resample decoded samples, as :func:`load_audio` does.

    For at most 2^20 samples over all channels (one block), the result equals that of :func:`load_audio`.

    Args:
        samples: floating-point, ``[samples]`` or ``[channels, samples]``, between -1 and 1.
        rate: sampling rate in Hz.
        max_duration_s: longer audio is rejected, never cut.
        name: the audio's name in messages.

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
        raise AudioError(
            "sample_rate", f"{name}: the sampling rate is {rate:,} Hz; {MIN_RATE:,} to {MAX_RATE:,} Hz are allowed"
        )
    count = samples.shape[-1]
    if count > max_duration_s * rate:
        raise AudioError("too_long", f"{name}: {count / rate:.2f} s of audio; at most {max_duration_s:g} s is allowed")
    if count < MIN_DURATION_S * rate:
        raise AudioError(
            "too_short", f"{name}: {count:,} samples at {rate:,} Hz; at least {MIN_DURATION_S} s is needed"
        )
    # [samples, channels]
    block = samples.detach().cpu().float().reshape(-1, count).T
    return resampled(DownMix(name)(block), rate)


def _name(source: Path | bytes, name: str | None) -> str:
    if name is not None:
        return name
    return f"audio of {len(source):,} bytes" if isinstance(source, bytes) else str(source)


def _checked(decoder: Decoder, name: str) -> Iterator[Block]:
    """Yield the blocks. After the last block, raise an error if all blocks together are too short."""
    frames, seconds, rate = 0, 0.0, 1
    for block in decoder.blocks():
        frames, seconds, rate = frames + len(block.samples), seconds + len(block.samples) / block.rate, block.rate
        yield block
    if seconds < MIN_DURATION_S:
        raise AudioError(
            "too_short", f"{name}: {frames:,} samples at {rate:,} Hz; at least {MIN_DURATION_S} s is needed"
        )
