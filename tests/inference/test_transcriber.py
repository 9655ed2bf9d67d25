"""Recordings of any length with a tiny model: chunks, filters, streaming and batches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.support.fast import fast_ones
from tests.support.models import GREEDY, assemble
from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE, Frames
from tiny_audio.inference.chunking import Chunk
from tiny_audio.inference.filters import filter_text
from tiny_audio.inference.segments import Segment, Transcription
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.context import ContextSettings
from tiny_audio.model.decoding import GenerationConfig, Transcript
from tiny_audio.model.prompt import Context

pytestmark = pytest.mark.usefixtures("one_thread", "pauses_by_loudness")


def burst(duration_s: float, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(round(duration_s * SAMPLE_RATE), generator=torch.Generator().manual_seed(seed))


def pause(duration_s: float) -> Tensor:
    return torch.zeros(round(duration_s * SAMPLE_RATE))


def long(count: int) -> Tensor:
    """Return ``count`` bursts between pauses. ``long(8)`` exceeds 15 s, the limit of the tiny encoder."""
    parts = [part for number in range(count) for part in (pause(1), burst(0.5 + 0.3 * (number % 5), number))]
    return torch.cat([*parts, pause(1)])


def transcriber(*, head: bool = True, filters: bool = False, max_padded_s: float = 20.0) -> Transcriber:
    return Transcriber(*assemble(ctc=head), max_padded_s=max_padded_s, filter_hallucinations=filters)


def test_a_short_recording_gets_the_text_of_the_model() -> None:
    model, tokenizer = assemble()
    clips = [burst(duration, number) for number, duration in enumerate((1.0, 0.4, 2.2))]
    clips.append(torch.cat([pause(2), burst(1.0), pause(1)]))  # a short recording keeps the silence at its ends
    result = Transcriber(model, tokenizer, filter_hallucinations=False).transcribe(clips)
    for clip, one in zip(clips, result, strict=True):
        (wanted,) = model.transcribe(clip[None], torch.tensor([len(clip)]), tokenizer)
        (segment,) = one.segments
        assert (one.text, segment.ctc_text, segment.truncated) == (wanted.text, wanted.ctc_text, wanted.truncated)
        assert (segment.start_s, segment.end_s, one.duration_s) == (
            0.0,
            len(clip) / SAMPLE_RATE,
            len(clip) / SAMPLE_RATE,
        )
        assert segment.words is None
        assert segment.suppressed is None
    assert any(one.text for one in result)
    assert (result[0].truncated, result[0].ctc_text) == (
        result[0].segments[0].truncated,
        result[0].segments[0].ctc_text,
    )


def test_long_recordings_are_cut_and_joined_in_order() -> None:
    found = transcriber()
    waveform = long(8)
    assert len(waveform) / SAMPLE_RATE > found.max_chunk_s
    (result,) = found.transcribe([waveform])
    assert len(result.segments) == 9, "there is a segment for each burst and one for the pause at the end"
    assert all(segment.end_s - segment.start_s <= found.max_chunk_s for segment in result.segments)
    starts = [segment.start_s for segment in result.segments]
    assert starts == sorted(starts)
    assert result.duration_s == len(waveform) / SAMPLE_RATE
    assert result.text == " ".join(segment.text for segment in result.segments if segment.text)
    alone = found.transcribe(
        [waveform[round(s.start_s * SAMPLE_RATE) : round(s.end_s * SAMPLE_RATE)] for s in result.segments]
    )
    assert [one.text for one in alone] == [segment.text for segment in result.segments]


def test_an_encoder_without_a_limit_gets_chunks_of_30_s() -> None:
    found = Transcriber(*assemble(encoder="hubert"), filter_hallucinations=False)
    assert found.max_chunk_s == 30.0
    whole, cut = found.transcribe([long(14)[: 29 * SAMPLE_RATE], long(16)])
    assert len(whole.segments) == 1
    assert len(cut.segments) == 17


@pytest.mark.parametrize("max_padded_s", fast_ones([0.1, 7.0, 1000.0], 0.1, 7.0))
def test_texts_do_not_depend_on_batches_and_blocks(max_padded_s: float) -> None:
    waveforms = [long(8), burst(1.0), long(3), pause(0), long(10)]
    wanted = transcriber().transcribe(waveforms, word_timestamps=True)
    other = transcriber(max_padded_s=max_padded_s)
    found = [event for _, event in other.stream((wave.split(7_777) for wave in waveforms), word_timestamps=True)]
    whole = [event for event in found if isinstance(event, Transcription)]
    assert [(one.text, one.duration_s) for one in whole] == [(one.text, one.duration_s) for one in wanted]
    for mine, theirs in zip(whole, wanted, strict=True):
        assert [word.text for part in mine.segments for word in part.words or ()] == mine.text.split()
        for a, b in zip(mine.segments, theirs.segments, strict=True):
            assert (a.start_s, a.end_s, a.ctc_text, a.truncated) == (b.start_s, b.end_s, b.ctc_text, b.truncated)


def test_a_stream_yields_segments_before_its_end() -> None:
    waveform, taken, done = long(60), 0, list[float]()

    def blocks() -> Iterator[Tensor]:
        nonlocal taken
        for block in waveform.split(SAMPLE_RATE):
            taken += 1
            yield block

    events = transcriber(max_padded_s=5.0).stream([blocks(), [burst(1.0)]], on_progress=done.append)
    number, first = next(events)
    assert number == 0
    assert isinstance(first, Segment)
    assert taken < len(waveform) / SAMPLE_RATE
    numbers = [number for number, _ in events]
    assert numbers == sorted(numbers)
    assert sum(done) == pytest.approx(len(waveform) / SAMPLE_RATE + 1.0)


def test_progress_counts_the_overlaps_of_chunks_once() -> None:
    found, sound, done = transcriber(), burst(20.0), list[float]()
    assert any(chunk.overlap for chunk in found.chunks([sound]))
    found.transcribe([sound], on_progress=done.append)
    assert sum(done) == pytest.approx(20.0)


@pytest.mark.parametrize("head", [True, False], ids=["assisted", "plain"])
def test_on_text_receives_the_text_token_by_token(head: bool) -> None:
    found, waveforms = transcriber(head=head), [burst(1.0), long(8), burst(2.0, 1)]
    received: dict[tuple[int, float], list[str]] = {}

    def on_text(number: int, start_s: float, text: str) -> None:
        received.setdefault((number, start_s), []).append(text)

    said, whole = {}, []
    for number, event in found.stream(([wave] for wave in waveforms), on_text=on_text):
        if isinstance(event, Segment):
            said[number, event.start_s] = event.text
        else:
            whole.append(event)
    assert whole == found.transcribe(waveforms)
    assert {key: texts[-1] for key, texts in received.items()} == said
    assert all(later.startswith(earlier) for texts in received.values() for earlier, later in pairwise(texts))
    assert max(len(set(texts)) for texts in received.values()) > 3


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_on_text_receives_the_most_likely_beam(ctc_weight: float) -> None:
    settings = GenerationConfig(max_new_tokens=12, num_beams=3, ctc_weight=ctc_weight)
    found, waveforms = (
        Transcriber(*assemble(generation=settings), filter_hallucinations=False),
        [burst(1.0), burst(2.0, 1)],
    )
    received: dict[int, list[str]] = {0: [], 1: []}
    events = found.stream(([wave] for wave in waveforms), on_text=lambda number, _, text: received[number].append(text))
    assert [event for _, event in events if isinstance(event, Transcription)] == found.transcribe(waveforms)
    for number, texts in received.items():
        assert len(set(texts)) > 3
        alone: list[str] = []
        list(found.stream([[waveforms[number]]], on_text=lambda _, __, text, alone=alone: alone.append(text)))
        assert texts[: len(alone)] == alone[: len(texts)], "the texts of a recording must not depend on its batch"


def test_filters_give_no_text_without_speech() -> None:
    found = transcriber(filters=True).transcribe([pause(1), burst(1.0), pause(0)], word_timestamps=True)
    assert [one.text for one in found] == ["", "", ""]
    assert [segment.suppressed for one in found for segment in one.segments] == ["silence", "noise"]
    assert found[0].segments[0].words == ()
    assert found[0].ctc_text is None
    assert transcriber().transcribe([burst(1.0)])[0].text


def test_suppressed_segments_have_durations_and_reasons() -> None:
    segments = [
        Segment(float(start), start + 1.5, text, None, False, None, None, reason)
        for start, text, reason in ((0, "one", None), (2, "", "noise"), (4, "", "tones"), (6, "", "noise"))
    ]
    assert re.fullmatch(r"3\.0 s: .*noise.*; 1\.5 s: .*tones.*", str(Transcription.of(segments, 8.0).suppressed))
    assert Transcription.of(segments[:1], 8.0).suppressed is None
    assert Transcription.of(segments[1:], 8.0).suppressed is None, "why_empty gives the reasons if there is no text"
    assert Transcription.of([replace(segments[0], suppressed="loop")], 8.0).suppressed is None


def posteriors(text: str, vocabulary: tuple[str, ...]) -> Tensor:
    """Return logits of a head that is certain of ``text``, with a blank after each character."""
    frames = torch.zeros(1, 2 * len(text) + 1, len(vocabulary) + 1)
    frames[0, :, 0] = 10.0
    for index, character in enumerate(text):
        frames[0, 2 * index, 0] = 0.0
        frames[0, 2 * index, vocabulary.index(character) + 1] = 10.0
    return frames


@pytest.mark.parametrize(
    ("ctc_text", "decoder_text", "text", "reason"),
    [
        ("one two three", "one two three", "one two three", None),
        ("one two thre", "one two three", "one two three", None),
        ("one two three", "One, two: three!", "One, two: three!", None),
        ("", "one", "", "ctc_silent"),
        ("", "", "", None),
        ("zero", "four five six one two three", "", "ctc_disagrees"),
        ("one two", "one two two two two two two two two two", "one two", "loop"),
        ("two two two two", "two two two two", "two two two two", None),
    ],
)
def test_the_ctc_head_checks_the_text(ctc_text: str, decoder_text: str, text: str, reason: str | None) -> None:
    model, tokenizer = assemble()
    assert model.ctc_vocabulary is not None
    logits = posteriors(ctc_text, model.ctc_vocabulary.characters)
    frames = Frames(torch.zeros(1, logits.shape[1], 4), torch.tensor([logits.shape[1]]), 50.0, logits)
    chunk = Chunk(SAMPLE_RATE, burst(logits.shape[1] / 50))
    transcript = Transcript(decoder_text, ctc_text, False)
    segment = Transcriber(model, tokenizer)._segment(chunk, transcript, frames)
    assert (segment.text, segment.suppressed) == (text, reason)
    assert segment.words is not None
    assert [word.text for word in segment.words] == text.split()
    assert all(segment.start_s <= word.start_s <= word.end_s <= segment.end_s + 0.1 for word in segment.words)
    assert (segment.confidence is None) == (not text)


@pytest.mark.parametrize(("num_frames", "suppressed"), [(12, None), (7, "ctc_disagrees")])
def test_too_few_frames_for_a_text_do_not_reject_it(num_frames: int, suppressed: str | None) -> None:
    """CTC cannot score a text with more characters than frames. At 12.5 frames per second, fast speech has such texts.

    They are accepted, but a text with 40 characters per second is rejected, because nobody speaks so fast.
    """
    model, _ = assemble()
    assert model.ctc_vocabulary is not None
    text = "one two three four five"
    logits = posteriors("one", model.ctc_vocabulary.characters)
    logits = torch.cat([logits, logits[:, 1:2].expand(-1, num_frames - logits.shape[1], -1)], dim=1)  # add blanks
    frames = Frames(torch.zeros(1, num_frames, 4), torch.tensor([num_frames]), 12.5, logits)
    found = filter_text(Transcript(text, "one", False), frames, num_frames / 12.5, model.ctc_vocabulary)
    assert found == ((text, None) if suppressed is None else ("", suppressed))


def test_without_a_head_only_impossible_repeats_are_collapsed() -> None:
    model, tokenizer = assemble(ctc=False)
    chunk, frames = Chunk(0, burst(1.0)), Frames(torch.zeros(1, 50, 4), torch.tensor([50]), 50.0)
    transcript = Transcript("no no no no", None, True)
    found = Transcriber(model, tokenizer)
    looped = found._segment(chunk, transcript, frames)
    assert (looped.text, looped.suppressed, looped.truncated, looped.confidence) == ("no", "loop", True, None)
    ended = found._segment(chunk, replace(transcript, truncated=False), frames)
    assert (ended.text, ended.suppressed) == ("no no no no", None)


def test_word_timestamps_need_a_ctc_head() -> None:
    found = transcriber(head=False)
    assert not found.can_time_words
    with pytest.raises(UserError, match="CTC head"):
        found.transcribe([burst(1.0)], word_timestamps=True)
    assert found.transcribe([burst(1.0)])[0].ctc_text is None


@pytest.mark.parametrize("max_padded_s", [0.0, float("nan"), float("inf")])
def test_max_padded_s_must_be_positive_and_finite(max_padded_s: float) -> None:
    with pytest.raises(UserError, match=f"max_padded_s is {max_padded_s}"):
        transcriber(max_padded_s=max_padded_s)


KNOWN = ContextSettings(max_tokens=32, hotwords=True)


def test_each_recording_has_its_own_context() -> None:
    model, tokenizer = assemble(context=KNOWN)
    found = Transcriber(model, tokenizer, max_padded_s=20.0, filter_hallucinations=False)
    clips = [burst(duration, number) for number, duration in enumerate((1.0, 0.4, 2.2))]
    contexts = [Context(("zero",)), None, Context(("six", "two"))]
    texts = [one.text for one in found.transcribe(clips, contexts=contexts)]
    for clip, context, text in zip(clips, contexts, texts, strict=True):
        ids = [found.encode_context(context).ids]
        (wanted,) = model.transcribe(clip[None], torch.tensor([len(clip)]), tokenizer, ids)
        assert text == wanted.text
    assert texts != [one.text for one in found.transcribe(clips)]
    shared = found.transcribe(clips, contexts=contexts[0])
    assert shared == found.transcribe(clips, contexts=[contexts[0]] * 3)


def test_later_chunks_of_a_recording_have_no_previous_text(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Transcriber(*assemble(context=KNOWN), max_padded_s=3.0, filter_hallucinations=False)
    given = Context(("zero",), "one two")
    later = Context(("zero",))
    seen: list[tuple[int, Context | None]] = []
    transcribe = found.transcribe_chunks

    def spy(chunks: Sequence[Chunk], *, contexts: Sequence[Context | None], **others: Any) -> list[Segment]:
        seen.extend((chunk.start, context) for chunk, context in zip(chunks, contexts, strict=True))
        return transcribe(chunks, contexts=contexts, **others)

    monkeypatch.setattr(found, "transcribe_chunks", spy)
    found.transcribe([long(8)], contexts=given)
    in_order = [context for _, context in sorted(seen, key=lambda one: one[0])]
    assert in_order == [given] + [later] * 8


def test_an_unusable_context_is_rejected_before_audio_is_read() -> None:
    def unread() -> Iterator[list[Tensor]]:
        raise AssertionError
        yield []

    with pytest.raises(UserError, match="2 contexts for 1 recordings"):
        transcriber().transcribe([burst(1.0)], contexts=[None, None])
    with pytest.raises(UserError, match="language 'fr'"):
        next(transcriber().stream(unread(), contexts=Context(language="fr")))


def test_a_request_for_more_tokens_than_the_decoder_has_positions_for_is_limited() -> None:
    """GPT-2 has a fixed number of position embeddings. It fails if prompt, audio and text together are longer."""
    overrides = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 96}
    tokens = {"tokenizer": {"kind": "characters"}, "freeze": False}
    decoder = {"name": "causal_lm", "init": "random", "model_type": "gpt2", "overrides": overrides, **tokens}
    model, tokenizer = assemble(decoder=decoder, prompt="{audio}")
    embeddings = cast(Any, model.decoder).model.get_input_embeddings()
    with torch.no_grad():
        embeddings.weight[model.config.end_token_id] = 0  # the end token is never the most likely one
    many = GenerationConfig(max_new_tokens=1000, draft="none")
    own = Transcriber(model, tokenizer, generation=many, filter_hallucinations=False)
    (found,) = own.transcribe([torch.ones(int(own.max_chunk_s * SAMPLE_RATE))])
    assert found.truncated
    assert own.max_chunk_s == Transcriber(model, tokenizer, generation=GREEDY).max_chunk_s
