"""Decode recordings with libsndfile. A file that is damaged or has a wrong header is decoded in parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from tiny_audio.audio._flac import halves
from tiny_audio.audio._layouts import layout_of
from tiny_audio.audio._other_content import HEAD_BYTES, other_content
from tiny_audio.audio._parts import MAX_SILENCE_S, Data, Layout, Part, Spliced
from tiny_audio.audio.channels import MAX_AMPLITUDE, MAX_CHANNELS, DownMix
from tiny_audio.audio.errors import DAMAGED, AudioError, warn_of_gaps, warn_once
from tiny_audio.audio.formats import FFMPEG
from tiny_audio.frames import SAMPLE_RATE

if TYPE_CHECKING:
    import soundfile

MIN_RATE, MAX_RATE = 1_000, 768_000
_BLOCK_SAMPLES = 1 << 20
"""Number of samples decoded at a time, over all channels. Memory use thus does not depend on the length of the file."""
_UNKNOWN_FRAMES = 1 << 60
"""libsndfile reports at least this number of frames if the header does not state the length."""
_DAMAGE = ("undecodable", "truncated", "empty")
"""Reasons of an :class:`AudioError` after which the rest of a recording may still be decodable."""
_MP3_TRAILER_BYTES = 1_024
"""If more than ``max(_MP3_TRAILER_BYTES, file size / 20)`` bytes of an MP3 follow the last decoded frame, the length in
the header is wrong."""
_TOLERANCE_S = 0.05
"""Shorter gaps are not reported. Two gaps are reported as one if the sound between them is shorter than this."""


class Block(NamedTuple):
    """Decoded samples."""

    rate: int
    samples: torch.Tensor
    """``[frames]``, one channel."""


class Decoder:
    """Decodes one recording.

    Args:
        name: the name of the recording in messages.
        channel: see :class:`tiny_audio.audio.channels.DownMix`.
        max_duration_s: longer recordings are rejected. If None, there is no limit.
        keep_damaged: replace damaged sections by silence and log a warning with their positions. If False, damaged
            recordings are rejected.

    Raises:
        AudioError: the recording cannot be used.
    """

    def __init__(
        self, data: Data, name: str, channel: int | None, max_duration_s: float | None, keep_damaged: bool
    ) -> None:
        self._data, self._name, self._max_duration_s, self._keep = data, name, max_duration_s, keep_damaged
        self._mix = DownMix(name, channel)
        self._layout = layout_of(data, careful=keep_damaged)
        data.rewind()
        if self._layout is not None and not keep_damaged:
            if self._layout.damage is not None:
                raise AudioError("undecodable", f"{name}: {self._layout.damage}")
            if self._layout.cut_off is not None:
                raise AudioError("truncated", f"{name}: {self._layout.cut_off}")
        self._now_s = 0.0
        self._gaps: list[tuple[float, float]] = []
        self._silent_s = 0.0
        self._failed: AudioError | None = None

    @property
    def header_duration_s(self) -> float:
        """Duration in seconds according to the headers, without decoding."""
        if self._layout is None:
            with self._opened(None) as file:
                return float(file.frames / file.samplerate)
        seconds = 0.0
        for part in self._layout.parts:
            with self._opened(part) as file:
                seconds += file.frames / file.samplerate
        self._warn()
        return seconds

    def blocks(self) -> Iterator[Block]:
        """Yield the recording in blocks of at most 2^20 samples."""
        if self._layout is None:
            yield from self._whole()
        else:
            yield from self._parts(self._layout)
        self._warn()

    def _whole(self) -> Iterator[Block]:
        with self._opened(None) as file:
            yield from self._file(file)
            unread = self._data.unread
            if file.format == "MP3" and unread > max(_MP3_TRAILER_BYTES, self._data.size // 20):
                raise AudioError(
                    "unknown_length",
                    f"{self._name}: the length in the header of this MP3 is wrong; {unread:,} bytes would be left out; "
                    "convert it to FLAC",
                )

    def _parts(self, layout: Layout) -> Iterator[Block]:
        found = False
        for part in layout.parts:
            try:
                for block in self._divisible(part) if part.frames else self._part(part):
                    found = True
                    yield block
            except AudioError as error:
                if not self._keep or error.reason not in _DAMAGE:
                    raise
                self._failed = self._failed or error
        if not found:
            if layout.cut_off is None and self._failed is not None:
                raise self._failed
            raise AudioError("truncated", f"{self._name}: {layout.cut_off or layout.damage}")
        end_s = layout.parts[-1].end_s
        if end_s is not None and end_s - self._now_s > _TOLERANCE_S:
            yield from self._silence(SAMPLE_RATE, end_s)

    def _part(self, part: Part) -> Iterator[Block]:
        with self._opened(part) as file:
            rate = file.samplerate
            start_s = self._now_s + part.gap_s if part.end_s is None else part.end_s - file.frames / rate
            yield from self._silence(rate, start_s)
            yield from self._file(file)

    def _file(self, file: soundfile.SoundFile) -> Iterator[Block]:
        """Yield the blocks of an open file. With ``keep_damaged``, silence replaces samples that cannot be decoded."""
        rate, done = file.samplerate, 0
        blocks = _read(file, self._name)
        while True:
            try:
                block = next(blocks, None)
            except AudioError:
                if not self._keep or done == 0:
                    raise
                block = None
            if block is None:
                break
            done += len(block)
            yield self._mixed(rate, block)
        if done < file.frames:
            if not self._keep:
                raise self._shorter(file.frames, done)
            yield from self._silence(rate, self._now_s + (file.frames - done) / rate)

    def _divisible(self, part: Part) -> Iterator[Block]:
        """Yield the blocks of a part whose frames can be decoded independently.

        With ``keep_damaged``, a damaged part is halved again and again, so that only damaged frames are lost.
        """
        assert part.start_s is not None
        samples = sum(frame.samples for frame in part.frames)
        try:
            with self._opened(part) as file:
                rate = file.samplerate
                blocks = list(_read(file, self._name))
                if sum(map(len, blocks)) < samples:
                    raise self._shorter(samples, sum(map(len, blocks)))
        except AudioError as error:
            if not self._keep or error.reason not in _DAMAGE:
                raise
            self._failed = self._failed or error
            if len(part.frames) > 1:
                for half in halves(part):
                    yield from self._divisible(half)
            return
        yield from self._silence(rate, part.start_s)
        for block in blocks:
            yield self._mixed(rate, block)

    def _mixed(self, rate: int, block: torch.Tensor) -> Block:
        if self._keep:
            block = self._without_bad_samples(rate, block)
        mixed = self._mix(block)
        self._now_s += len(mixed) / rate
        return Block(rate, mixed)

    def _without_bad_samples(self, rate: int, block: torch.Tensor) -> torch.Tensor:
        """Replace samples that are NaN, infinite or out of range by silence.

        If most of the block is bad, return it unchanged. The down-mix then raises an error.
        """
        bad = (~(block.abs() <= MAX_AMPLITUDE)).any(dim=1)
        count = int(bad.sum())
        if count == 0 or 2 * count > len(bad):
            return block
        positions = bad.nonzero()[:, 0]
        breaks = (positions.diff() > _TOLERANCE_S * rate).nonzero()[:, 0] + 1
        for run in positions.tensor_split(breaks):
            self._gaps.append((self._now_s + int(run[0]) / rate, self._now_s + (int(run[-1]) + 1) / rate))
        return block.masked_fill(bad[:, None], 0.0)

    def _silence(self, rate: int, end_s: float) -> Iterator[Block]:
        """Yield silence from the current position to ``end_s``."""
        frames = round(min(end_s - self._now_s, MAX_SILENCE_S - self._silent_s) * rate)
        if frames <= 1:
            return
        self._silent_s += frames / rate
        if frames > _TOLERANCE_S * rate:
            self._gaps.append((self._now_s, self._now_s + frames / rate))
        while frames > 0:
            count = min(frames, _BLOCK_SAMPLES)
            self._now_s += count / rate
            frames -= count
            yield Block(rate, torch.zeros(count))

    @contextmanager
    def _opened(self, part: Part | None) -> Iterator[soundfile.SoundFile]:
        """Open a part, or the whole file, and check the header."""
        import soundfile

        name = self._name
        if part is None:
            self._data.rewind()
        try:
            file = _forward_file()(
                self._data.stream if part is None else Spliced(self._data, part.pieces), closefd=False
            )
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            if other := other_content(self._data.read(0, HEAD_BYTES)):
                raise AudioError("not_audio", f"{name}: {other}") from error
            suffix = os.path.splitext(name)[1].lower()
            if suffix in FFMPEG and not self._keep:  # with keep_damaged, callers try FFmpeg next
                raise AudioError(
                    "undecodable",
                    f"{name}: training and evaluation cannot read {suffix} files; convert them to FLAC, such as with: "
                    f"ffmpeg -i clip{suffix} clip.flac",
                ) from error
            raise AudioError(
                "undecodable", f"{name}: not an audio file that can be decoded: {_message(error)}"
            ) from error
        with file:
            rate, frames = file.samplerate, file.frames
            if not 1 <= file.channels <= MAX_CHANNELS:
                raise AudioError("channels", f"{name}: {file.channels} channels; 1 to {MAX_CHANNELS} are allowed")
            if not MIN_RATE <= rate <= MAX_RATE:
                raise AudioError(
                    "sample_rate",
                    f"{name}: the sampling rate is {rate:,} Hz; {MIN_RATE:,} to {MAX_RATE:,} Hz are allowed",
                )
            if frames >= _UNKNOWN_FRAMES:
                raise AudioError(
                    "unknown_length", f"{name}: the header does not state the length; convert the file to FLAC"
                )
            if frames == 0:
                raise AudioError("empty", f"{name}: contains no samples that can be decoded")
            seconds = self._now_s + frames / rate
            if self._max_duration_s is not None and seconds > self._max_duration_s:
                raise AudioError(
                    "too_long", f"{name}: {seconds:.2f} s of audio; at most {self._max_duration_s:g} s is allowed"
                )
            yield file

    def _shorter(self, stated: int, found: int) -> AudioError:
        return AudioError(
            "truncated",
            f"{self._name}: damaged or cut off: the header says {stated:,} samples, but there are {found:,}",
        )

    def _warn(self) -> None:
        if self._layout is not None:
            for message in (self._layout.note, self._layout.cut_off):
                if message is not None:
                    warn_once(f"{self._name}: {message}")
        gaps = _joined(self._gaps)
        if gaps:
            warn_of_gaps(self._name, gaps, DAMAGED)
        elif self._failed is not None:
            warn_once(
                f"{self._name}: a part of it cannot be decoded: {str(self._failed).removeprefix(f'{self._name}: ')}"
            )


def _joined(gaps: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the gaps in order of time, with adjacent gaps joined."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(gaps):
        if joined and start - joined[-1][1] < _TOLERANCE_S:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


@cache
def _forward_file() -> type[soundfile.SoundFile]:
    """Return a subclass of SoundFile that never seeks.

    soundfile seeks to the current position after each read, which takes a sixth of a FLAC file's decoding time.
    """
    import soundfile

    class ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # untyped
        def seekable(self) -> bool:
            return False

    return ForwardFile


def _read(file: soundfile.SoundFile, name: str) -> Iterator[torch.Tensor]:
    """Yield decoded blocks ``[frames, channels]``."""
    import soundfile

    size, left = _BLOCK_SAMPLES // file.channels, file.frames
    # Never read after the last frame: such a read returns nothing, but takes as long as a search of the whole file.
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


def _message(error: Exception) -> str:
    # str() of a libsndfile error begins with the memory address of the stream.
    return str(getattr(error, "error_string", error)).strip()
