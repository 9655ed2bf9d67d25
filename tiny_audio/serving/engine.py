"""Transcribe the recordings of many requests in shared batches."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from torch import Tensor

from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.chunking import Chunk
from tiny_audio.inference.joining import Joiner
from tiny_audio.inference.segments import Segment, Transcription
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.context import ContextSettings, EncodedContext
from tiny_audio.model.prompt import Context
from tiny_audio.runtime.memory import release_freed_memory

_LOG = logging.getLogger(__name__)
_POOL = 8
"""The chunks of a batch are chosen from the first ``_POOL * batch size`` chunks of the queue. In a larger pool, more
chunks have similar lengths."""
_RELEASE_EVERY = 4
"""Number of batches after which freed memory is returned to the operating system. This takes less than 0.1 s."""

OnSegment = Callable[[Segment], object]


@dataclass(frozen=True)
class Statistics:
    """Totals since the engine was started, and the current queue."""

    batches: int = 0
    chunks: int = 0
    audio_s: float = 0.0
    """Seconds of transcribed audio."""
    busy_s: float = 0.0
    """Seconds in which a batch was running."""
    waiting_chunks: int = 0
    waiting_s: float = 0.0
    """Seconds of audio in the queue."""

    @property
    def wait_s(self) -> float:
        """Estimated seconds until the current queue is empty."""
        return self.waiting_s * self.busy_s / self.audio_s if self.audio_s else 0.0


class Job:
    """A recording in the queue of an :class:`Engine`.

    Args:
        chunks: the chunks of the recording.
        duration_s: duration of the recording.
        words: whether the segments keep the times of their words.
        on_segment: called in the engine's thread with each segment, in order.
    """

    def __init__(self, chunks: Sequence[Chunk], duration_s: float, words: bool, on_segment: OnSegment | None) -> None:
        self.future: Future[Transcription] = Future()
        """Holds the transcription. Canceling the future cancels the job."""
        self._chunks, self._duration_s, self._on_segment = chunks, duration_s, on_segment
        self._early: dict[int, Segment] = {}
        """Segments that wait for the segments of earlier chunks."""
        self._num_joined = 0
        self._joiner = Joiner(keep_words=words)
        self._segments: list[Segment] = []
        self._finish()

    def result(self, timeout: float | None = None) -> Transcription:
        """Wait for the transcription.

        Raises:
            TimeoutError: the job has not ended after ``timeout`` seconds.
            concurrent.futures.CancelledError: the job was canceled.
        """
        return self.future.result(timeout)

    def cancel(self) -> None:
        """Take the job out of the queue. A batch that is already running is not interrupted."""
        self.future.cancel()

    def add(self, index: int, segment: Segment) -> None:
        """Add the segment of a chunk."""
        self._early[index] = segment
        while (ready := self._early.pop(self._num_joined, None)) is not None:
            chunk = self._chunks[self._num_joined]
            self._num_joined += 1
            for finished in self._joiner.add(chunk, ready):
                self._segments.append(finished)
                if self._on_segment is not None and not self.future.done():
                    self._on_segment(finished)
        self._finish()

    def fail(self, error: Exception) -> None:
        """End the job with an error. Do nothing if the job has already ended."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _finish(self) -> None:
        if self._num_joined < len(self._chunks) or self.future.done():
            return
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(Transcription.of(self._segments, self._duration_s))


@dataclass(frozen=True, eq=False)
class _Item:
    """A chunk in the queue."""

    job: Job
    index: int
    chunk: Chunk
    arrived: float
    context: Context | None

    @property
    def due(self) -> float:
        """The key that the queue is sorted by, in seconds (see :class:`Engine`)."""
        return self.arrived + self.chunk.start / SAMPLE_RATE

    @property
    def seconds(self) -> float:
        return len(self.chunk.waveform) / SAMPLE_RATE


class Engine:
    """Transcribes recordings in one thread. The chunks of all recordings share batches.

    The queue is sorted by the time ``arrival of the recording + start of the chunk in the recording``. Therefore a long
    recording hardly delays later requests and live streams. For example, a recording that arrives now is transcribed
    before the chunk at 60 s of a recording that arrived 10 s ago. Each batch contains the first chunk in the queue, so
    that no chunk waits forever. The other chunks of the batch have similar lengths. The text of a recording is the same
    as from :meth:`Transcriber.transcribe`.

    Args:
        transcriber: transcribes the chunks, and determines the size of batches.
        gather_s: maximum seconds that an idle engine waits for more chunks before it starts a batch.
    """

    def __init__(self, transcriber: Transcriber, *, gather_s: float = 0.02) -> None:
        self._transcriber, self._gather_s = transcriber, gather_s
        self._changed = threading.Condition()
        self._queue: list[_Item] = []
        self._statistics = Statistics()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="transcription", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def can_time_words(self) -> bool:
        """Whether the model has a CTC head, which word timestamps need."""
        return self._transcriber.can_time_words

    @property
    def max_chunk_s(self) -> float:
        """Maximum duration in seconds of a recording that is transcribed as one chunk."""
        return self._transcriber.max_chunk_s

    @property
    def statistics(self) -> Statistics:
        """Totals since the start, and the current queue."""
        with self._changed:
            waiting_s = sum(item.seconds for item in self._queue)
            return replace(self._statistics, waiting_chunks=len(self._queue), waiting_s=waiting_s)

    @property
    def context_settings(self) -> ContextSettings:
        """The kinds of context that the model was trained with."""
        return self._transcriber.context_settings

    def encode_context(self, context: Context | None) -> EncodedContext:
        """Check a context. See :meth:`Transcriber.encode_context`."""
        return self._transcriber.encode_context(context)

    def chunks(self, blocks: Iterable[Tensor], is_stopped: Callable[[], bool] = lambda: False) -> list[Chunk]:
        """Cut a recording into chunks for :meth:`enqueue`. See :meth:`Transcriber.chunks`.

        For a recording of an hour, this may take seconds. If a long recording has too few pauses, it is cut within
        speech. Then the model may search for better cuts, which may take minutes.
        """
        return list(self._transcriber.chunks(blocks, is_stopped))

    def enqueue(
        self,
        chunks: Sequence[Chunk],
        duration_s: float,
        *,
        words: bool = False,
        context: Context | None = None,
        on_segment: OnSegment | None = None,
    ) -> Job:
        """Add a recording to the queue.

        Args:
            chunks: the :meth:`chunks` of the recording.
            duration_s: duration of the recording.
            words: also return the start and end of each word.
            context: what is known about the recording. Its previous text is used only for the first chunk.
            on_segment: called in the engine's thread with each segment, in order.

        Raises:
            UserError: words are requested, but the model has no CTC head.
        """
        if words and not self.can_time_words:
            raise UserError("word timestamps need a CTC head, and this model has none")
        now = time.monotonic()
        job = Job(chunks, duration_s, words, on_segment)
        later = context and context.for_later_chunks()
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._queue += (
                _Item(job, index, chunk, now, later if index else context) for index, chunk in enumerate(chunks)
            )
            self._queue.sort(key=lambda item: item.due)
            self._changed.notify()
        job.future.add_done_callback(lambda _: self._drop(job))
        return job

    async def transcribe(
        self, waveform: Tensor, *, words: bool = False, context: Context | None = None
    ) -> Transcription:
        """Transcribe a recording, mono float32 ``[S]`` at 16 kHz. See :meth:`enqueue`.

        If the asyncio task that awaits the result is canceled, the job is canceled too.
        """
        chunks = await asyncio.to_thread(self.chunks, [waveform])
        job = self.enqueue(chunks, len(waveform) / SAMPLE_RATE, words=words, context=context)
        return await asyncio.wrap_future(job.future)

    def close(self) -> None:
        """Finish the running batch, cancel the waiting jobs, and stop the thread."""
        with self._changed:
            self._closed = True
            jobs = {item.job for item in self._queue}
            self._changed.notify()
        for job in jobs:
            job.cancel()
        self._thread.join()

    def _drop(self, job: Job) -> None:
        """Remove the chunks of a job from the queue."""
        with self._changed:
            self._queue = [item for item in self._queue if item.job is not job]

    def _work(self) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            self._transcribe(batch)
            self._count(batch, time.monotonic() - started)
            if self._statistics.batches % _RELEASE_EVERY == 0:
                release_freed_memory()

    def _transcribe(self, batch: Sequence[_Item]) -> None:
        try:
            segments = self._transcriber.transcribe_chunks(
                [item.chunk for item in batch], contexts=[item.context for item in batch]
            )
        except Exception as error:
            # A single chunk may have caused the error. Transcribe each chunk separately, so that the others succeed.
            if len(batch) > 1:
                for item in batch:
                    self._transcribe([item])
                return
            _LOG.exception("a chunk could not be transcribed")
            batch[0].job.fail(error)
            return
        for item, segment in zip(batch, segments, strict=True):
            try:
                item.job.add(item.index, segment)
            except Exception as error:  # raised by the callback `on_segment`
                item.job.fail(error)

    def _count(self, batch: Sequence[_Item], busy_s: float) -> None:
        with self._changed:
            before = self._statistics
            self._statistics = replace(
                before,
                batches=before.batches + 1,
                chunks=before.chunks + len(batch),
                audio_s=before.audio_s + sum(item.seconds for item in batch),
                busy_s=before.busy_s + busy_s,
            )

    def _next_batch(self) -> list[_Item]:
        """Wait for chunks, and take the next batch from the queue. Return an empty batch if the engine is closed."""
        with self._changed:
            while not self._closed:
                if not self._queue:
                    self._changed.wait()
                    continue
                remaining = self._queue[0].arrived + self._gather_s - time.monotonic()
                if remaining > 0 and not self._is_full():
                    self._changed.wait(remaining)
                    continue
                batch = self._chosen()
                taken = set(batch)
                self._queue = [item for item in self._queue if item not in taken]
                return batch
            return []

    def _is_full(self) -> bool:
        longest = max(self._queue, key=lambda item: item.seconds)
        return len(self._queue) >= self._transcriber.batch_size(longest.chunk)

    def _chosen(self) -> list[_Item]:
        """Return the batch that contains the first chunk of the queue."""
        first = self._queue[0]
        # Sorted by length, so that chunks of similar length share a batch.
        pool = sorted(self._queue[: _POOL * self._transcriber.batch_size(first.chunk)], key=lambda item: -item.seconds)
        while True:
            size = self._transcriber.batch_size(pool[0].chunk)
            batch, pool = pool[:size], pool[size:]
            if first in batch:
                return batch
