"""Cut training clips between words.

A chunk of a long recording may begin and end within a sentence, and may contain parts of two sentences. A model that
was trained only on whole sentences makes many errors in such chunks. Excerpts are training clips that resemble such
chunks.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import MIN_DURATION_S
from tiny_audio.config import UserError
from tiny_audio.data.clips import Clip
from tiny_audio.data.evaluation_clips import UNBOUNDED_DURATION_S
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.activity import FRAME, levels_of, smoothed, speech_level
from tiny_audio.inference.spoken_forms import spoken
from tiny_audio.inference.word_times import Spelling, Word, align
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.sources import Dropped

SPEAKER = "speaker"
"""Metadata column that names the speaker. Only clips of the same speaker are joined."""
_LEAST_CONFIDENCE = 0.1
"""A clip is not used if the alignment of its text has less confidence. The value was tested on 282 clips of CMU AN4,
with a CTC head that was trained for 300 steps. Each clip was aligned with its own transcript and with that of
another clip. The confidence was lower for 1 of the 282 right transcripts, and for 268 of the 282 wrong transcripts."""
_SHORTEST_S, _LONGEST_QUANTILE = 1.0, 0.95
"""An excerpt has as many words as fit into a random duration. The shortest duration is ``_SHORTEST_S``. The longest is
the quantile ``_LONGEST_QUANTILE`` of the clips' durations."""
_SILENCE_S = (0.03, 0.2)
"""Minimum and maximum of the random duration of silence that is kept before a clip's first and after its last sound."""
_INACCURACY_S = 0.02
"""The start and the end of an excerpt are shifted at random by at most this much. Chunks of long recordings are not cut
exactly between words, so excerpts should not be, either."""
_SHORTEST_WORD_S = 0.05
"""A clip with a shorter word is not used, because its cuts are probably wrong."""
_MARGIN_S = 0.04
"""The search for a cut between two words begins this long before the first word ends. It ends this long after the
second word starts."""
_SMOOTHED = 7
"""Number of frames in the moving average that finds the quietest point between two words."""
_MAX_TRIES = 100
"""Maximum number of clips to draw until a clip can be used."""


@dataclass(frozen=True)
class Excerpt:
    """A part of one clip, or of several joined clips of one speaker."""

    waveform: Tensor
    """``[S]`` float32 at 16 kHz."""
    text: str
    metadata: dict[str, str]
    """The metadata that all joined clips have in common, such as the speaker."""


@dataclass(frozen=True)
class _Words:
    """The n words of a clip, or of joined clips."""

    waveform: Tensor
    """``[S]`` float32 at 16 kHz."""
    texts: tuple[str, ...]
    cuts: tuple[int, ...]
    """n + 1 positions in samples: before the first word, between the words, and after the last word."""
    metadata: dict[str, str]

    def __add__(self, other: _Words) -> _Words:
        size = len(self.waveform)
        return _Words(
            torch.cat([self.waveform, other.waveform]),
            self.texts + other.texts,
            self.cuts + tuple(size + cut for cut in other.cuts[1:]),
            {key: value for key, value in self.metadata.items() if other.metadata.get(key) == value},
        )

    def trimmed(self, before: int, after: int) -> _Words:
        """Return the words with at most this many samples before the first cut and after the last cut.

        The first and the last cut of the result are the start and the end of its waveform.
        """
        start, end = max(0, self.cuts[0] - before), self.cuts[-1] + after
        waveform = self.waveform[start:end]
        cuts = (0, *(cut - start for cut in self.cuts[1:-1]), len(waveform))
        return _Words(waveform, self.texts, cuts, self.metadata)


class Excerpts:
    """Makes excerpts. The words of the clips are found by forced alignment with a model's CTC head.

    Args:
        model: a model with a CTC head.
        clips: at least one clip. Clips without a speaker are joined with each other.
        seed: seed for all random choices.

    Raises:
        UserError: the model has no CTC head.
    """

    def __init__(self, model: TinyAudioModel, clips: Sequence[Clip], seed: int) -> None:
        if model.ctc_head is None:
            raise UserError(
                "the model has no CTC head, which finds the times of words; train a model with a section `ctc` in its "
                "recipe"
            )
        self._model, self._clips, self._seed = model, clips, seed
        self._cuts: dict[int, tuple[int, ...]] = {}
        self.dropped: dict[int, Dropped] = {}
        """Clips that cannot be used, by index. At first, only clips that are too long are listed."""
        self._max_s = model.longest_clip_s(UNBOUNDED_DURATION_S)
        self._of_speaker: dict[str | None, list[int]] = defaultdict(list)
        for index, clip in enumerate(clips):
            duration_s = clip.utterance.duration_s
            if duration_s > self._max_s:
                why = f"{clip.id} lasts {duration_s:.2f} s; the model takes at most {self._max_s:g} s"
                self.dropped[index] = Dropped(clip.id, "too_long", why)
            self._of_speaker[clip.utterance.metadata.get(SPEAKER)].append(index)
        quantile = float(np.quantile([clip.utterance.duration_s for clip in clips], _LONGEST_QUANTILE))
        self._longest_s = min(max(_SHORTEST_S, quantile), self._max_s)

    def make(self, index: int) -> Excerpt:
        """Return an excerpt. On the same device, it depends only on the model, the clips, the seed and ``index``.

        Raises:
            UserError: none of the clips that were tried can be used, so the model or the data is probably wrong.
        """
        rng = random.Random(f"{self._seed}:{index}")
        samples = rng.uniform(_SHORTEST_S, self._longest_s) * SAMPLE_RATE
        words = self._draw(range(len(self._clips)), rng)
        if words is None:
            problem = next(iter(self.dropped.values()))
            raise UserError(
                f"{_MAX_TRIES} random clips cannot be cut between words; the first problem: {problem.reason}, "
                f"{problem.detail}"
            )
        same_speaker = self._of_speaker[words.metadata.get(SPEAKER)]
        first = rng.randrange(len(words.texts))
        while words.cuts[-1] - words.cuts[first] < samples:
            more = self._draw(same_speaker, rng)
            if more is None:
                break
            words += more
        fitting = [cut for cut in words.cuts[first + 1 :] if cut - words.cuts[first] <= samples]
        last = first + max(1, len(fitting))
        start, end = (
            max(0, words.cuts[word] + round(rng.uniform(-_INACCURACY_S, _INACCURACY_S) * SAMPLE_RATE))
            for word in (first, last)
        )
        end = max(end, start + round(MIN_DURATION_S * SAMPLE_RATE))
        return Excerpt(words.waveform[start:end].clone(), " ".join(words.texts[first:last]), words.metadata)

    def _draw(self, candidates: Sequence[int], rng: random.Random) -> _Words | None:
        """Draw a clip, and return its words with a random silence before and after them.

        Return None if ``_MAX_TRIES`` drawn clips cannot be used.
        """
        for _ in range(_MAX_TRIES):
            index = rng.choice(candidates)
            words = None if index in self.dropped else self._words(index)
            if words is not None:
                before, after = (round(rng.uniform(*_SILENCE_S) * SAMPLE_RATE) for _ in range(2))
                return words.trimmed(before, after)
        return None

    def _words(self, index: int) -> _Words | None:
        """Return the words of a clip. If the clip cannot be used, return None and add it to ``dropped``."""
        clip = self._clips[index]
        texts = _with_punctuation(clip.utterance.text)
        try:
            waveform = clip.load(self._max_s)
        except AudioError as error:
            self.dropped[index] = Dropped(clip.id, error.reason, str(error))
            return None
        if index not in self._cuts:
            found = self._align(" ".join(filter(_is_spoken, clip.utterance.text.split())), waveform)
            cuts = () if found is None else _cuts_between(found, waveform)
            if min(np.diff(cuts), default=0) < _SHORTEST_WORD_S * SAMPLE_RATE:
                why = f"the model cannot find the words of {clip.utterance.text!r} in {clip.id}"
                self.dropped[index] = Dropped(clip.id, "not_aligned", why)
                return None
            self._cuts[index] = cuts
        return _Words(waveform, texts, self._cuts[index], dict(clip.utterance.metadata))

    @property
    def num_used(self) -> int:
        """The number of clips that were used."""
        return len(self._cuts)

    @torch.no_grad()
    def _align(self, text: str, waveform: Tensor) -> tuple[Word, ...] | None:
        """Return the words with their times. Return None if the confidence is too low, or if a word cannot be found."""
        model = self._model
        lengths = torch.tensor([len(waveform)], device=model.device)
        frames = model.encode(waveform[None].to(model.device), lengths)
        assert frames.ctc_logits is not None
        assert model.ctc_vocabulary is not None
        spelling = Spelling.of(text, model.ctc_vocabulary)
        log_probs = frames.ctc_logits[0, : int(frames.lengths[0])].float().log_softmax(-1)
        found = align(spelling, log_probs, frames.rate, len(waveform) / SAMPLE_RATE)
        if (found.confidence or 0.0) < _LEAST_CONFIDENCE or any(word.confidence is None for word in found.words):
            return None
        return found.words


def _is_spoken(word: str) -> bool:
    """Whether a word has a letter, a digit or a symbol that is read aloud. A dash, for example, has none of them."""
    return any(character.isalnum() for character in spoken(word))


def _with_punctuation(text: str) -> tuple[str, ...]:
    """Return the spoken words of a text. Unspoken words, such as dashes, are added to the spoken word before them.

    Unspoken words at the start of the text are added to the first spoken word.
    """
    found: list[str] = []
    before: list[str] = []
    for word in text.split():
        if _is_spoken(word):
            found.append(" ".join([*before, word]))
            before = []
        elif found:
            found[-1] += f" {word}"
        else:
            before.append(word)
    return tuple(found)


def _cuts_between(words: Sequence[Word], waveform: Tensor) -> tuple[int, ...]:
    """Return the start of the first word, the quietest points between the words, and the end of the last word.

    A CTC head marks only a part of each word. The first word may therefore start earlier, at the first sound of the
    clip. The last word may end later, at the last sound. The cut between two words is after the middle of the first
    word and before the middle of the second.
    """
    levels = levels_of(waveform)
    smooth = smoothed(levels, _SMOOTHED)
    sounds = np.flatnonzero(levels > speech_level(levels)) * FRAME
    cuts = [min([round(words[0].start_s * SAMPLE_RATE), *sounds[:1].tolist()])]
    for before, after in pairwise(words):
        begin = max(_frame(before.end_s - _MARGIN_S), _frame((before.start_s + before.end_s) / 2))
        end = min(_frame(after.start_s + _MARGIN_S), _frame((after.start_s + after.end_s) / 2))
        begin = min(begin, len(smooth) - 1)
        quietest = begin + int(smooth[begin : max(begin + 1, end)].argmin())
        cuts.append(quietest * FRAME + FRAME // 2)
    last = max([round(words[-1].end_s * SAMPLE_RATE), *(sounds[-1:] + FRAME).tolist()])
    return (*cuts, min(last, len(waveform)))


def _frame(time_s: float) -> int:
    return max(0, int(time_s * SAMPLE_RATE / FRAME))
