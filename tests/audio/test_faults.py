"""Files of all formats whose bytes are overwritten, removed, cut off or appended, or whose header states a wrong size.

Loading may fail only with an AudioError. A loss of more than 0.2 s gives a warning. Decoded audio keeps its position.
"""

from __future__ import annotations

import logging
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.audio.encoded_clips import patched
from tests.audio.encoded_files import FORMATS, chunk, clip, ffmpeg, located, speech
from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.ffmpeg import has_ffmpeg
from tiny_audio.audio.load import audio_duration, load_audio
from tiny_audio.audio.recording import recording_blocks
from tiny_audio.frames import SAMPLE_RATE

SECONDS = 6.0
SECTION_STARTS_S = (0.3, 2.0, 3.5, 5.2)
CONTAINERS = {
    "aac.m4a": ("-c:a", "aac"),
    "aac.mkv": ("-c:a", "aac"),
    "opus.webm": ("-c:a", "libopus"),
    "pcm.mkv": ("-c:a", "pcm_s16le"),
    "wma.wma": ("-c:a", "wmav2"),
    "mp3.avi": ("-c:a", "libmp3lame"),
    "aac.ts": ("-c:a", "aac"),
}
Fault = Callable[[bytes], bytes]
_NUMBERS = count()


def _cut(share: float) -> Fault:
    return lambda data: data[: max(1, int(share * len(data)))]


def _overwritten(share: float, size: int, byte: int) -> Fault:
    return lambda data: patched(data, int(share * len(data)), bytes([byte]) * size)[: len(data)]


def _removed(share: float, size: int) -> Fault:
    return lambda data: data[: int(share * len(data))] + data[int(share * len(data)) + size :]


def _appended(tail: bytes) -> Fault:
    return lambda data: data + tail


def _stated(size: int) -> Fault:
    """Return a fault that writes ``size`` into the header of a WAV file. Other files do not change."""

    def fault(data: bytes) -> bytes:
        at = data.find(b"data", 0, 200)
        return patched(data, at + 4, struct.pack("<I", size)) if data[:4] == b"RIFF" and at > 0 else data

    return fault


_TAILS = (b"TAG" + bytes(125), chunk(b"LIST", 120), b"\0", bytes(7), b"ID3\4\0\0\0\0\1\0" + bytes(128))
_SHARES = st.floats(0.1, 0.95)
FAULTS = st.one_of(
    st.builds(_cut, _SHARES),
    st.builds(_overwritten, _SHARES, st.integers(1, 3_000), st.integers(0, 255)),
    st.builds(_removed, _SHARES, st.integers(1, 2_000)),
    st.builds(_appended, st.sampled_from(_TAILS)),
    st.builds(
        _stated, st.sampled_from([0, 1_000, 100_001, 0x7FFFF000, 0x80000000, 0xFFFFFFFF]) | st.integers(0, 250_000)
    ),
)


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Yield a list that collects the log messages about audio files."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("tiny_audio.audio"), Handler()
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def check_decoded(
    decoded: np.ndarray, messages: list[str], name: str, *, length: bool = True, positions: bool = True
) -> None:
    """Check that missing audio is reported, and that decoded audio keeps its position."""
    is_reported = any(name in message for message in messages)
    reference = speech(SECONDS)
    if length and len(decoded) / SAMPLE_RATE < SECONDS - 0.2:
        assert is_reported, f"only {len(decoded) / SAMPLE_RATE:.2f} s of {SECONDS} s were decoded, without a warning"
    for start_s in SECTION_STARTS_S if positions else ():
        late_s, alike = located(decoded, reference, start_s)
        if alike > 0.7:
            assert abs(late_s) <= 0.2, f"the section at {start_s} s is {late_s:.2f} s late"


def check_both_ways(kind: str, faults: list[Fault]) -> None:
    data = clip(kind, SECONDS)
    for fault in faults:
        data = fault(data)
    name = f"{kind} {next(_NUMBERS)}"
    removed_pcm = kind not in ("flac", "vorbis", "opus", "mp3") and len(data) < len(clip(kind, SECONDS))
    with _messages() as messages:
        with suppress(AudioError):
            strict = load_audio(data, max_duration_s=60, name=name).numpy()
            assert audio_duration(data, name=name) == pytest.approx(len(strict) / SAMPLE_RATE, abs=0.05)
        try:
            decoded = load_audio(data, max_duration_s=60, name=name, keep_damaged=True).numpy()
        except AudioError:
            return
    if not removed_pcm:  # PCM has no markers, so removed samples cannot be detected
        # MP3 frames have no positions. The length tag shows only how many frames are missing. With several faults, it
        # is unknown where they are missing.
        check_decoded(decoded, messages, name, positions=kind != "mp3" or len(faults) == 1)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(list(FORMATS)), faults=st.lists(FAULTS, min_size=1, max_size=2))
def test_faults(kind: str, faults: list[Fault]) -> None:
    check_both_ways(kind, faults)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(list(FORMATS)), faults=st.lists(FAULTS, min_size=1, max_size=4))
def test_many_faults(kind: str, faults: list[Fault]) -> None:
    check_both_ways(kind, faults)


@cache
def container(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "clip.wav").write_bytes(clip("wav", SECONDS))
        ffmpeg("-i", Path(folder) / "clip.wav", *CONTAINERS[name], Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def check_container(kind: str, faults: list[Fault]) -> None:
    data = container(kind)
    for fault in faults:
        data = fault(data)
    name = f"{next(_NUMBERS)} {kind}"
    with tempfile.TemporaryDirectory() as folder, _messages() as messages:
        path = Path(folder) / kind
        path.write_bytes(data)
        try:
            blocks = [block.numpy() for block in recording_blocks(path, name)]
        except AudioError:
            return
    # MPEG-TS states no length, so a missing end cannot be detected. AVI has no timestamps. If bytes are missing, all
    # later audio has an earlier position.
    decoded = np.concatenate(blocks)
    check_decoded(decoded, messages, name, length=kind != "aac.ts", positions=kind != "mp3.avi")


_CONTAINER_FAULTS = st.one_of(
    st.builds(_cut, _SHARES),
    st.builds(_overwritten, _SHARES, st.integers(1, 1_000), st.integers(0, 255)),
    st.builds(_appended, st.sampled_from(_TAILS)),
)


@pytest.mark.skipif(not has_ffmpeg(), reason="needs FFmpeg")
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(list(CONTAINERS)), faults=st.lists(_CONTAINER_FAULTS, min_size=1, max_size=1))
def test_faults_of_containers(kind: str, faults: list[Fault]) -> None:
    check_container(kind, faults)


@pytest.mark.slow
@pytest.mark.skipif(not has_ffmpeg(), reason="needs FFmpeg")
# Only generate examples. To shrink a failing example, Hypothesis would run FFmpeg a thousand times.
@settings(max_examples=300, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(list(CONTAINERS)), faults=st.lists(_CONTAINER_FAULTS, min_size=1, max_size=2))
def test_many_faults_of_containers(kind: str, faults: list[Fault]) -> None:
    check_container(kind, faults)
