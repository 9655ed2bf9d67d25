"""Transcribe waveforms of any length to timed text, in bounded memory, with hallucination filters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE, Frames
from tiny_audio.inference.chunking import Chunk, ChunkDurations, chunk_recording
from tiny_audio.inference.filters import Reason, boost_quiet, filter_text, non_speech_reason
from tiny_audio.inference.joining import Joiner
from tiny_audio.inference.recutting import ModelScorer, Recutter
from tiny_audio.inference.segments import Segment, Transcription
from tiny_audio.inference.word_times import Spelling, align, evenly_spread, shifted
from tiny_audio.model.context import ContextSettings, EncodedContext
from tiny_audio.model.decoding import GenerationConfig, Transcript
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.prompt import Context
from tiny_audio.model.room import Room
from tiny_audio.model.streamer import OnText
from tiny_audio.runtime.device import in_parts_that_fit

LONGEST_CHUNK_S = 30.0
"""Maximum duration of a chunk. Training data has few longer clips, and the texts of longer chunks could be truncated at
``max_new_tokens``."""
_LARGEST_POOL = 8
"""Maximum number of batches in a pool. A pool is a group of chunks that are sorted by length and divided into batches.
The first pools are smaller, so that output starts early."""
_LEAST_S = 2.0
"""When the size of a batch is computed, a chunk counts as at least this long. Even a short chunk needs memory for its
prompt, text and beams."""

Contexts = Context | Sequence[Context | None] | None
"""One context for all recordings, or a list with one for each recording."""


class Transcriber:
    """Transcribes recordings of any length in batches.

    A recording of at most ``max_chunk_s`` is one chunk. If ``filter_hallucinations`` is False, the text of such a
    recording is the same as from ``model.transcribe``. Longer recordings are cut at pauses (see
    :mod:`tiny_audio.inference.chunking`). In fp32, the text of a chunk does not depend on its batch.

    Args:
        model: the model, in evaluation mode, on its device.
        tokenizer: the model's tokenizer.
        max_padded_s: maximum seconds of audio in a batch, including padding. A longer chunk gets its own batch.
        generation: decoding settings. If None, the model's own settings are used. ``max_new_tokens`` is lowered if the
            decoder has too few positions.
        filter_hallucinations: suppress text that was not spoken (see :mod:`tiny_audio.inference.filters`), amplify very
            soft audio, and leave the pauses of long recordings out.
        search_cuts: let the model search for better cuts if a recording was cut within speech and the texts of its
            chunks have bad scores (see :mod:`tiny_audio.inference.recutting`). The search is slow.
    """

    def __init__(
        self,
        model: TinyAudioModel,
        tokenizer: Any,
        *,
        max_padded_s: float = 120.0,
        generation: GenerationConfig | None = None,
        filter_hallucinations: bool = True,
        search_cuts: bool = True,
    ) -> None:
        if not 0 < max_padded_s < float("inf"):
            raise UserError(f"max_padded_s is {max_padded_s}; give a finite number of seconds above 0")
        self._model = model
        self._tokenizer = tokenizer
        self._max_padded_s = max_padded_s
        self._filter = filter_hallucinations
        # Held while the model is used, because several threads of a server share one transcriber.
        self._lock = threading.Lock()
        self._durations, self._recutter = _chunk_durations(model), None
        room = Room(model.config, model.projector)
        self._generation = None if generation is None else room.fitting(generation, self.max_chunk_s)
        if search_cuts and model.ctc_head is not None and model.clip_durations is not None:
            limits = model.clip_durations.min_s, self.max_chunk_s
            self._recutter = Recutter(
                ModelScorer(model, tokenizer, max_padded_s, self._lock, self._generation), *limits
            )
        self._context_encoder = room.context_encoder(tokenizer, self.max_chunk_s)

    @property
    def context_settings(self) -> ContextSettings:
        """The kinds of context that the model was trained with."""
        return self._context_encoder.settings

    def encode_context(self, context: Context | None) -> EncodedContext:
        """Return the token ids of a context, and warnings for the user.

        Raises:
            UserError: see :class:`tiny_audio.model.context.ContextEncoder`.
        """
        return self._context_encoder.encode(context)

    @property
    def max_chunk_s(self) -> float:
        """Maximum duration of a chunk in seconds.

        This is the lowest of three limits: :data:`LONGEST_CHUNK_S`, the model's own limit, and the duration of the
        longest training clip, if the model's config records this duration.
        """
        return self._durations.max_s

    @property
    def can_time_words(self) -> bool:
        """Whether the model has a CTC head, which word timestamps need."""
        return self._model.ctc_head is not None

    def transcribe(
        self,
        waveforms: Sequence[Tensor],
        *,
        word_timestamps: bool = False,
        on_progress: Callable[[float], None] | None = None,
        contexts: Contexts = None,
    ) -> list[Transcription]:
        """Transcribe waveforms, and return their transcriptions in the same order.

        Args:
            waveforms: mono float32 ``[S]`` at 16 kHz, of any length.
            word_timestamps: also return the start and end of each word.
            on_progress: called with the seconds of audio that were transcribed since the last call.
            contexts: what is known about the recordings, such as hotwords. Previous text is used only for the first
                chunk of a recording.

        Raises:
            UserError: word timestamps are requested, but the model has no CTC head; or a context cannot be used.
        """
        if not isinstance(contexts, Context | None) and len(contexts) != len(waveforms):
            raise UserError(
                f"there are {len(contexts)} contexts for {len(waveforms)} recordings; give one for each, or one for all"
            )
        events = self.stream(
            ([waveform] for waveform in waveforms),
            word_timestamps=word_timestamps,
            on_progress=on_progress,
            contexts=contexts,
        )
        return [event for _, event in events if isinstance(event, Transcription)]

    def transcripts(self, waveforms: Sequence[Tensor], contexts: Contexts = None) -> list[Transcript]:
        """Transcribe like :meth:`transcribe`, but return one :class:`Transcript` for each recording.

        If the model has a CTC head, ``ctc_text`` is never None.
        """
        found = self.transcribe(waveforms, contexts=contexts)
        silent = "" if self.can_time_words else None
        return [Transcript(one.text, silent if one.ctc_text is None else one.ctc_text, one.truncated) for one in found]

    @torch.no_grad()
    def stream(
        self,
        recordings: Iterable[Iterable[Tensor]],
        *,
        word_timestamps: bool = False,
        on_progress: Callable[[float], None] | None = None,
        on_text: Callable[[int, float, str], None] | None = None,
        contexts: Contexts = None,
    ) -> Iterator[tuple[int, Segment | Transcription]]:
        """Transcribe like :meth:`transcribe`, but yield each segment as soon as it is finished.

        Recordings are read in order. At most a few batches are read ahead, so memory stays bounded.

        Args:
            recordings: iterables of blocks, mono float32 ``[S]`` at 16 kHz.
            word_timestamps, on_progress, contexts: see :meth:`transcribe`.
            on_text: called while a batch is decoded. Its arguments are the index of a recording, the start of one of
                its chunks in seconds, and the chunk's text so far, before filtering.

        Yields:
            The index of a recording, with one of its segments or, after all of them, its transcription.
        """
        if word_timestamps and not self.can_time_words:
            raise UserError(
                "word timestamps need a CTC head, and this model has none; train one with a section `ctc` in its "
                "recipe, or leave word timestamps out"
            )
        for context in {contexts} if isinstance(contexts, Context | None) else {*contexts}:
            self.encode_context(context)  # reports an error before anything is transcribed
        report = on_progress or (lambda seconds: None)
        last: int | None = None  # index of the recording that the last chunk belongs to
        done: list[Segment] = []  # segments of the unfinished recording
        joiner, trained = Joiner(keep_words=word_timestamps), self._model.clip_durations
        for pool in self._pools(recordings):
            chunks = [(index, item) for index, item in pool if isinstance(item, Chunk)]

            def on_chunk_text(row: int, text: str, chunks: list[tuple[int, Chunk]] = chunks) -> None:
                index, chunk = chunks[row]
                assert on_text is not None
                on_text(index, chunk.start / SAMPLE_RATE, text)

            own: list[Context | None] = []
            for index, _ in chunks:
                context = contexts if isinstance(contexts, Context | None) else contexts[index]
                own.append(context.for_later_chunks() if context and index == last else context)
                last = index
            segments = iter(
                self.transcribe_chunks(
                    [chunk for _, chunk in chunks],
                    contexts=own,
                    on_progress=report,
                    on_text=on_chunk_text if on_text else None,
                )
            )
            for index, item in pool:
                finished = joiner.add(item, next(segments)) if isinstance(item, Chunk) else joiner.end()
                for segment in finished:
                    done.append(segment)
                    yield index, segment
                if isinstance(item, _End):
                    report(max(0.0, item.duration_s - sum(segment.duration_s for segment in done)))
                    warning = trained.warning(item.duration_s) if trained else None
                    yield index, Transcription.of(done, item.duration_s, warning)
                    done = []

    def chunks(self, blocks: Iterable[Tensor], is_stopped: Callable[[], bool] = lambda: False) -> Iterator[Chunk]:
        """Cut a recording into chunks that suit the model.

        The model itself may choose cuts within speech (see :mod:`tiny_audio.inference.recutting`).

        Args:
            blocks: mono float32 ``[S]`` at 16 kHz, in order.
            is_stopped: returns True if the chunks are no longer needed.
        """
        chunks = chunk_recording(blocks, self._durations, keep_pauses=not self._filter)
        return chunks if self._recutter is None else self._recutter(chunks, is_stopped)

    def _pools(self, recordings: Iterable[Iterable[Tensor]]) -> Iterator[list[tuple[int, Chunk | _End]]]:
        """Yield pools of chunks (see ``_LARGEST_POOL``).

        Each item of a pool is the index of a recording, with one of its chunks or its end.
        """
        pool: list[tuple[int, Chunk | _End]] = []
        batches, waiting_s = 1, 0.0
        for index, blocks in enumerate(recordings):
            end = _End()
            for chunk in self.chunks(end.counting(blocks)):
                pool.append((index, chunk))
                waiting_s += len(chunk.waveform) / SAMPLE_RATE
                if waiting_s >= batches * self._max_padded_s:
                    yield pool
                    pool, batches, waiting_s = [], min(2 * batches, _LARGEST_POOL), 0.0
            pool.append((index, end))
        yield pool

    def batch_size(self, longest: Chunk) -> int:
        """Return how many chunks fit into a batch in which ``longest`` is the longest."""
        return max(1, int(self._max_padded_s / max(len(longest.waveform) / SAMPLE_RATE, _LEAST_S)))

    @torch.no_grad()
    def transcribe_chunks(
        self,
        chunks: Sequence[Chunk],
        *,
        contexts: Sequence[Context | None] | None = None,
        on_progress: Callable[[float], None] | None = None,
        on_text: OnText | None = None,
    ) -> list[Segment]:
        """Transcribe chunks of any recordings in batches, and return segments in the order of the chunks.

        The longest chunks are decoded first, so that a lack of memory is noticed early.
        :class:`tiny_audio.inference.joining.Joiner` joins the segments of a recording.

        Args:
            chunks: see :meth:`chunks`.
            contexts: the context of each chunk. None if no chunk has a context.
            on_progress: see :meth:`transcribe`.
            on_text: called with the index of a chunk and its text so far, before filtering.

        Returns:
            Segments with words. The words have estimated times if the model has no CTC head.
        """
        report = on_progress or (lambda seconds: None)
        own = contexts or [None] * len(chunks)
        segments: dict[int, Segment] = {}
        waiting = []
        for index in sorted(range(len(chunks)), key=lambda index: -len(chunks[index].waveform)):
            reason = non_speech_reason(chunks[index].waveform) if self._filter else None
            if reason is None and len(chunks[index].waveform):
                waiting.append(index)
            else:
                segments[index] = _without_text(chunks[index], None, reason)
                report(_own_s(chunks[index]))
        while waiting:
            size = self.batch_size(chunks[waiting[0]])
            batch, waiting = sorted(waiting[:size]), waiting[size:]

            def decode(part: Sequence[int]) -> list[Segment]:
                on_row_text = None if on_text is None else lambda row, text: on_text(part[row], text)
                return self._transcribe_batch([(chunks[index], own[index]) for index in part], on_row_text)

            with self._lock:
                decoded = in_parts_that_fit(decode, batch)
            segments |= zip(batch, decoded, strict=True)
            report(sum(_own_s(chunks[index]) for index in batch))
        return [segments[index] for index in range(len(chunks))]

    def _transcribe_batch(self, rows: Sequence[tuple[Chunk, Context | None]], on_text: OnText | None) -> list[Segment]:
        clips = [boost_quiet(chunk.waveform) if self._filter else chunk.waveform for chunk, _ in rows]
        lengths = torch.tensor([len(clip) for clip in clips], device=self._model.device)
        frames = self._model.encode(pad_sequence(clips, batch_first=True).to(self._model.device), lengths)
        ids = [self.encode_context(context).ids for _, context in rows]
        transcripts = self._model.transcribe_frames(
            frames, self._tokenizer, on_text, self._generation, ids if any(ids) else None
        )
        return [
            self._segment(chunk, transcript, frames.row(row))
            for row, ((chunk, _), transcript) in enumerate(zip(rows, transcripts, strict=True))
        ]

    def _segment(self, chunk: Chunk, transcript: Transcript, frames: Frames) -> Segment:
        """Filter and align the transcript of one chunk. ``frames`` are the chunk's frames, without padding."""
        text, reason, vocabulary = transcript.text, None, self._model.ctc_vocabulary
        start_s, duration_s = chunk.start / SAMPLE_RATE, len(chunk.waveform) / SAMPLE_RATE
        if self._filter:
            text, reason = filter_text(transcript, frames, duration_s, vocabulary)
        if not text:
            return _without_text(chunk, transcript, reason)
        words, confidence = evenly_spread(text.split(), start_s, start_s + duration_s), None
        if frames.ctc_logits is not None and vocabulary is not None:
            log_probs = frames.ctc_logits[0].float().log_softmax(-1)
            aligned = align(Spelling.of(text, vocabulary), log_probs, frames.rate, duration_s)
            words, confidence = tuple(shifted(word, start_s) for word in aligned.words), aligned.confidence
        return Segment(
            start_s,
            start_s + duration_s,
            text,
            transcript.ctc_text,
            transcript.truncated,
            confidence,
            words,
            reason,
        )


def _chunk_durations(model: TinyAudioModel) -> ChunkDurations:
    longest_s, trained = model.longest_clip_s(LONGEST_CHUNK_S), model.clip_durations
    if trained is None:
        return ChunkDurations.up_to(longest_s)
    max_s = min(longest_s, trained.max_s)
    longest_s = min(max_s, trained.p95_s)
    return ChunkDurations(max_s, longest_s, min(trained.median_s, longest_s / 2))


@dataclass
class _End:
    """Marks the end of a recording in a pool, and holds the recording's number of samples."""

    samples: int = 0

    def counting(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the blocks, and count their samples."""
        for block in blocks:
            self.samples += len(block)
            yield block

    @property
    def duration_s(self) -> float:
        """Duration of the recording. It is correct only after all blocks were read."""
        return self.samples / SAMPLE_RATE


def _own_s(chunk: Chunk) -> float:
    """Return the duration of a chunk in seconds, without the part that the next chunk repeats."""
    return (len(chunk.waveform) - chunk.overlap) / SAMPLE_RATE


def _without_text(chunk: Chunk, transcript: Transcript | None, reason: Reason | None) -> Segment:
    start_s = chunk.start / SAMPLE_RATE
    end_s = start_s + len(chunk.waveform) / SAMPLE_RATE
    ctc_text = transcript.ctc_text if transcript else None
    truncated = bool(transcript and transcript.truncated)
    return Segment(start_s, end_s, "", ctc_text, truncated, None, (), reason)
