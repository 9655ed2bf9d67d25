"""Partial and final texts of a running stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from torch import Tensor

from tests.support.models import assemble
from tests.support.voice import Loudness, bursts
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.live import Final, Job, LiveStream, Partial, common_words
from tiny_audio.inference.segments import Transcription
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.inference.utterances import Utterances

pytestmark = pytest.mark.usefixtures("one_thread")

LONGEST_S, PAUSE_S, BLOCK_S = 4.0, 0.5, 0.1
SPEECH = bursts(0.6, 0.9, 0.7, 0.3, 0.3, 0.3, 0.7, 5.0, 0.6, 0.4)
Event = Partial | Final


def new_stream() -> LiveStream:
    return LiveStream(Utterances(Loudness(), longest_s=LONGEST_S, pause_s=PAUSE_S))


def run(
    stream: LiveStream, waveform: Tensor, decode: Callable[[Job], Transcription], decoding_s: float = 0.0
) -> Iterator[tuple[float, Event]]:
    """Simulate audio that arrives in real time. Each decoding takes ``decoding_s``. Yield (time in seconds, event)."""
    blocks, now, done_at, job = list(waveform.split(round(BLOCK_S * SAMPLE_RATE))), 0.0, 0.0, None
    while True:
        if blocks:
            stream.add(blocks.pop(0))
            if not blocks:
                stream.end()
        now += BLOCK_S
        if job is not None and now >= done_at:
            stream.finish(job, decode(job))
            job = None
        if job is None and (job := stream.next_job()) is not None:
            done_at = now + decoding_s
        events = stream.take_events()
        yield from ((now, event) for event in events)
        if not blocks and job is None and not events:
            return


def transcription(text: str) -> Transcription:
    return Transcription(text, 1.0, ())


def finals(events: list[tuple[float, Event]]) -> list[Final]:
    return [event for _, event in events if isinstance(event, Final)]


def test_final_texts_equal_those_of_the_transcriber_for_the_same_samples() -> None:
    transcriber = Transcriber(*assemble(), filter_hallucinations=False)

    def decode(job: Job) -> Transcription:
        return transcriber.transcribe([job.chunk.waveform], word_timestamps=True)[0]

    events = list(run(new_stream(), SPEECH, decode, 1.0))
    found = finals(events)
    assert [one.utterance for one in found] == list(range(len(found)))
    assert len(found) >= 5
    spans = [(round(one.start_s * SAMPLE_RATE), round(one.end_s * SAMPLE_RATE)) for one in found]
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    offline = transcriber.transcribe([SPEECH[start:end] for start, end in spans], word_timestamps=True)
    assert [one.text for one in found] == [one.text for one in offline]
    assert any(one.text for one in found)
    for one, wanted in zip(found, offline, strict=True):
        assert one.words is not None
        assert [word.text for word in one.words] == one.text.split()
        for word, alone in zip(one.words, wanted.segments[0].words or (), strict=True):
            assert word.start_s == pytest.approx(one.start_s + alone.start_s)


def test_an_utterance_has_no_events_after_its_final_text() -> None:
    events = [
        event for _, event in run(new_stream(), SPEECH, lambda job: transcription(f"w {len(job.chunk.waveform)}"))
    ]
    done = -1
    for event in events:
        assert event.utterance == done + 1
        done += isinstance(event, Final)
    assert isinstance(events[-1], Final)
    assert any(isinstance(event, Partial) for event in events)


def test_partial_texts_arrive_during_speech() -> None:
    events = list(run(new_stream(), bursts(1.0, 3.0, 1.0), lambda job: transcription("go on")))
    first_s, first = events[0]
    assert isinstance(first, Partial)
    assert 1.2 < first_s < 1.7
    assert first.start_s == pytest.approx(0.9, abs=0.05)


def test_the_stable_part_is_equal_in_two_decodings() -> None:
    texts = iter(["turn the li", "turn the lights", "turn the lights off", "turn this lights off now"])
    events = list(run(new_stream(), bursts(1.0, 2.0, 1.0), lambda job: transcription(next(texts, "turn"))))
    partials = [event for _, event in events if isinstance(event, Partial)]
    assert [one.stable for one in partials[:4]] == ["", "turn the", "turn the lights", "turn"]


def test_an_unchanged_text_is_sent_again_when_it_is_stable() -> None:
    events = list(run(new_stream(), bursts(1.0, 3.0, 1.0), lambda job: transcription("go on")))
    assert [(e.stable, e.text) for _, e in events if isinstance(e, Partial)] == [("", "go on"), ("go on", "go on")]


def test_a_slow_machine_gets_fewer_partial_texts_and_every_final_text() -> None:
    fast, slow = new_stream(), new_stream()
    num_jobs = [0, 0]

    def counting(index: int) -> Callable[[Job], Transcription]:
        def decode(job: Job) -> Transcription:
            num_jobs[index] += 1
            return transcription("go on")

        return decode

    wanted = finals(list(run(fast, SPEECH, counting(0))))
    events = list(run(slow, SPEECH, counting(1), 2.0))
    assert finals(events) == wanted
    assert num_jobs[1] < num_jobs[0] / 2
    for now, event in events:
        if isinstance(event, Final):
            # An utterance waits for at most two decodings (a partial text, another utterance). The third is its own.
            assert now - event.end_s < PAUSE_S + 3 * 2.0 + 0.5


def test_partial_texts_take_at_most_half_of_the_time() -> None:
    jobs = []

    def decode(job: Job) -> Transcription:
        jobs.append(job)
        return transcription("go on")

    list(run(new_stream(), bursts(0.5, 3.9, 1.0), decode, 0.8))
    assert sum(not job.final for job in jobs) <= 3


def test_the_text_of_an_early_pause_becomes_final_without_another_decoding() -> None:
    jobs: list[Job] = []

    def decode(job: Job) -> Transcription:
        jobs.append(job)
        return transcription("go on")

    ((final_s, final),) = [
        (now, event) for now, event in run(new_stream(), bursts(1.0, 1.5, 1.0), decode) if isinstance(event, Final)
    ]
    assert not any(job.final for job in jobs)
    assert final_s == pytest.approx(2.5 + PAUSE_S, abs=0.15)
    last = jobs[-1].chunk
    assert final.end_s == (last.start + len(last.waveform)) / SAMPLE_RATE


def test_utterances_without_text_are_final_and_have_no_partial_texts() -> None:
    events = [event for _, event in run(new_stream(), bursts(1.0, 2.0, 1.0), lambda job: transcription(""))]
    assert [(type(event), event.text) for event in events] == [(Final, "")]


def test_there_is_one_job_at_a_time_and_ended_utterances_come_first() -> None:
    stream = new_stream()
    stream.add(bursts(0.5, 1.0, 0.6, 1.0))
    job = stream.next_job()
    assert job is not None
    assert (job.final, job.utterance) == (True, 0)
    assert stream.waiting_s == pytest.approx(len(job.chunk.waveform) / SAMPLE_RATE)
    assert stream.next_job() is None
    stream.finish(job, transcription("go on"))
    job = stream.next_job()
    assert job is not None
    assert (job.final, job.utterance) == (False, 1)
    assert stream.waiting_s == 0
    stream.end()
    stream.finish(job, transcription("go"))
    job = stream.next_job()
    assert job is not None
    assert (job.final, job.utterance) == (True, 1)
    stream.finish(job, transcription("go left"))
    assert stream.next_job() is None
    assert [event.text for event in stream.take_events()] == ["go on", "go left"]
    assert stream.take_events() == []
    assert stream.duration_s == pytest.approx(3.1)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [("a b c", "a b d e", "a b"), ("", "a", ""), ("a", "a b", "a"), ("x", "a", ""), ("a b", " a  b c", " a  b")],
)
def test_common_words_are_found(first: str, second: str, wanted: str) -> None:
    assert common_words(first, second) == wanted
