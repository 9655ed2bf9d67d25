"""How a running stream is cut into utterances."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.support.paths import SHARED
from tests.support.voice import Loudness, bursts
from tiny_audio.audio.load import load_audio
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.chunking import Chunk
from tiny_audio.inference.utterances import BRIEF_PAUSE_S, Utterances
from tiny_audio.inference.voice_activity import FRAME, MARGIN_S, SpeechProbabilities, silero

LONGEST_S, PAUSE_S = 8.0, 0.5
FRAME_S = FRAME / SAMPLE_RATE


def utterances() -> Utterances:
    return Utterances(Loudness(), longest_s=LONGEST_S, pause_s=PAUSE_S)


def found(waveform: Tensor, block: int = 1600) -> list[Chunk]:
    stream = utterances()
    chunks = [chunk for part in waveform.split(block) for chunk in stream.add(part)] + stream.end()
    for chunk in chunks:
        assert torch.equal(chunk.waveform, waveform[chunk.start : chunk.start + len(chunk.waveform)])
        assert len(chunk.waveform) <= LONGEST_S * SAMPLE_RATE
    assert all(before.start + len(before.waveform) <= after.start for before, after in pairwise(chunks))
    return chunks


def spans(chunks: list[Chunk]) -> list[tuple[float, float]]:
    return [(chunk.start / SAMPLE_RATE, (chunk.start + len(chunk.waveform)) / SAMPLE_RATE) for chunk in chunks]


def test_utterances_contain_the_speech_with_margins() -> None:
    (first, second) = spans(found(bursts(1.0, 2.0, 0.6, 0.3, 1.0)))
    assert first == pytest.approx((1.0 - MARGIN_S, 3.0 + MARGIN_S), abs=FRAME_S)
    assert second == pytest.approx((3.6 - MARGIN_S, 3.9 + MARGIN_S), abs=FRAME_S)


def test_a_short_pause_does_not_end_an_utterance() -> None:
    assert len(found(bursts(1.0, 1.0, 0.3, 1.0, 1.0))) == 1


def test_a_brief_pause_ends_a_long_utterance() -> None:
    (first, second) = spans(found(bursts(0.0, 5.0, BRIEF_PAUSE_S + 0.05, 1.0, 1.0)))
    assert first[1] == pytest.approx(5.0 + MARGIN_S, abs=FRAME_S)
    assert second[0] == pytest.approx(5.25 - MARGIN_S, abs=FRAME_S)


def test_speech_without_a_pause_is_cut_at_its_softest_moment() -> None:
    waveform = bursts(0.5, 20.0, 1.0)
    softest = (6 * SAMPLE_RATE, round(6.15 * SAMPLE_RATE))
    waveform[slice(*softest)] *= 0.3
    chunks = found(waveform)
    assert all(before.start + len(before.waveform) == after.start for before, after in pairwise(chunks))
    assert softest[0] <= chunks[0].start + len(chunks[0].waveform) <= softest[1]
    assert spans(chunks)[0][0] == pytest.approx(0.5 - MARGIN_S, abs=FRAME_S)
    assert spans(chunks)[-1][1] == pytest.approx(20.5 + MARGIN_S, abs=FRAME_S)


def test_the_end_of_the_stream_ends_the_utterance() -> None:
    waveform = bursts(1.0, 1.0)
    ((_, end),) = spans(found(waveform))
    assert end == len(waveform) / SAMPLE_RATE
    ((_, end),) = spans(found(bursts(1.0, 1.0, 0.3)))
    assert end == pytest.approx(2.0 + MARGIN_S, abs=FRAME_S)


def test_clicks_and_silence_are_not_utterances() -> None:
    assert found(bursts(1.0, 0.02, 2.0)) == []
    assert found(torch.zeros(0)) == []


@pytest.mark.parametrize("block", [37, 511, 3 * SAMPLE_RATE + 7])
def test_utterances_do_not_depend_on_the_size_of_blocks(block: int) -> None:
    waveform = bursts(0.5, 1.0, 0.7, 0.2, 0.9) if block == 37 else bursts(0.5, 9.0, 0.6, 6.0, 0.3, 3.0, 0.8, 20.0, 0.1)
    assert spans(found(waveform, block)) == spans(found(waveform))


def test_the_open_utterance_has_no_pause_at_its_end() -> None:
    stream, waveform = utterances(), bursts(1.0, 1.0, 0.45)
    stream.add(waveform[:SAMPLE_RATE])
    assert stream.open is None
    assert stream.pause == 0
    stream.add(waveform[SAMPLE_RATE:])
    chunk = stream.open
    assert chunk is not None
    assert spans([chunk])[0] == pytest.approx((1.0 - MARGIN_S, 2.0 + MARGIN_S), abs=FRAME_S)
    assert stream.pause / SAMPLE_RATE == pytest.approx(0.45, abs=2 * FRAME_S)
    assert stream.num_samples == len(waveform)
    (ended,) = stream.end()
    assert spans([ended]) == spans([chunk])


@pytest.mark.parametrize("durations_s", [(40.0,), (0.0, 40.0), (0.6, 0.4) * 40])
def test_memory_is_limited(durations_s: tuple[float, ...]) -> None:
    stream = utterances()
    sizes = []
    for index, part in enumerate(bursts(*durations_s).split(1600)):
        stream.add(part.clone())
        if index % 25 == 24:
            sizes.append(len(pickle.dumps(stream)))
    assert max(sizes) < 1.2 * LONGEST_S * SAMPLE_RATE * 4


@pytest.mark.skipif(not (SHARED / "speech").is_dir(), reason="needs ../shared/speech")
def test_recorded_sentences_are_found() -> None:
    network = silero()
    assert network is not None
    rows = [json.loads(line) for line in (SHARED / "speech/an4/dev.jsonl").read_text().splitlines()[:4]]
    clips = [load_audio(SHARED / "speech/an4" / row["audio_filepath"], max_duration_s=60.0) for row in rows]
    pause = torch.zeros(SAMPLE_RATE)
    stream = Utterances(SpeechProbabilities(network, frames_per_step=1), longest_s=15.0, pause_s=PAUSE_S)
    begins, position = [], SAMPLE_RATE
    chunks = stream.add(pause)
    for clip in clips:
        begins.append(position)
        position += len(clip) + len(pause)
        for block in [clip, pause]:
            chunks += stream.add(block)
    assert {max(begin for begin in begins if begin <= chunk.start + SAMPLE_RATE // 2) for chunk in chunks} == set(
        begins
    )
