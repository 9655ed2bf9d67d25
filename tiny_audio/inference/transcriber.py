"""Transcriber: waveforms of any length -> texts in time, in bounded memory, and with guards on what nobody said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tiny_audio import ctc
from tiny_audio.config import UserError
from tiny_audio.encoders import ENCODERS
from tiny_audio.frames import SAMPLE_RATE, Frames
from tiny_audio.inference.chunking import Piece, whole_or_split
from tiny_audio.inference.filters import (
    MAX_CHARACTERS_PER_S,
    Reason,
    contradicts,
    leveled,
    loop_without_head,
    unlike_speech,
    unlooped,
)
from tiny_audio.inference.word_times import Spelling, Word, align, shifted
from tiny_audio.model.decoding import GenerationConfig, Transcript
from tiny_audio.model.model import OnText, TinyAudioModel
from tiny_audio.runtime.device import in_parts_that_fit

LONGEST_PIECE_S = 30.0
"""Longer ones were in hardly anybody's training data, and their texts would be cut at ``max_new_tokens``."""
_LARGEST_POOL = 8
"""Batches that are sorted by length together, at most. The first come one by one, so that something is seen soon."""

_LEAST_S = 2.0
"""What a piece counts for in a batch, at least: each has a prompt, a text and beams of its own, however short it is."""


@dataclass(frozen=True)
class Segment:
    """A piece of a recording, and what is said in it."""

    start_s: float
    """In the recording."""
    end_s: float
    text: str
    """Empty where nothing is said."""
    ctc_text: str | None
    """The CTC head's own greedy text, unguarded; None without a head, or where the sound is no speech."""
    truncated: bool
    """No end token came within ``max_new_tokens``: words may be missing."""
    confidence: float | None
    """See :class:`tiny_audio.inference.word_times.Alignment`; None without a CTC head, or without text."""
    words: tuple[Word, ...] | None
    """In the recording's time; None where they were not asked for."""
    suppressed: Reason | None
    """Why the text is not what the decoder wrote; None where it is."""


@dataclass(frozen=True)
class Transcription:
    """A whole recording."""

    text: str
    """The texts of its segments, a blank between them."""
    duration_s: float
    segments: tuple[Segment, ...]
    """In order; stretches without any sound have none."""

    @property
    def truncated(self) -> bool:
        """Whether any segment is."""
        return any(segment.truncated for segment in self.segments)

    @property
    def ctc_text(self) -> str | None:
        """The CTC head's own texts, a blank between them; None without any."""
        texts = [segment.ctc_text for segment in self.segments if segment.ctc_text is not None]
        return " ".join(filter(None, texts)) if texts else None


class Transcriber:
    """A model that takes recordings of any length, many at a time.

    Up to :data:`LONGEST_PIECE_S`, and to what the encoder takes, a recording is transcribed in one piece, as
    ``model.transcribe`` does; longer ones are cut at pauses (see :func:`tiny_audio.inference.chunking.split`). Pieces
    of all recordings share batches of similar length; each gives the same text whatever it shares a batch with.

    Args:
        model: to evaluate, on the device where it shall run.
        tokenizer: the model's.
        max_padded_s: seconds of audio in a batch, padding included; a longer piece is a batch of its own.
        generation: how to decode; None takes the model's own settings.
        guard: whether to suppress what nobody said (see :mod:`tiny_audio.inference.filters`), and to raise the level
        of very soft
            audio. Without, every piece gives exactly what the model writes.
    """

    def __init__(
        self,
        model: TinyAudioModel,
        tokenizer: Any,
        *,
        max_padded_s: float = 120.0,
        generation: GenerationConfig | None = None,
        guard: bool = True,
    ) -> None:
        if not max_padded_s > 0:
            raise UserError(f"max_padded_s is {max_padded_s}; a batch holds more than 0 seconds")
        self._model = model
        self._tokenizer = tokenizer
        self._max_padded_s = max_padded_s
        self._generation = generation
        self._guard = guard
        self.whole_s = min(ENCODERS.parse(model.config.encoder).max_duration_s() or LONGEST_PIECE_S, LONGEST_PIECE_S)
        """Longest recording that is taken in one piece."""

    @property
    def times_words(self) -> bool:
        """Whether the model has what word timestamps need."""
        return self._model.ctc_head is not None

    def transcribe(
        self,
        waveforms: Sequence[Tensor],
        *,
        word_timestamps: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> list[Transcription]:
        """One transcription for each waveform, in order.

        Args:
            waveforms: mono float32 ``[S]`` at 16 kHz, of any lengths.
            word_timestamps: find when each word is said.
            on_progress: called with the seconds of audio that are done since the last call.

        Raises:
            UserError: words are to be timed and the model has no CTC head.
        """
        events = self.stream(
            ([waveform] for waveform in waveforms), word_timestamps=word_timestamps, on_progress=on_progress
        )
        return [event for _, event in events if isinstance(event, Transcription)]

    @torch.no_grad()
    def stream(
        self,
        recordings: Iterable[Iterable[Tensor]],
        *,
        word_timestamps: bool = False,
        on_progress: Callable[[float], None] | None = None,
        on_text: Callable[[int, float, str], None] | None = None,
    ) -> Iterator[tuple[int, Segment | Transcription]]:
        """As :meth:`transcribe`, as it comes: of each recording its segments, then the whole.

        No recording is held whole: blocks are taken as they are needed, of one recording after the other, up to some
        batches ahead.

        Args:
            recordings: each gives its blocks, mono float32 ``[S]`` at 16 kHz.
            word_timestamps, on_progress: as of :meth:`transcribe`.
            on_text: called while a batch is decoded, with the number of a recording, where a piece of it begins in
                seconds, and the piece's text up to now, as the decoder writes it: nothing is guarded yet.

        Yields:
            the number of the recording, and what is done of it.
        """
        if word_timestamps and not self.times_words:
            raise UserError(
                "word timestamps are found by the CTC head, and this model has none; train one with a section `ctc` in "
                "its recipe, or leave word timestamps out"
            )
        report = on_progress or (lambda seconds: None)
        done: list[Segment] = []  # of the recording that is not complete yet
        for pool in self._pools(recordings):
            numbered = [(number, item) for number, item in pool if isinstance(item, Piece)]

            def hear(index: int, text: str, numbered: list[tuple[int, Piece]] = numbered) -> None:
                number, piece = numbered[index]
                assert on_text is not None
                on_text(number, piece.start / SAMPLE_RATE, text)

            pieces = [piece for _, piece in numbered]
            segments = iter(self._heard(pieces, word_timestamps, report, hear if on_text else None))
            for number, item in pool:
                if isinstance(item, Piece):
                    done.append(next(segments))
                    yield number, done[-1]
                else:
                    report(max(0.0, item.duration_s - sum(segment.end_s - segment.start_s for segment in done)))
                    text = " ".join(segment.text for segment in done if segment.text)
                    yield number, Transcription(text, item.duration_s, tuple(done))
                    done = []

    def _pools(self, recordings: Iterable[Iterable[Tensor]]) -> Iterator[list[tuple[int, Piece | _End]]]:
        """Pieces, numbered by their recording, and the recordings' ends: in order, some batches at a time."""
        pool: list[tuple[int, Piece | _End]] = []
        batches, waiting_s = 1, 0.0
        for number, blocks in enumerate(recordings):
            end = _End()
            for piece in whole_or_split(end.counting(blocks), self.whole_s, self.whole_s):
                pool.append((number, piece))
                waiting_s += len(piece.waveform) / SAMPLE_RATE
                if waiting_s >= batches * self._max_padded_s:
                    yield pool
                    pool, batches, waiting_s = [], min(2 * batches, _LARGEST_POOL), 0.0
            pool.append((number, end))
        yield pool

    def _heard(
        self,
        pieces: Sequence[Piece],
        word_timestamps: bool,
        report: Callable[[float], None],
        on_text: OnText | None,
    ) -> list[Segment]:
        """Segments in the order of the pieces, which are decoded longest first, so that what does not fit fails at
        once."""
        segments: dict[int, Segment] = {}
        waiting = []
        for index in sorted(range(len(pieces)), key=lambda index: -len(pieces[index].waveform)):
            reason = unlike_speech(pieces[index].waveform) if self._guard else None
            if reason is None and len(pieces[index].waveform):
                waiting.append(index)
            else:
                segments[index] = _without_text(pieces[index], None, reason, word_timestamps)
                report(segments[index].end_s - segments[index].start_s)
        while waiting:
            longest_s = len(pieces[waiting[0]].waveform) / SAMPLE_RATE
            size = max(1, int(self._max_padded_s / max(longest_s, _LEAST_S)))
            batch, waiting = sorted(waiting[:size]), waiting[size:]

            def decode(part: Sequence[int]) -> list[Segment]:
                return self._decoded([pieces[index] for index in part], word_timestamps, _of_rows(part, on_text))

            decoded = in_parts_that_fit(decode, batch)
            segments |= zip(batch, decoded, strict=True)
            report(sum(segment.end_s - segment.start_s for segment in decoded))
        return [segments[index] for index in range(len(pieces))]

    def _decoded(self, pieces: Sequence[Piece], word_timestamps: bool, on_text: OnText | None) -> list[Segment]:
        clips = [leveled(piece.waveform) if self._guard else piece.waveform for piece in pieces]
        lengths = torch.tensor([len(clip) for clip in clips], device=self._model.device)
        frames = self._model.encode(pad_sequence(clips, batch_first=True).to(self._model.device), lengths)
        transcripts = self._model.transcribe_frames(frames, self._tokenizer, on_text, self._generation)
        return [
            self._segment(piece, transcript, _row(frames, row), word_timestamps)
            for row, (piece, transcript) in enumerate(zip(pieces, transcripts, strict=True))
        ]

    def _segment(self, piece: Piece, transcript: Transcript, frames: Frames, word_timestamps: bool) -> Segment:
        """One clip's transcript, guarded and aligned; ``frames`` are the clip's, without padding."""
        text, reason = self._guarded(piece, transcript, frames) if self._guard else (transcript.text, None)
        if not text:
            return _without_text(piece, transcript, reason, word_timestamps)
        start_s = piece.start / SAMPLE_RATE
        aligned = None
        if frames.ctc_logits is not None:
            spelling = self._spelling(text)
            aligned = align(spelling, frames.ctc_logits[0].float().log_softmax(-1), frames.rate)
        return Segment(
            start_s,
            start_s + len(piece.waveform) / SAMPLE_RATE,
            text,
            transcript.ctc_text,
            transcript.truncated,
            aligned.confidence if aligned else None,
            tuple(shifted(word, start_s) for word in aligned.words) if aligned and word_timestamps else None,
            reason,
        )

    def _guarded(self, piece: Piece, transcript: Transcript, frames: Frames) -> tuple[str, Reason | None]:
        """The text that may stand, and why it is another one than the decoder's."""
        text = transcript.text
        if not text:
            return "", None
        if frames.ctc_logits is None:
            shorter = loop_without_head(
                text, truncated=transcript.truncated, duration_s=len(piece.waveform) / SAMPLE_RATE
            )
            return (text, None) if shorter is None else (shorter, "loop")
        if not transcript.ctc_text:
            return "", "ctc_silent"
        if not self._contradicted(text, frames):
            return text, None
        shorter = unlooped(text)
        if shorter != text and not self._contradicted(shorter, frames):
            return shorter, "loop"
        return "", "ctc_disagrees"

    def _contradicted(self, text: str, frames: Frames) -> bool:
        assert frames.ctc_logits is not None
        own, spelled = ctc.greedy(frames.ctc_logits, frames.lengths)[0], self._spelling(text).labels
        num_frames = int(frames.lengths[0])
        if ctc.min_frames(spelled) > num_frames:  # which has no likelihood: so fast a talker, or nobody
            return len(text) > MAX_CHARACTERS_PER_S * num_frames / frames.rate
        scores = ctc.log_likelihood(frames.ctc_logits.expand(2, -1, -1), frames.lengths.expand(2), [own, spelled])
        return contradicts(float(scores[0]), float(scores[1]), len(own), len(spelled))

    def _spelling(self, text: str) -> Spelling:
        assert self._model.ctc_vocabulary is not None
        return Spelling.of(text, self._model.ctc_vocabulary)


@dataclass
class _End:
    """The end of a recording."""

    samples: int = 0

    def counting(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The blocks, counted as they are taken."""
        for block in blocks:
            self.samples += len(block)
            yield block

    @property
    def duration_s(self) -> float:
        """Of the recording, once all of it was taken."""
        return self.samples / SAMPLE_RATE


def _of_rows(numbers: Sequence[int], on_text: OnText | None) -> OnText | None:
    """Hears of the rows of a batch under their numbers elsewhere."""
    return None if on_text is None else lambda row, text: on_text(numbers[row], text)


def _row(frames: Frames, row: int) -> Frames:
    """One clip of a batch, without padding."""
    size = int(frames.lengths[row])
    logits = frames.ctc_logits
    return Frames(
        frames.values[row : row + 1, :size],
        frames.lengths[row : row + 1],
        frames.rate,
        None if logits is None else logits[row : row + 1, :size],
    )


def _without_text(piece: Piece, transcript: Transcript | None, reason: Reason | None, word_timestamps: bool) -> Segment:
    start_s = piece.start / SAMPLE_RATE
    end_s = start_s + len(piece.waveform) / SAMPLE_RATE
    ctc_text = transcript.ctc_text if transcript else None
    truncated = bool(transcript and transcript.truncated)
    return Segment(start_s, end_s, "", ctc_text, truncated, None, () if word_timestamps else None, reason)
