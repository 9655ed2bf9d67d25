"""Choose better cuts within speech by the model's own scores.

If a chunk begins or ends within a sentence, a model that was trained only on whole sentences may write words that were
not spoken. Therefore the texts of the chunks are checked, one section at a time. A section is a series of chunks
without gaps between them. If a section has a cut within speech, the model transcribes its chunks, and the decoder and
the CTC head score the texts. If at least a quarter of the chunks have bad scores, other cuts are scored in the same
way. The cuts with the lowest total cost (see :class:`Score`) are chosen.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tiny_audio import ctc
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.activity import FRAME, levels_of, smoothed
from tiny_audio.inference.chunking import Chunk
from tiny_audio.inference.filters import boost_quiet
from tiny_audio.inference.word_times import Spelling
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.runtime.device import in_parts_that_fit

# The WERs below were measured on the recording of ``benchmarks/chunking.py --seed 43 --only joined``.
_SECTION = 6
"""Approximate maximum duration of a section, as a multiple of the maximum duration of a chunk."""
_MAX_BEAMS = 4
"""Maximum number of beams for the texts of possible chunks. With 4, 2 and 1 beams, the WER was 4.2, 4.2 and 5.9 %. On
the recording of ``--seed 41`` instead, it was 2.6 and 3.1 % with 4 and 2 beams."""
_BAD = 1.0
"""A chunk is bad if its ``Score.excess`` is more than this many nats per character. In the quickstart's sentences,
joined without pauses, most correct texts had at most 0.7 nats per character, and most wrong texts had 1.3 or more."""
_TO_SEARCH = 1 / 4
"""Minimum share of bad chunks in a section to start a search. In sections of the quickstart's sentences, at least 31 %
of the chunks were bad."""
_FAILED = 1 / 2
"""If at least this share of the best chunks is bad, the search fails. In the quickstart's sentences, the share was at
most 0.33 at the first check (see ``_TRIED``). If the sentences were limited to the band of telephones, it was at least
0.5, because the quickstart's model does not know such audio."""
_SPACING = 24
"""The minimum distance between two possible cuts is the maximum duration of a chunk, divided by this number. The WER
was 6.2 % with 16, 4.2 % with 24 and 4.5 % with 36. If each sentence was transcribed on its own, it was 4.5 %."""
_ENDS = 12
"""For each possible start of a chunk, at most this many possible ends are tried. With 8 ends, the WER was 11.5 %."""
_MARGIN = 20.0
"""The cost of a possible cut is the total cost of the best chunks up to this cut. If a later cut costs less by more
than this many nats, the search drops the earlier cut. With 10 nats, the WER was the same, and the search 8 % faster."""
_TRIED = 2
"""A search checks whether it fails (see ``_FAILED``) when it has covered this many times the maximum duration of a
chunk, and again at its end."""
_SMOOTHED = 7
"""Number of frames in the moving average that finds quiet points."""


@dataclass(frozen=True)
class Score:
    """How badly the model's text of a chunk fits the chunk."""

    cost: float
    """Sum of the negative log-likelihoods of the text under the decoder and the CTC head, in nats."""
    excess: float
    """``-log p_decoder(text) + max(0, log p_ctc(own) - log p_ctc(text))`` in nats, where ``own`` is the text of the CTC
    head's greedy decoding."""
    num_characters: int
    """Number of the text's characters that the CTC head can spell."""

    @property
    def is_bad(self) -> bool:
        """Whether the text probably differs from the spoken words."""
        return self.excess > _BAD * (self.num_characters + 1)


class Scorer(Protocol):
    """Scores chunks with a model."""

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Score]:
        """Return the score of each waveform ``[S]``."""
        ...


class ModelScorer:
    """Scores chunks by the texts that the model generates for them.

    Args:
        model: a model with a CTC head.
        tokenizer: the model's tokenizer.
        max_padded_s: maximum seconds of audio in a batch, including padding.
        lock: held while the model is used.
        settings: how texts are generated. By default, the model's own settings. Texts never use more than
            ``_MAX_BEAMS`` beams.
    """

    def __init__(
        self,
        model: TinyAudioModel,
        tokenizer: Any,
        max_padded_s: float,
        lock: threading.Lock,
        settings: GenerationConfig | None = None,
    ) -> None:
        self._model, self._tokenizer, self._max_padded_s, self._lock = model, tokenizer, max_padded_s, lock
        settings = settings or model.generation
        self._settings = settings.model_copy(update={"num_beams": min(settings.num_beams, _MAX_BEAMS)})

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[Score]:
        """See :class:`Scorer`."""
        scores: dict[int, Score] = {}
        waiting = sorted(range(len(waveforms)), key=lambda index: -len(waveforms[index]))
        while waiting:
            size = max(1, int(self._max_padded_s * SAMPLE_RATE / len(waveforms[waiting[0]])))
            batch, waiting = waiting[:size], waiting[size:]
            with self._lock:
                found = in_parts_that_fit(lambda part: self._scores([waveforms[index] for index in part]), batch)
            scores |= zip(batch, found, strict=True)
        return [scores[index] for index in range(len(waveforms))]

    def _scores(self, waveforms: Sequence[Tensor]) -> list[Score]:
        model, vocabulary = self._model, self._model.ctc_vocabulary
        assert vocabulary is not None
        clips = [boost_quiet(waveform) for waveform in waveforms]
        lengths = torch.tensor([len(clip) for clip in clips], device=model.device)
        frames = model.encode(pad_sequence(clips, batch_first=True).to(model.device), lengths)
        assert frames.ctc_logits is not None
        texts = [one.text for one in model.transcribe_frames(frames, self._tokenizer, settings=self._settings)]
        rows = [[*self._tokenizer.encode(text, add_special_tokens=False), model.config.end_token_id] for text in texts]
        labels = [Spelling.of(text, vocabulary, read_numbers=False).labels for text in texts]
        losses = model.score_frames(frames, [torch.tensor(row, device=model.device) for row in rows], labels)
        assert losses.ctc_loss is not None
        own = ctc.log_likelihood(frames.ctc_logits, frames.lengths, ctc.greedy(frames.ctc_logits, frames.lengths))
        costs = losses.decoder_loss + losses.ctc_loss
        excesses = losses.decoder_loss + (losses.ctc_loss + own).clamp(min=0)
        found = zip(costs.tolist(), excesses.tolist(), labels, strict=True)
        return [Score(cost, excess, len(row)) for cost, excess, row in found]


@dataclass(frozen=True)
class Recutter:
    """Finds better cuts for chunks that were cut within speech and have bad scores."""

    scorer: Scorer
    shortest_s: float
    """Minimum duration of a chunk."""
    longest_s: float
    """Maximum duration of a chunk."""

    def __call__(self, chunks: Iterable[Chunk], is_stopped: Callable[[], bool]) -> Iterator[Chunk]:
        """Yield the chunks of a recording, some of them with other cuts. At most a few chunks are in memory.

        The search for better cuts fails if at least half of the chunks are bad even with the best cuts. A first check
        takes place near the start of a section (see ``_TRIED``). After a failure, the original chunks are kept, because
        the model probably does not know this kind of speech. To save time, the next sections with cuts within speech
        are not checked: one after the first failure, three after the second failure in a row, then seven, and so on.

        Args:
            chunks: the chunks in order.
            is_stopped: returns True if the chunks are no longer needed. Then no more cuts are tried.
        """
        section: list[Chunk] = []
        to_skip = failures = 0
        for chunk in itertools.chain(chunks, [None]):
            if section and (chunk is None or chunk.start > _end(section[-1]) or self._is_full(section)):
                was_cut_in_speech = any(one.overlap for one in section)
                if was_cut_in_speech and to_skip:
                    to_skip -= 1
                elif was_cut_in_speech and not is_stopped() and self._are_bad(section):
                    better = self._best(section, is_stopped)
                    section, failures = (section, failures + 1) if better is None else (better, 0)
                    to_skip = 2**failures - 1
                # No other cut was tried at the end of a full section. Keep the last chunk, so that the search of the
                # next section includes this cut.
                num_done = len(section) - (chunk is not None and chunk.start <= _end(section[-1]))
                yield from section[:num_done]
                section = section[num_done:]
            if chunk is not None:
                section.append(chunk)

    def _is_full(self, section: Sequence[Chunk]) -> bool:
        return len(section) > 1 and _end(section[-1]) - section[0].start > _SECTION * self.longest_s * SAMPLE_RATE

    def _are_bad(self, section: Sequence[Chunk]) -> bool:
        return _share_of_bad(self.scorer([chunk.waveform for chunk in section])) >= _TO_SEARCH

    def _best(self, section: Sequence[Chunk], is_stopped: Callable[[], bool]) -> list[Chunk] | None:
        """Return the best chunks of a section. None if the search fails (see :meth:`__call__`)."""
        waveform, overlap = _joined(section), section[-1].overlap
        places, levels = self._quiet_points(waveform, len(waveform) - overlap)
        path = self._best_path(waveform, places, levels, is_stopped)
        if not path or _share_of_bad([score for _, _, score in path]) >= _FAILED:
            return None
        return [
            Chunk(section[0].start + start, waveform[start:end].clone(), overlap if end == len(waveform) else 0)
            for start, end, _ in path
        ]

    def _best_path(
        self, waveform: Tensor, places: Sequence[int], levels: Sequence[float], is_stopped: Callable[[], bool]
    ) -> list[tuple[int, int, Score]]:
        """Return the starts, ends and scores of the best chunks.

        Empty if no series of chunks covers the waveform, if too many of the first chunks are bad (see ``_TRIED``), or
        if the search is stopped.

        Args:
            waveform: ``[S]``.
            places: indices of the samples at which chunks may start and end, beginning with 0 and ending with S.
            levels: the level at each of ``places``.
            is_stopped: see :meth:`__call__`.
        """
        costs = [0.0, *[math.inf] * (len(places) - 1)]
        before: dict[int, tuple[int, Score]] = {}
        to_check = _TRIED * self.longest_s * SAMPLE_RATE
        for first, start in enumerate(places[:-1]):
            if is_stopped():
                return []
            if math.isinf(costs[first]) or costs[first] > min(costs[first:]) + _MARGIN:
                continue
            if start >= to_check:
                best = min(range(first, len(places)), key=costs.__getitem__)
                if _share_of_bad([score for _, _, score in _path_to(best, places, before)]) >= _FAILED:
                    return []
                to_check = math.inf
            ends = [
                index
                for index in range(first + 1, len(places))
                if self.shortest_s <= (places[index] - start) / SAMPLE_RATE <= self.longest_s
            ]
            ends = sorted(ends, key=lambda index: levels[index])[:_ENDS]
            for last, score in zip(ends, self.scorer([waveform[start : places[end]] for end in ends]), strict=True):
                if costs[first] + score.cost < costs[last]:
                    costs[last], before[last] = costs[first] + score.cost, (first, score)
        return _path_to(len(places) - 1, places, before)

    def _quiet_points(self, waveform: Tensor, last_start: int) -> tuple[list[int], list[float]]:
        """Return the indices of the samples at which chunks may start and end, and the level at each.

        These are the start and the end of the waveform, and the minima of the level up to ``last_start``. The end of
        the waveform has the level -inf, so it is the first choice as the end of a chunk.
        """
        smooth = smoothed(levels_of(waveform), _SMOOTHED)
        half = max(1, round(self.longest_s * SAMPLE_RATE / FRAME / _SPACING))
        around = np.lib.stride_tricks.sliding_window_view(np.pad(smooth, half, mode="edge"), 2 * half + 1)
        quiet = np.flatnonzero(smooth == around.min(1))
        quiet = quiet[(quiet > 0) & (quiet * FRAME <= min(last_start, len(waveform) - 1))]
        return [0, *(quiet * FRAME).tolist(), len(waveform)], [math.inf, *smooth[quiet].tolist(), -math.inf]


def _path_to(last: int, places: Sequence[int], before: Mapping[int, tuple[int, Score]]) -> list[tuple[int, int, Score]]:
    """Return the starts, ends and scores of the best chunks up to ``places[last]``.

    ``before`` maps the index of a chunk's end in ``places`` to the index of its start and to its score.
    """
    path = []
    while last in before:
        first, score = before[last]
        path.append((places[first], places[last], score))
        last = first
    return path[::-1]


def _share_of_bad(scores: Sequence[Score]) -> float:
    return sum(score.is_bad for score in scores) / len(scores)


def _end(chunk: Chunk) -> int:
    return chunk.start + len(chunk.waveform)


def _joined(section: Sequence[Chunk]) -> Tensor:
    """Return the waveform of chunks that overlap or follow each other directly."""
    own = [chunk.waveform[: len(chunk.waveform) - chunk.overlap] for chunk in section[:-1]]
    return torch.cat([*own, section[-1].waveform])
