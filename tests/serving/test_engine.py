"""The engine, which batches the chunks of all requests: equal texts, order, cancellation and failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.serving.servers import LONG, bursts, noise, submit, transcriber, wait_until
from tests.support.models import assemble
from tiny_audio.config import UserError
from tiny_audio.inference.chunking import Chunk
from tiny_audio.inference.segments import Segment
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.serving import engine as engine_module
from tiny_audio.serving.engine import Engine

pytestmark = pytest.mark.usefixtures("one_thread", "pauses_by_loudness")


class Recorded(Transcriber):
    """A transcriber that records the durations in each batch, and can be paused before a batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(*assemble(), filter_hallucinations=False, **options)
        self.batches: list[list[float]] = []
        self.may_run, self.fails_on = threading.Event(), -1.0
        self.may_run.set()

    def transcribe_chunks(self, chunks: Sequence[Chunk], **options: Any) -> list[Segment]:
        durations = [len(chunk.waveform) / 16_000 for chunk in chunks]
        self.batches.append(durations)
        assert self.may_run.wait(60)
        if self.fails_on in durations:
            raise RuntimeError("on purpose")
        return super().transcribe_chunks(chunks, **options)


@contextmanager
def stopped(engine: Engine, recorded: Recorded) -> Iterator[None]:
    """Keep the engine busy with one batch during the ``with`` block, so that submitted jobs wait in its queue."""
    recorded.may_run.clear()
    before = len(recorded.batches)
    first = submit(engine, wave(0.3))
    wait_until(lambda: len(recorded.batches) > before)
    yield
    recorded.may_run.set()
    first.result(60)


def wave(duration_s: float, seed: int = 0) -> Tensor:
    return torch.from_numpy(noise(duration_s, seed))


def test_texts_equal_those_of_transcribe() -> None:
    recordings = [wave(1.0), torch.from_numpy(bursts(LONG)), wave(2.2, 1), torch.zeros(0)]
    wanted = transcriber().transcribe(recordings, word_timestamps=True)
    with Engine(transcriber()) as engine:
        jobs = [submit(engine, recording, words=True) for recording in recordings]
        found = [job.result(60) for job in jobs]
        plain = submit(engine, recordings[0]).result(60)
    assert [one.text for one in found] == [one.text for one in wanted]
    assert [one.duration_s for one in found] == [one.duration_s for one in wanted]
    assert [segment.start_s for segment in found[1].segments] == [segment.start_s for segment in wanted[1].segments]
    assert [word.text for word in found[0].segments[0].words or ()] == found[0].text.split()
    assert plain.segments[0].words is None


def test_jobs_share_batches_of_similar_lengths() -> None:
    recorded = Recorded(max_padded_s=8.0)
    with Engine(recorded, gather_s=0.0) as engine:
        with stopped(engine, recorded):
            jobs = [submit(engine, wave(duration, 1)) for duration in (2.0, 0.5, 4.0, 0.6, 2.1, 3.9, 0.7)]
        for job in jobs:
            job.result(60)
    # The first batch has the oldest chunk (2.0 s) and those of the most similar lengths, up to 8 s including padding.
    assert recorded.batches[1:] == [[2.1, 2.0, 0.7], [0.6, 0.5], [4.0, 3.9]]


def test_a_long_recording_does_not_delay_later_ones() -> None:
    recorded = Recorded(max_padded_s=2.0)
    with Engine(recorded, gather_s=0.0) as engine:
        with stopped(engine, recorded):
            jobs = [submit(engine, torch.from_numpy(bursts(LONG))), submit(engine, wave(1.5))]
        for job in jobs:
            job.result(60)
    assert len(recorded.batches) == LONG + 2
    assert recorded.batches.index([1.5]) < 5


def test_chunks_wait_for_others_until_a_deadline() -> None:
    recorded = Recorded(max_padded_s=8.0)
    with Engine(recorded, gather_s=60.0) as engine:
        jobs = [submit(engine, wave(1.0, seed)) for seed in range(4)]  # a full batch does not wait for gather_s
        for job in jobs:
            job.result(30)
    assert recorded.batches == [[1.0] * 4]
    with Engine(recorded, gather_s=0.05) as engine:
        submit(engine, wave(1.0)).result(30)


def test_segments_are_reported_in_order() -> None:
    recorded = Recorded(max_padded_s=2.0)
    waveform = torch.cat([part for seconds in (0.5, 1.5, 1.0) for part in (wave(seconds), torch.zeros(16_000))] * 3)
    reported: list[Segment] = []
    with Engine(recorded) as engine:
        found = submit(engine, waveform, on_segment=reported.append).result(60)
    assert len(found.segments) == 10, "there is a segment for each burst and one for the pause at the end"
    assert tuple(reported) == found.segments


def test_a_canceled_job_leaves_the_queue() -> None:
    recorded = Recorded(max_padded_s=4.0)
    with Engine(recorded) as engine:
        with stopped(engine, recorded):
            gone, kept = submit(engine, torch.from_numpy(bursts(LONG))), submit(engine, wave(1.0))
            assert engine.statistics.waiting_chunks == LONG + 1
            gone.cancel()
            assert engine.statistics.waiting_chunks == 1
        assert kept.result(60).text
        with pytest.raises(CancelledError):
            gone.result(1)
    assert recorded.batches[1:] == [[1.0]]


def test_a_canceled_task_cancels_its_job() -> None:
    recorded = Recorded()

    async def cancel(engine: Engine) -> None:
        task = asyncio.create_task(engine.transcribe(wave(1.0)))
        while not engine.statistics.waiting_chunks:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.statistics.waiting_chunks == 0
        recorded.may_run.set()
        assert (await engine.transcribe(wave(1.0))).text

    with Engine(recorded, gather_s=0.0) as engine, stopped(engine, recorded):
        asyncio.run(cancel(engine))


def test_a_failure_does_not_affect_other_recordings(caplog: pytest.LogCaptureFixture) -> None:
    recorded = Recorded()
    recorded.fails_on = 1.25
    with Engine(recorded) as engine:
        with stopped(engine, recorded):
            bad, good = submit(engine, wave(1.25)), submit(engine, wave(1.0))
        assert good.result(60).text
        with pytest.raises(RuntimeError, match="on purpose"):
            bad.result(60)
    assert "could not be transcribed" in caplog.text


def test_a_failing_callback_ends_only_its_own_job() -> None:
    def fail(segment: Segment) -> None:
        raise ValueError("on purpose")

    with Engine(transcriber()) as engine:
        job = submit(engine, wave(1.0), on_segment=fail)
        with pytest.raises(ValueError, match="on purpose"):
            job.result(60)
        assert submit(engine, wave(1.0)).result(60).text


def test_closing_the_engine_cancels_waiting_jobs() -> None:
    recorded = Recorded(max_padded_s=2.0)
    engine = Engine(recorded)
    recorded.may_run.clear()
    running, waiting = submit(engine, wave(1.0)), None
    wait_until(lambda: recorded.batches)
    waiting = submit(engine, wave(1.0))
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(CancelledError):
        waiting.result(60)
    recorded.may_run.set()
    closing.join()
    assert running.result(60).text
    with pytest.raises(RuntimeError):
        submit(engine, wave(1.0))


def test_freed_memory_is_released_after_every_fourth_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, released_after = Recorded(), list[int]()
    monkeypatch.setattr(engine_module, "release_freed_memory", lambda: released_after.append(len(recorded.batches)))
    with Engine(recorded, gather_s=0.0) as engine:
        for _ in range(9):
            submit(engine, wave(0.2)).result(60)
    assert released_after == [4, 8]


def test_words_need_a_ctc_head() -> None:
    with Engine(transcriber(ctc=False)) as engine, pytest.raises(UserError):
        submit(engine, wave(1.0), words=True)
