"""How long recordings are cut into chunks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from tests.support.paths import SHARED
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.activity import FRAME, Frames, Loudness
from tiny_audio.inference.chunking import ChunkDurations, chunk_recording, split_at_pauses
from tiny_audio.inference.voice_activity import MARGIN_S

LONGEST_S = 10.0
DURATIONS = ChunkDurations.up_to(LONGEST_S)


def recording(bursts: list[tuple[float, float]], *, floor: float = 0.0, gain: float = 1.0) -> Tensor:
    """Return bursts of noise and a final pause of 1 s. ``bursts`` has the pause before each burst and its duration."""
    rng = np.random.default_rng(0)
    parts = []
    for pause, duration in bursts:
        parts += [np.zeros(round(pause * SAMPLE_RATE)), 0.1 * rng.standard_normal(round(duration * SAMPLE_RATE))]
    whole = np.concatenate([*parts, np.zeros(SAMPLE_RATE)])
    return torch.from_numpy(gain * (whole + floor * rng.standard_normal(len(whole)))).float()


def spans(waveform: Tensor, block: int | None = None) -> list[tuple[float, float]]:
    """Return the start and end of each chunk in seconds.

    Loudness finds the pauses, because silero-vad would classify the bursts of noise as pauses.
    """
    chunks = list(split_at_pauses(waveform.split(block or max(1, len(waveform))), DURATIONS, Loudness()))
    for chunk, following in itertools.pairwise([*chunks, None]):
        assert torch.equal(chunk.waveform, waveform[chunk.start : chunk.start + len(chunk.waveform)])
        end = chunk.start + len(chunk.waveform)
        assert chunk.overlap == (max(0, end - following.start) if following else 0)
    return [(chunk.start / SAMPLE_RATE, (chunk.start + len(chunk.waveform)) / SAMPLE_RATE) for chunk in chunks]


@pytest.mark.parametrize(("floor", "gain"), [(0.0, 1.0), (0.001, 1.0), (0.0, 0.01), (0.001, 0.01)])
def test_chunks_contain_the_sounds_with_margins(floor: float, gain: float) -> None:
    bursts = [(1.0, 2.0), (0.6, 0.3), (2.0, 5.0), (0.8, 1.0)]
    found = spans(recording(bursts, floor=floor, gain=gain))
    begins = [1.0, 3.6, 5.9, 11.7]
    assert len(found) == len(bursts)
    for (start, end), begin, (_, duration) in zip(found, begins, bursts, strict=True):
        # Levels are means over 50 ms, so they rise before the sound starts and fall after it ends.
        assert begin - MARGIN_S - 0.04 <= start <= begin - MARGIN_S + 0.01
        assert begin + duration + MARGIN_S - 0.01 <= end <= begin + duration + MARGIN_S + 0.04


def test_short_pauses_are_not_cuts_and_clicks_are_not_speech() -> None:
    ((start, end),) = spans(recording([(1.0, 1.0), (0.3, 1.0)]))
    assert (start, end) == pytest.approx((1.0 - MARGIN_S, 3.3 + MARGIN_S), abs=0.04)
    clicked = recording([(1.0, 1.0), (3.0, 0.0)])
    clicked[4 * SAMPLE_RATE] = 0.5
    assert len(spans(clicked)) == 1 or spans(clicked)[1][1] - spans(clicked)[1][0] < 2 * MARGIN_S + 0.1


class KnownActivity:
    """A voice activity detector for which exactly the given frames of 10 ms are speech."""

    def __init__(self, num_frames: int, speech: range) -> None:
        self._frames = [(-20.0, 0.9) if index in speech else (-80.0, 0.0) for index in range(num_frames)]

    def add(self, block: Tensor) -> Frames:
        return []

    def end(self) -> Frames:
        return self._frames


@pytest.mark.parametrize(("num_frames", "num_chunks"), [(1, 0), (2, 0), (3, 1)])
def test_the_margin_before_a_click_does_not_count_as_speech(num_frames: int, num_chunks: int) -> None:
    activity = KnownActivity(400, range(200, 200 + num_frames))
    assert len(list(split_at_pauses([torch.zeros(400 * FRAME)], DURATIONS, activity))) == num_chunks


def test_margins_stay_within_the_recording_and_do_not_overlap() -> None:
    waveform = recording([(0.1, 1.0), (0.58, 1.0)])[: -SAMPLE_RATE + 800]
    (first, between), (after, last) = spans(waveform)
    assert first == 0.0
    assert last == pytest.approx(2.68 + 0.05, abs=0.02)
    assert between <= after


def test_soft_sounds_next_to_speech_are_kept() -> None:
    """An f before a loud vowel, and a t after the vowel, are examples of soft sounds."""
    waveform = recording([(1.0, 1.0)])
    waveform[: round(0.9 * SAMPLE_RATE)] = 0.0
    rng = np.random.default_rng(2)
    soft = torch.from_numpy(1e-4 * rng.standard_normal(round(0.1 * SAMPLE_RATE))).float()
    waveform[round(0.9 * SAMPLE_RATE) : SAMPLE_RATE] = soft
    waveform[2 * SAMPLE_RATE : round(2.1 * SAMPLE_RATE)] = soft
    ((start, end),) = spans(waveform)
    assert start <= 0.9
    assert end >= 2.1


def test_without_a_pause_chunks_overlap_between_soft_moments() -> None:
    waveform = recording([(0.5, 25.0)])
    for softer in (8.0, 9.7):
        waveform[round(softer * SAMPLE_RATE) : round((softer + 0.08) * SAMPLE_RATE)] *= 0.3
    found = spans(waveform)
    assert all(end - start <= LONGEST_S for start, end in found)
    for before, after in itertools.pairwise(found):
        assert 1.0 - 0.02 <= before[1] - after[0] <= 2.0
    assert 9.7 <= found[0][1] <= 9.8
    assert 8.0 <= found[1][0] <= 8.1
    assert found[-1][1] >= 25.5


def test_a_brief_pause_in_a_long_chunk_is_a_cut_without_an_overlap() -> None:
    # A brief pause can be a cut only after the usual duration, 5 s. The longer of the last two brief pauses is the cut.
    waveform = recording([(0.5, 4.0), (0.3, 2.0), (0.2, 1.0), (0.3, 9.0)])
    found = spans(waveform)
    assert 7.9 < found[0][1] < 8.4
    assert found[1][0] == found[0][1]


@pytest.mark.parametrize("block", [4001, 70 * SAMPLE_RATE])
def test_with_keep_pauses_nothing_is_left_out(block: int) -> None:
    """Clicks, pauses longer than a chunk, and an incomplete last frame are kept, too."""
    waveform = recording([(1.0, 2.0), (0.6, 0.3), (25.0, 5.0), (0.8, 25.0), (12.0, 1.0)])[:-77]
    waveform[6 * SAMPLE_RATE] = 0.5
    chunks = list(split_at_pauses(waveform.split(block), DURATIONS, Loudness(), keep_pauses=True))
    own = [chunk.waveform[: len(chunk.waveform) - chunk.overlap] for chunk in chunks]
    assert torch.equal(torch.cat(own), waveform)
    assert all(len(chunk.waveform) <= LONGEST_S * SAMPLE_RATE for chunk in chunks)
    assert len(chunks) < 15
    assert chunks[1].start == pytest.approx((3.0 + MARGIN_S) * SAMPLE_RATE, abs=0.04 * SAMPLE_RATE)


class Scripted:
    """A voice activity detector with a steadily falling level. The given frames are speech."""

    def __init__(self, speech: range) -> None:
        self._speech, self._frame = speech, 0

    def add(self, block: Tensor) -> Frames:
        first, self._frame = self._frame, self._frame + len(block) // FRAME
        return [(-0.01 * index, float(index in self._speech)) for index in range(first, self._frame)]

    def end(self) -> Frames:
        return []


@pytest.mark.parametrize("frames_after", [-10, 3, 40])
def test_with_keep_pauses_only_overlaps_are_repeated(frames_after: int) -> None:
    longest = int(LONGEST_S * SAMPLE_RATE / FRAME)
    speech, waveform = range(50, longest + frames_after), torch.randn(20 * SAMPLE_RATE)
    chunks = list(split_at_pauses(waveform.split(20 * FRAME), DURATIONS, Scripted(speech), keep_pauses=True))
    own = [chunk.waveform[: len(chunk.waveform) - chunk.overlap] for chunk in chunks]
    assert torch.equal(torch.cat(own), waveform)
    assert all(len(chunk.waveform) <= LONGEST_S * SAMPLE_RATE for chunk in chunks)


@pytest.mark.parametrize("frames_after", [-10, 3, 40])
def test_a_chunk_that_is_only_an_overlap_is_left_out(frames_after: int) -> None:
    """If speech ends within the overlap of two chunks, the second chunk is left out. Otherwise, both are kept."""
    longest = int(LONGEST_S * SAMPLE_RATE / FRAME)
    speech = range(50, 44 + longest + frames_after)
    waveform = torch.randn(20 * SAMPLE_RATE)
    chunks = list(split_at_pauses(waveform.split(20 * FRAME), DURATIONS, Scripted(speech)))
    assert len(chunks) == (1 if frames_after < 0 else 2)
    assert chunks[-1].overlap == 0
    assert chunks[-1].start + len(chunks[-1].waveform) >= speech.stop * FRAME
    assert all(len(chunk.waveform) <= LONGEST_S * SAMPLE_RATE for chunk in chunks)
    if len(chunks) == 2:
        assert chunks[0].start + len(chunks[0].waveform) - chunks[1].start == chunks[0].overlap > 0


@pytest.mark.parametrize("block", [997, 160 * 100, 70 * SAMPLE_RATE])
def test_chunks_do_not_depend_on_the_size_of_blocks(block: int) -> None:
    rng = np.random.default_rng(1)
    waveform = recording([(rng.uniform(0.2, 3), rng.uniform(0.1, 13)) for _ in range(20)], floor=0.0005)
    assert len(spans(waveform)) > 15
    assert spans(waveform, block) == spans(waveform)


def test_chunks_are_yielded_while_audio_is_read() -> None:
    """When a chunk is yielded, at most 95 s of audio after its start have been read, or the recording has ended."""
    taken = 0
    waveform = recording([(1.0, 2.0)] * 100)

    def blocks() -> itertools.chain[Tensor]:
        nonlocal taken
        for block in waveform.split(SAMPLE_RATE):
            taken += len(block)
            yield block

    for chunk in split_at_pauses(blocks(), DURATIONS, Loudness()):
        assert taken - chunk.start <= 95 * SAMPLE_RATE or taken == len(waveform)


def test_silence_and_empty_input_have_no_chunks() -> None:
    assert spans(torch.zeros(0)) == []
    assert list(chunk_recording([], DURATIONS)) == []


def test_a_short_recording_is_one_chunk() -> None:
    waveform = recording([(1.0, 2.0)])
    (chunk,) = chunk_recording(waveform.split(1000), ChunkDurations.up_to(4.0))
    assert chunk.start == 0
    assert torch.equal(chunk.waveform, waveform)


SPEECH = SHARED / "speech" / "an4"


@pytest.mark.skipif(not SPEECH.is_dir(), reason="recorded speech is not here")
def test_speech_is_found_in_noise_that_is_as_loud() -> None:
    """The noise hides the pauses, so loudness alone would find none."""
    clips = [
        torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in sorted(SPEECH.rglob("*.flac"))[:60:20]
    ]
    rng = np.random.default_rng(3)
    waveform = torch.cat([part for clip in clips for part in (torch.zeros(2 * SAMPLE_RATE), clip)])
    noise = torch.from_numpy(rng.standard_normal(len(waveform))).float()
    waveform += noise * torch.cat(clips).std() * 10 ** (-5 / 20)
    durations = ChunkDurations.up_to(max(len(clip) for clip in clips) / SAMPLE_RATE)
    chunks = list(chunk_recording(waveform.split(4000), durations))
    whole = chunk_recording([waveform], durations)
    assert [(chunk.start, len(chunk.waveform)) for chunk in chunks] == [(one.start, len(one.waveform)) for one in whole]
    found = sum(len(chunk.waveform) - chunk.overlap for chunk in chunks)
    assert 0.5 * sum(map(len, clips)) < found < 1.3 * sum(map(len, clips))
