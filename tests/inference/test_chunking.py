"""Where long recordings are cut into chunks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.chunking import FRAME, MARGIN_S, chunk_recording, split_at_pauses

LONGEST_S = 10.0


def recording(bursts: list[tuple[float, float]], *, floor: float = 0.0, gain: float = 1.0) -> Tensor:
    """Bursts of sound as (pause before it, its duration), in seconds, and a second of pause at the end."""
    rng = np.random.default_rng(0)
    parts = []
    for pause, duration in bursts:
        parts += [np.zeros(round(pause * SAMPLE_RATE)), 0.1 * rng.standard_normal(round(duration * SAMPLE_RATE))]
    whole = np.concatenate([*parts, np.zeros(SAMPLE_RATE)])
    return torch.from_numpy(gain * (whole + floor * rng.standard_normal(len(whole)))).float()


def spans(waveform: Tensor, block: int | None = None) -> list[tuple[float, float]]:
    chunks = list(split_at_pauses(waveform.split(block or len(waveform)), LONGEST_S))
    for chunk in chunks:
        assert torch.equal(chunk.waveform, waveform[chunk.start : chunk.start + len(chunk.waveform)])
    return [(chunk.start / SAMPLE_RATE, (chunk.start + len(chunk.waveform)) / SAMPLE_RATE) for chunk in chunks]


@pytest.mark.parametrize(("floor", "gain"), [(0.0, 1.0), (0.001, 1.0), (0.0, 0.01), (0.001, 0.01)])
def test_chunks_hold_the_sounds_with_a_margin_on_either_side(floor: float, gain: float) -> None:
    bursts = [(1.0, 2.0), (0.6, 0.3), (2.0, 5.0), (0.8, 1.0)]
    found = spans(recording(bursts, floor=floor, gain=gain))
    begins = [1.0, 3.6, 5.9, 11.7]
    assert len(found) == len(bursts)
    for (start, end), begin, (_, duration) in zip(found, begins, bursts, strict=True):
        # Levels are means over 50 ms, which rise before the sound begins and fall after it ends.
        assert begin - MARGIN_S - 0.03 <= start <= begin - MARGIN_S
        assert begin + duration + MARGIN_S <= end <= begin + duration + MARGIN_S + 0.031


def test_a_short_pause_does_not_cut_and_a_click_is_not_speech() -> None:
    ((start, end),) = spans(recording([(1.0, 1.0), (0.3, 1.0)]))
    assert (start, end) == pytest.approx((1.0 - MARGIN_S, 3.3 + MARGIN_S), abs=0.03)
    clicked = recording([(1.0, 1.0), (3.0, 0.0)])
    clicked[4 * SAMPLE_RATE] = 0.5
    assert len(spans(clicked)) == 1 or spans(clicked)[1][1] - spans(clicked)[1][0] < 2 * MARGIN_S + 0.1


def test_no_margin_reaches_beyond_the_recording_or_into_another_chunk() -> None:
    waveform = recording([(0.1, 1.0), (0.58, 1.0)])[: -SAMPLE_RATE + 800]
    (first, between), (after, last) = spans(waveform)
    assert first == 0.0
    assert last == pytest.approx(2.68 + 0.05, abs=0.01)
    assert between <= after


def test_soft_sounds_next_to_speech_stay() -> None:
    """Such as an f before a loud vowel, or a t after it."""
    waveform = recording([(1.0, 1.0)])
    waveform[: round(0.9 * SAMPLE_RATE)] = 0.0
    rng = np.random.default_rng(2)
    soft = torch.from_numpy(1e-4 * rng.standard_normal(round(0.1 * SAMPLE_RATE))).float()
    waveform[round(0.9 * SAMPLE_RATE) : SAMPLE_RATE] = soft
    waveform[2 * SAMPLE_RATE : round(2.1 * SAMPLE_RATE)] = soft
    ((start, end),) = spans(waveform)
    assert start <= 0.9
    assert end >= 2.1


def test_without_a_pause_the_cut_is_at_the_softest_moment() -> None:
    waveform = recording([(0.5, 25.0)])
    softest = (8 * SAMPLE_RATE, round(8.25 * SAMPLE_RATE))
    waveform[slice(*softest)] *= 0.05
    found = spans(waveform)
    assert all(end - start <= LONGEST_S for start, end in found)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(found))
    assert softest[0] <= found[0][1] * SAMPLE_RATE <= softest[1]
    assert found[-1][1] >= 25.5


@pytest.mark.parametrize("block", [997, 160 * 100, 70 * SAMPLE_RATE])
def test_blocks_do_not_matter(block: int) -> None:
    rng = np.random.default_rng(1)
    waveform = recording([(rng.uniform(0.2, 3), rng.uniform(0.1, 13)) for _ in range(20)], floor=0.0005)
    assert len(spans(waveform)) > 15
    assert spans(waveform, block) == spans(waveform)


def test_little_is_held() -> None:
    """Each chunk comes out about a minute after its audio was read."""
    taken = 0
    waveform = recording([(1.0, 2.0)] * 100)

    def blocks() -> itertools.chain[Tensor]:
        nonlocal taken
        for block in waveform.split(SAMPLE_RATE):
            taken += len(block)
            yield block

    for chunk in split_at_pauses(blocks(), LONGEST_S):
        assert taken - chunk.start <= 95 * SAMPLE_RATE or taken == len(waveform)


def test_silence_and_empty_input_have_no_chunks() -> None:
    assert spans(torch.zeros(0)) == []
    assert list(chunk_recording([], 5.0)) == []


def test_a_short_recording_is_one_chunk() -> None:
    waveform = recording([(1.0, 2.0)])
    (chunk,) = chunk_recording(waveform.split(1000), 4.0)
    assert chunk.start == 0
    assert torch.equal(chunk.waveform, waveform)
    (chunk,) = chunk_recording(waveform.split(1000), 3.99)
    assert 0 < chunk.start <= SAMPLE_RATE
    assert chunk.start % FRAME == 0
