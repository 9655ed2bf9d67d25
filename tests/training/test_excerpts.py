"""Excerpts of clips. The clips consist of tones, so a test knows the words in each excerpt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from tests.support.models import assemble
from tiny_audio.config import UserError
from tiny_audio.ctc import CtcVocabulary, greedy
from tiny_audio.data.clips import Clip
from tiny_audio.evaluation.data import read_data
from tiny_audio.frames import SAMPLE_RATE, Frames
from tiny_audio.inference.word_times import Word
from tiny_audio.training import excerpts as module
from tiny_audio.training.excerpts import Excerpts, _cuts_between

LETTERS = "abcdefgh"
FRAME = SAMPLE_RATE // 50
LETTER_S, GAP_S = 0.1, 0.1
BLANK = 20.0 * torch.nn.functional.one_hot(torch.tensor(0), len(LETTERS) + 1)
WORDS = ("cab", "bad", "feed", "had", "age", "hag", "deaf", "g")


class TonesModel:
    """A stand-in for a model whose CTC head finds letters perfectly. Each letter is a tone of its own frequency."""

    ctc_head = object()
    ctc_vocabulary = CtcVocabulary(tuple(LETTERS))
    device = torch.device("cpu")

    def longest_clip_s(self, unbounded_s: float) -> float:
        return 20.0

    def encode(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        frames = waveforms.unfold(1, FRAME, FRAME)
        powers = torch.fft.rfft(frames).abs()[..., 10 : 10 + 4 * len(LETTERS) : 4]
        # A frame with a tone has the label of its letter. A silent frame has the blank.
        logits = torch.cat([torch.full_like(powers[..., :1], 10.0), powers], -1)
        return Frames(powers, torch.tensor([frames.shape[1]]), 50.0, logits)

    def text_of(self, waveform: Tensor) -> str:
        """Return the letters in a waveform, without spaces."""
        found = self.encode(waveform[None], torch.tensor([len(waveform)]))
        assert found.ctc_logits is not None
        (labels,) = greedy(found.ctc_logits, found.lengths)
        return self.ctc_vocabulary.decode(labels)


class SpikesModel(TonesModel):
    """Like :class:`TonesModel`, but only the first or the last frame of each tone has a label, as in real CTC heads."""

    def __init__(self, *, last: bool) -> None:
        self.last = last

    def encode(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        found = super().encode(waveforms, lengths)
        assert found.ctc_logits is not None
        labels = found.ctc_logits.argmax(-1)
        other = torch.zeros_like(labels, dtype=torch.bool)
        same = labels[:, 1:] == labels[:, :-1]
        other[:, slice(None, -1) if self.last else slice(1, None)] = same
        return replace(found, ctc_logits=found.ctc_logits.masked_fill(other[..., None], 0.0) + other[..., None] * BLANK)


def spoken(text: str, rng: np.random.Generator) -> np.ndarray:
    """Return tones for the letters of a text, with a pause between words, and silence at the start and the end."""
    pieces = [np.zeros(int(rng.uniform(0.3, 0.6) * SAMPLE_RATE))]
    for word in text.split():
        for letter in word:
            frequency = 50 * (10 + 4 * LETTERS.index(letter))
            times = np.arange(int(LETTER_S * SAMPLE_RATE)) / SAMPLE_RATE
            # With this phase, no sample of a tone is 0. So tests can count the samples of tones.
            pieces += [0.5 * np.sin(2 * np.pi * frequency * times + 0.3), np.zeros(2 * FRAME)]
        pieces.append(np.zeros(int(GAP_S * SAMPLE_RATE)))
    return np.concatenate([*pieces, np.zeros(int(rng.uniform(0.3, 0.6) * SAMPLE_RATE))]).astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Return 12 clips of two speakers. The words of the first speaker contain no ``h``."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    rows = []
    for index in range(12):
        known = [word for word in WORDS if index % 2 or "h" not in word]
        text = " ".join(rng.choice(known, rng.integers(1, 6)))
        soundfile.write(folder / f"{index}.wav", spoken(text, rng), SAMPLE_RATE)
        rows.append(f'{{"audio_filepath": "{index}.wav", "text": "{text}", "speaker": "{index % 2}"}}\n')
    (folder / "clips.jsonl").write_text("".join(rows))
    return read(folder / "clips.jsonl")


def read(manifest: Path) -> list[Clip]:
    return list(read_data([str(manifest)], None)[0].clips)


def excerpts_of(clips: list[Clip], seed: int = 0, model: Any = None) -> Excerpts:
    return Excerpts(model or TonesModel(), clips, seed)


@pytest.mark.parametrize("model", [TonesModel(), SpikesModel(last=False), SpikesModel(last=True)])
def test_an_excerpt_contains_the_words_of_its_text(clips: list[Clip], model: TonesModel) -> None:
    excerpts = excerpts_of(clips, model=model)
    for index in range(200):
        excerpt = excerpts.make(index)
        letters = excerpt.text.replace(" ", "")
        assert TonesModel().text_of(excerpt.waveform) == letters
        # No tone is cut off.
        assert int((excerpt.waveform != 0).sum()) == pytest.approx(len(letters) * LETTER_S * SAMPLE_RATE, rel=0.02)
    assert not excerpts.dropped


def test_cuts_are_in_order_even_if_words_are_short() -> None:
    noise = torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0)) * 0.1
    times = [(0.0, 0.02), (0.3, 0.49), (0.49, 0.51), (0.51, 0.9), (0.9, 0.98)]
    cuts = _cuts_between([Word("x", start_s, end_s, 0.5) for start_s, end_s in times], noise)
    assert len(cuts) == 6
    assert list(cuts) == sorted(cuts)
    assert cuts[0] >= 0
    assert cuts[-1] <= len(noise)


def test_excerpts_begin_and_end_within_clips_and_join_clips_of_one_speaker(clips: list[Clip]) -> None:
    texts = {clip.utterance.text for clip in clips}
    excerpts = excerpts_of(clips)
    made = [excerpts.make(index) for index in range(200)]
    parts = [any(f" {one.text} " in f" {text} " and one.text != text for text in texts) for one in made]
    joined = [not any(f" {one.text} " in f" {text} " for text in texts) for one in made]
    assert sum(parts) > 40
    assert sum(joined) > 40
    assert {one.metadata["speaker"] for one in made} == {"0", "1"}
    assert all("h" not in one.text for one in made if one.metadata["speaker"] == "0")


def test_durations_are_those_of_the_clips(clips: list[Clip]) -> None:
    longest = np.quantile([clip.utterance.duration_s for clip in clips], 0.95)
    excerpts = excerpts_of(clips)
    durations = [len(excerpts.make(index).waveform) / SAMPLE_RATE for index in range(200)]
    assert max(durations) <= longest + 0.04
    assert max(durations) > 0.8 * longest
    assert min(durations) > 0.1


def test_cuts_are_inaccurate_and_silences_random(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    inaccurate = [excerpts_of(clips).make(index) for index in range(40)]
    monkeypatch.setattr(module, "_INACCURACY_S", 0.0)
    exact = [excerpts_of(clips).make(index) for index in range(40)]
    changes = {len(one.waveform) - len(other.waveform) for one, other in zip(inaccurate, exact, strict=True)}
    assert len(changes) > 20
    assert max(map(abs, changes)) <= 0.04 * SAMPLE_RATE
    starts = [int(one.waveform.nonzero()[0]) / SAMPLE_RATE for one in exact]
    assert max(starts) <= 0.2 + LETTER_S
    assert len(set(starts)) > 10


def test_clips_with_very_short_words_are_not_used(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHORTEST_WORD_S", 10.0)
    with pytest.raises(UserError, match="not_aligned"):
        excerpts_of(clips).make(0)


def test_an_excerpt_depends_only_on_its_index_and_the_seed(clips: list[Clip]) -> None:
    first, second, other = excerpts_of(clips), excerpts_of(clips), excerpts_of(clips, seed=1)
    made = [first.make(index) for index in range(8)]
    for index in reversed(range(8)):
        again = second.make(index)
        assert (again.text, list(again.metadata)) == (made[index].text, list(made[index].metadata))
        assert torch.equal(again.waveform, made[index].waveform)
    assert [other.make(index).text for index in range(8)] != [one.text for one in made]


def test_clips_with_another_text_or_without_audio_are_not_used(clips: list[Clip], tmp_path: Path) -> None:
    silent, good = tmp_path / "silent.wav", clips[1].utterance
    soundfile.write(silent, np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    (tmp_path / "damaged.wav").write_bytes(b"RIFF")
    rows = [
        f'{{"audio_filepath": "{silent}", "text": "feed", "duration": 1.0}}\n',
        f'{{"audio_filepath": "{tmp_path / "damaged.wav"}", "text": "feed", "duration": 1.0}}\n',
        f'{{"audio_filepath": "{good.audio_file()}", "text": "{good.text}"}}\n',
    ]
    (tmp_path / "mixed.jsonl").write_text("".join(rows))
    excerpts = excerpts_of(read(tmp_path / "mixed.jsonl"))
    for index in range(30):
        assert set(excerpts.make(index).text.split()) <= set(good.text.split())
    assert {excerpts.dropped[0].reason, excerpts.dropped[1].reason} == {"not_aligned", "undecodable"}
    soundfile.write(tmp_path / "long.wav", np.zeros(21 * SAMPLE_RATE), SAMPLE_RATE)
    rows[0] = f'{{"audio_filepath": "{tmp_path / "long.wav"}", "text": "feed"}}\n'
    (tmp_path / "mixed.jsonl").write_text("".join(rows))
    excerpts = excerpts_of(read(tmp_path / "mixed.jsonl"))
    assert set(excerpts.make(0).text.split()) <= set(good.text.split())
    assert excerpts.dropped[0].reason == "too_long"
    assert "lasts 21.00 s; the model takes at most 20 s" in excerpts.dropped[0].detail
    (tmp_path / "mixed.jsonl").write_text("".join(rows[:2]))
    with pytest.raises(UserError, match="100 random clips cannot be cut between words"):
        excerpts_of(read(tmp_path / "mixed.jsonl")).make(0)


def test_a_dash_stays_with_the_word_before_it(clips: list[Clip], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "dashes.wav", spoken("cab bad feed", np.random.default_rng(0)), SAMPLE_RATE)
    (tmp_path / "dashes.jsonl").write_text('{"audio_filepath": "dashes.wav", "text": "- cab -- \u2026 bad, feed."}')
    model, excerpts = TonesModel(), excerpts_of(read(tmp_path / "dashes.jsonl"))
    whole = {"- cab -- \u2026": "cab", "bad,": "bad", "feed.": "feed"}
    for index in range(30):
        excerpt = excerpts.make(index)
        rest, letters = excerpt.text, ""
        while rest:
            word = next(word for word in whole if rest.startswith(word))
            rest, letters = rest.removeprefix(word).lstrip(), letters + whole[word]
        assert model.text_of(excerpt.waveform) == letters


def test_a_clip_is_not_joined_if_its_speaker_has_no_other_usable_clip(clips: list[Clip], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    good = clips[1].utterance
    rows = [f'{{"audio_filepath": "{good.audio_file()}", "text": "{good.text}", "speaker": "a"}}\n']
    rows += [f'{{"audio_filepath": "silent.wav", "text": "feed {index}", "speaker": "a"}}\n' for index in range(300)]
    rows += [row.replace('"a"', '"b"') for row in rows[:1] * 40]
    (tmp_path / "few.jsonl").write_text("".join(rows))
    excerpts = excerpts_of(read(tmp_path / "few.jsonl"))
    for index in range(60):
        assert set(excerpts.make(index).text.split()) <= set(good.text.split())


def test_a_model_without_a_ctc_head_is_rejected(clips: list[Clip]) -> None:
    with pytest.raises(UserError, match=r"no CTC head.*section `ctc`"):
        Excerpts(assemble(ctc=False)[0], clips, 0)
