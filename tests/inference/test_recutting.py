"""Cuts within speech: the model's scores of the chunks decide where a long recording is cut."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.models import assemble
from tiny_audio import ctc
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference import recutting, transcriber
from tiny_audio.inference.activity import Loudness
from tiny_audio.inference.chunking import Chunk, ChunkDurations, split_at_pauses
from tiny_audio.inference.pipeline import TinyAudioPipeline
from tiny_audio.inference.recutting import ModelScorer, Recutter, Score
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.inference.word_times import Spelling
from tiny_audio.model.decoding import GenerationConfig

SHORTEST_S, LONGEST_S = 0.5, 3.0
SENTENCES_S = [1.5, 2.1, 0.8, 2.6, 1.2, 1.9, 2.4, 1.1] * 4
BAD, GOOD = 300.0, 1.0


def speech() -> Tensor:
    """Return noise that imitates sentences without pauses. Each has its own loudness, and is softer at four points."""
    parts = []
    for index, seconds in enumerate(SENTENCES_S):
        part = np.full(round(seconds * SAMPLE_RATE), 0.5 + 0.01 * index)
        for softer in (0.2, 0.45, 0.7):
            begin = round(softer * len(part))
            part[begin : begin + 800] *= 0.4
        part[-800:] *= 0.5
        parts.append(part)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], sum(map(len, parts)))
    return torch.from_numpy(np.concatenate(parts) * signs).float()


class OneSentence:
    """A scorer that gives a good score only to a single complete sentence. It counts its calls and waveforms."""

    def __init__(self, always: float | None = None) -> None:
        self.calls, self.waveforms, self._always = 0, 0, always

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Score]:
        self.calls, self.waveforms = self.calls + 1, self.waveforms + len(waveforms)
        costs = [self._cost(waveform) if self._always is None else self._always for waveform in waveforms]
        return [Score(cost, cost, 10) for cost in costs]

    def _cost(self, waveform: Tensor) -> float:
        levels, counts = torch.unique(waveform.abs().mul(100).round(), return_counts=True)
        main = levels[(levels >= 50) & (counts > 1600)]
        if len(main) != 1:
            return BAD
        wanted = SENTENCES_S[int(main) - 50] * SAMPLE_RATE
        return GOOD if abs(len(waveform) - wanted) < 1600 else BAD


def plain(waveform: Tensor) -> list[Chunk]:
    durations = ChunkDurations(LONGEST_S, LONGEST_S, LONGEST_S / 2)
    return list(split_at_pauses(waveform.split(5000), durations, Loudness()))


def recut(chunks: list[Chunk], scorer: OneSentence, most_calls: float = math.inf) -> list[Chunk]:
    return list(Recutter(scorer, SHORTEST_S, LONGEST_S)(chunks, lambda: scorer.calls >= most_calls))


def test_cuts_move_to_the_ends_of_sentences() -> None:
    waveform = speech()
    before = plain(waveform)
    assert any(chunk.overlap for chunk in before)
    found = recut(before, OneSentence())
    starts = np.cumsum([0.0, *SENTENCES_S[:-1]])
    assert [chunk.start / SAMPLE_RATE for chunk in found] == pytest.approx(starts.tolist(), abs=0.1)
    for chunk, following in itertools.pairwise([*found, None]):
        end = chunk.start + len(chunk.waveform)
        assert chunk.overlap == 0
        assert end == (len(waveform) if following is None else following.start)
        assert torch.equal(chunk.waveform, waveform[chunk.start : end])


def test_chunks_with_good_scores_are_not_changed() -> None:
    chunks = plain(speech())
    scorer = OneSentence(GOOD)
    assert recut(chunks, scorer) == chunks
    assert scorer.waveforms < 2 * len(chunks)


def test_a_cut_without_overlap_at_the_end_of_a_section_moves_too() -> None:
    waveform, size, overlap = speech(), round(2.2 * SAMPLE_RATE), 1600
    # Every second cut has no overlap, like a cut at a brief pause. One such cut ends the first section.
    chunks = [
        Chunk(start, waveform[start : start + size + index % 2 * overlap], index % 2 * overlap)
        for index, start in enumerate(range(0, len(waveform) - size, size))
    ]
    found = recut(chunks, OneSentence())
    until_s = 1.5 * recutting._SECTION * LONGEST_S
    starts = [start for start in np.cumsum([0.0, *SENTENCES_S]).tolist() if start < until_s]
    assert [chunk.start / SAMPLE_RATE for chunk in found[: len(starts)]] == pytest.approx(starts, abs=0.1)


@pytest.mark.parametrize(("num_bad", "is_searched"), [(0, False), (1, False), (2, True)])
def test_a_search_starts_if_a_quarter_of_the_chunks_is_bad(num_bad: int, *, is_searched: bool) -> None:
    chunks = plain(speech()[: 13 * SAMPLE_RATE])
    assert len(chunks) == 6
    first_calls: list[int] = []

    def scorer(waveforms: Sequence[Tensor]) -> list[Score]:
        first_calls.append(len(waveforms))
        costs = [BAD if index < num_bad else GOOD for index in range(len(waveforms))]
        return [Score(cost, cost, 10) for cost in costs]

    list(Recutter(scorer, SHORTEST_S, LONGEST_S)(chunks, lambda: False))
    assert (len(first_calls) > 1) == is_searched


def test_chunks_between_pauses_are_not_scored() -> None:
    one = speech()[: 2 * SAMPLE_RATE]
    chunks = plain(torch.cat([one, torch.zeros(SAMPLE_RATE)] * 3))
    scorer = OneSentence(BAD)
    assert recut(chunks, scorer) == chunks
    assert scorer.calls == 0


@pytest.mark.parametrize("calls", [0, 1, 5])
def test_a_stopped_search_tries_no_more_cuts(calls: int) -> None:
    chunks = plain(speech())
    scorer = OneSentence(BAD)
    assert recut(chunks, scorer, calls) == chunks
    assert scorer.calls == calls


def test_the_model_scores_fewer_sections_if_all_scores_are_bad() -> None:
    """All scores are bad if the recording is music, or in a language that the model does not know."""
    pause = torch.zeros(SAMPLE_RATE)
    one = torch.cat([pause, speech()[: 5 * SAMPLE_RATE], pause])
    chunks = plain(torch.cat([one] * 15))
    scorer, single = OneSentence(BAD), OneSentence(BAD)
    assert recut(chunks, scorer) == chunks
    recut(plain(one), single)
    # After the failures, 1, 3 and 7 sections are skipped. Thus, only sections 1, 3, 7 and 15 are scored.
    assert scorer.calls == 4 * single.calls


def test_a_search_stops_early_if_the_first_chunks_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = plain(speech()[: 18 * SAMPLE_RATE])
    stopping, searching = OneSentence(BAD), OneSentence(BAD)
    assert recut(chunks, stopping) == chunks
    monkeypatch.setattr(recutting, "_TRIED", math.inf)
    assert recut(chunks, searching) == chunks
    assert len(chunks) < stopping.waveforms < 0.5 * searching.waveforms


@torch.no_grad()
@pytest.mark.parametrize("settings", [None, GenerationConfig(max_new_tokens=20, num_beams=3, ctc_weight=0.4)])
def test_scores_are_losses_and_do_not_depend_on_the_batch(settings: GenerationConfig | None) -> None:
    model, tokenizer = assemble()
    generator = torch.Generator().manual_seed(0)
    clips = [0.1 * torch.randn(size, generator=generator) for size in (16000, 24000, 9000)]
    scores = ModelScorer(model.eval(), tokenizer, 2.0, threading.Lock(), settings)(clips)
    vocabulary = model.ctc_vocabulary
    assert vocabulary is not None
    for clip, score in zip(clips, scores, strict=True):
        frames = model.encode(clip[None], torch.tensor([len(clip)]))
        assert frames.ctc_logits is not None
        (transcript,) = model.transcribe_frames(frames, tokenizer, settings=settings)
        labels = Spelling.of(transcript.text, vocabulary).labels
        ids = tokenizer.encode(transcript.text, add_special_tokens=False)
        losses = model.score_frames(frames, [torch.tensor([*ids, model.config.end_token_id])], [labels])
        own = ctc.log_likelihood(frames.ctc_logits, frames.lengths, ctc.greedy(frames.ctc_logits, frames.lengths))
        assert losses.ctc_loss is not None
        above_own = max(0.0, float(losses.ctc_loss + own))
        assert score.cost == pytest.approx(float(losses.decoder_loss + losses.ctc_loss), rel=1e-3)
        assert score.excess == pytest.approx(float(losses.decoder_loss) + above_own, rel=1e-3)
        assert score.num_characters == len(labels)


@pytest.mark.usefixtures("pauses_by_loudness")
@pytest.mark.parametrize(
    ("head", "known", "search"), [(True, True, True), (True, False, True), (False, True, True), (True, True, False)]
)
def test_a_model_chooses_cuts_if_it_has_a_ctc_head_and_known_durations(head: bool, known: bool, search: bool) -> None:
    model, tokenizer = assemble(ctc=head)
    durations = {"min_s": 0.5, "median_s": 1.0, "p95_s": 2.0, "max_s": 2.5}
    model.config.clip_durations = durations if known else None
    waveform = speech()[: 4 * SAMPLE_RATE]
    recognizer = Transcriber(model, tokenizer, search_cuts=search)
    whole, in_blocks = list(recognizer.chunks([waveform])), list(recognizer.chunks(waveform.split(7777)))
    assert (recognizer._recutter is not None) == (head and known and search)
    if recognizer._recutter is not None:
        own = GenerationConfig(max_new_tokens=7, num_beams=2 * recutting._MAX_BEAMS)
        found = Transcriber(model, tokenizer, generation=own)._recutter
        assert found is not None
        assert isinstance(found.scorer, ModelScorer)
        assert found.scorer._settings == own.model_copy(update={"num_beams": recutting._MAX_BEAMS})
    assert [(one.start, len(one.waveform)) for one in whole] == [(one.start, len(one.waveform)) for one in in_blocks]
    assert max(len(one.waveform) for one in whole) <= recognizer.max_chunk_s * SAMPLE_RATE


@pytest.mark.parametrize("search", [True, False])
def test_the_pipeline_searches_only_if_it_may(search: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = assemble()
    model.config.clip_durations = {"min_s": 0.5, "median_s": 1.0, "p95_s": 2.0, "max_s": 2.5}
    built = []

    def note(*arguments: Any) -> Recutter:
        built.append(arguments)
        return Recutter(*arguments)

    monkeypatch.setattr(transcriber, "Recutter", note)
    TinyAudioPipeline(model, tokenizer, device="cpu")(np.zeros(16_000, np.float32), search_cuts=search)
    assert bool(built) == search
