"""TinyAudioModel: spliced embeddings, scores and generated texts equal those computed step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.fast import fast_ones
from tests.support.models import BEAMS, GREEDY, JOINT, TRANSCRIPTS, assemble, batch, clip
from tiny_audio import ctc
from tiny_audio.frames import Frames
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.parts_table import describe_parts
from tiny_audio.model.streamer import until_end

SIZES = (16_000, 5_000, 11_111)


def targets_of(model: TinyAudioModel, tokenizer: Any, texts: list[str]) -> list[Tensor]:
    end = model.config.end_token_id
    return [torch.tensor([*tokenizer.encode(text, add_special_tokens=False), end]) for text in texts]


def labels_of(model: TinyAudioModel, texts: list[str]) -> list[list[int]]:
    assert model.ctc_vocabulary is not None
    return [model.ctc_vocabulary.encode(text) or [] for text in texts]


# --- splice


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_rows_consist_of_prefix_audio_suffix_and_text(padding_side: str) -> None:
    model, tokenizer = assemble()
    audio, lengths = torch.randn(3, 4, model.decoder.dim), torch.tensor([4, 1, 3])
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in ("one", "", "zero two")]
    texts = [torch.tensor(ids, dtype=torch.long) for ids in encoded]
    embeddings, mask = model.splice(audio, lengths, texts, padding_side=padding_side)
    prefix, suffix = model.config.prompt_prefix_ids, model.config.prompt_suffix_ids
    assert tokenizer.decode(prefix).endswith("fox ")
    assert tokenizer.decode(suffix).startswith(" wins")
    assert len(texts[1]) == 0
    for row, (length, text) in enumerate(zip(lengths.tolist(), texts, strict=True)):
        before, after = torch.tensor(prefix), torch.tensor([*suffix, *text.tolist()])
        wanted = torch.cat([model.decoder.embed(before), audio[row, :length], model.decoder.embed(after)])
        assert torch.equal(embeddings[row][mask[row]], wanted)
        assert int(mask[row].sum()) == len(wanted)
        real = mask[row].flip(0) if padding_side == "left" else mask[row]
        assert bool(real[: len(wanted)].all()), "the padding must be on `padding_side`"


def test_the_prompt_can_be_empty() -> None:
    model, _ = assemble()
    model.config.prompt_prefix_ids, model.config.prompt_suffix_ids = [], []
    audio = torch.randn(1, 3, model.decoder.dim)
    nothing = [torch.empty(0, dtype=torch.long)]
    embeddings, mask = model.splice(audio, torch.tensor([2]), nothing, padding_side="right")
    assert torch.equal(embeddings, audio[:, :2])
    assert mask.tolist() == [[True, True]]


# --- teacher-forced scores


def loss_of_one_clip(model: TinyAudioModel, size: int, target: Tensor, smoothing: float = 0.0) -> float:
    """Return the loss of one clip, summed over its target tokens. The forward pass contains only this clip."""
    audio, _ = model.projector(model.encode(clip(size)[None], torch.tensor([size])))
    prefix, suffix = (torch.tensor(ids) for ids in (model.config.prompt_prefix_ids, model.config.prompt_suffix_ids))
    row = torch.cat([model.decoder.embed(part) for part in (prefix,)] + [audio[0], model.decoder.embed(suffix)])
    start = len(row)
    row = torch.cat([row, model.decoder.embed(target)])[None]
    everything = torch.ones(row.shape[:2], dtype=torch.bool)
    log_probs = model.decoder(row, everything, everything).log_softmax(-1)
    total = 0.0
    for position, token in enumerate(target.tolist()):
        predicted = log_probs[start + position - 1]
        total -= float((1 - smoothing) * predicted[token] + smoothing * predicted.mean())
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_equal_those_of_single_clips(smoothing: float) -> None:
    model, tokenizer = assemble()
    targets, labels = targets_of(model, tokenizer, TRANSCRIPTS), labels_of(model, TRANSCRIPTS)
    with torch.no_grad():
        scores = model(*batch(*SIZES), targets, labels, label_smoothing=smoothing)
        wanted = [loss_of_one_clip(model, size, target, smoothing) for size, target in zip(SIZES, targets, strict=True)]
        assert scores.decoder_loss.tolist() == pytest.approx(wanted, rel=1e-5)
        for row, size in enumerate(SIZES):
            frames = model.encode(clip(size)[None], torch.tensor([size]))
            assert frames.ctc_logits is not None
            alone = -ctc.log_likelihood(frames.ctc_logits, frames.lengths, labels[row : row + 1])
            assert scores.ctc_loss is not None
            assert float(scores.ctc_loss[row]) == pytest.approx(float(alone), rel=1e-5)


def test_an_empty_text_has_only_the_end_token() -> None:
    model, tokenizer = assemble()
    (target,) = targets_of(model, tokenizer, [""])
    assert target.tolist() == [model.config.end_token_id]
    with torch.no_grad():
        scores = model(*batch(SIZES[0]), [target], [[]])
        assert float(scores.decoder_loss) == pytest.approx(loss_of_one_clip(model, SIZES[0], target), rel=1e-5)
        frames = model.encode(*batch(SIZES[0]))
    assert frames.ctc_logits is not None
    blanks = frames.ctc_logits.log_softmax(-1)[0, :, ctc.BLANK].sum()
    assert float(scores.ctc_loss[0]) == pytest.approx(-float(blanks), rel=1e-5)


def test_the_end_token_is_learned() -> None:
    """Targets end with the end token, and the loss includes it. After training on a text, the model generates the text
    and then stops."""
    model, tokenizer = assemble()
    (target,) = targets_of(model, tokenizer, ["one"])
    assert target[-1] == model.config.end_token_id == tokenizer.eos_token_id
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model(*batch(SIZES[0]), [target], [[]]).decoder_loss.sum().backward()
        optimizer.step()
    (transcript,) = model.transcribe(*batch(SIZES[0]), tokenizer=tokenizer)
    assert transcript.text == "one"
    assert not transcript.truncated


def test_without_a_head_there_is_no_ctc_loss() -> None:
    model, tokenizer = assemble(ctc=False)
    with torch.no_grad():
        scores = model(*batch(*SIZES), targets_of(model, tokenizer, TRANSCRIPTS))
        (transcript,) = model.transcribe(*batch(SIZES[0]), tokenizer=tokenizer)
    assert scores.ctc_loss is None
    assert scores.decoder_loss.isfinite().all()
    assert transcript.ctc_text is None


def test_a_transform_of_features_changes_the_losses() -> None:
    model, tokenizer = assemble()
    targets, labels = targets_of(model, tokenizer, TRANSCRIPTS), labels_of(model, TRANSCRIPTS)

    def erase(features: Frames) -> Frames:
        return replace(features, values=torch.zeros_like(features.values))

    with torch.no_grad():
        plain = model(*batch(*SIZES), targets, labels)
        erased = model(*batch(*SIZES), targets, labels, transform=erase)
    assert not torch.equal(plain.decoder_loss, erased.decoder_loss)
    assert not torch.equal(plain.ctc_loss, erased.ctc_loss)


# --- the same clip alone and in a batch


@pytest.mark.parametrize("extra", [0, 4_321])
def test_losses_do_not_depend_on_the_batch(extra: int) -> None:
    model, tokenizer = assemble()
    targets, labels = targets_of(model, tokenizer, TRANSCRIPTS), labels_of(model, TRANSCRIPTS)
    with torch.no_grad():
        together = model(*batch(*SIZES, extra=extra), targets, labels)
        for row, size in enumerate(SIZES):
            alone = model(*batch(size), targets[row : row + 1], labels[row : row + 1])
            assert float(together.decoder_loss[row]) == pytest.approx(float(alone.decoder_loss), rel=1e-5)
            assert float(together.ctc_loss[row]) == pytest.approx(float(alone.ctc_loss), rel=1e-5)


@pytest.mark.parametrize(
    "generation",
    [
        pytest.param(GREEDY, id="greedy"),
        pytest.param(BEAMS, id="beams", marks=pytest.mark.slow),
        pytest.param(JOINT, id="joint"),
    ],
)
def test_texts_do_not_depend_on_the_batch(generation: GenerationConfig) -> None:
    model, tokenizer = assemble(generation=generation)
    alone = [model.transcribe(*batch(size), tokenizer=tokenizer)[0] for size in SIZES]
    assert model.transcribe(*batch(*SIZES), tokenizer=tokenizer) == alone
    assert model.transcribe(*batch(*SIZES, extra=4_321), tokenizer=tokenizer) == alone
    assert model.transcribe(*batch(*SIZES[::-1]), tokenizer=tokenizer) == alone[::-1]
    assert len({transcript.text for transcript in alone}) == len(SIZES), "the texts of the clips differ"
    assert all(transcript.ctc_text for transcript in alone)


# --- generation


def test_the_default_lengths_are_those_of_the_batch() -> None:
    model, _ = assemble()
    waveforms, lengths = batch(SIZES[0])
    assert model.generate(waveforms).tolist() == model.generate(waveforms, lengths).tolist()


def test_settings_of_a_call_override_the_models_settings() -> None:
    model, _ = assemble()
    own = model.generate(*batch(SIZES[0]))
    assert own.shape[1] == GREEDY.max_new_tokens, "the model generates no end token before the limit"
    short = model.generate(*batch(SIZES[0]), max_new_tokens=3)
    assert short.tolist() == own[:, :3].tolist()
    first = int(own[0, 0])
    assert model.generate(*batch(SIZES[0]), eos_token_id=first, pad_token_id=first).tolist() == [[first]]
    several = model.generate(*batch(SIZES[0]), num_beams=3, num_return_sequences=2)
    assert several.shape[0] == 2
    output = model.generate(*batch(SIZES[0]), return_dict_in_generate=True)
    assert output.sequences.tolist() == own.tolist()
    beams, _ = assemble(generation=BEAMS)
    assert beams.generate(*batch(SIZES[0])).tolist() == model.generate(*batch(SIZES[0]), num_beams=3).tolist()


def ending_after(model: TinyAudioModel, size: int, number: int) -> None:
    """Set the model's end token to the token that it generates at index ``number``."""
    model.config.end_token_id = int(model.generate(*batch(size))[0, number])


def test_a_text_that_ends_is_not_truncated() -> None:
    model, tokenizer = assemble()
    (whole,) = model.transcribe(*batch(SIZES[0]), tokenizer=tokenizer)
    assert whole.truncated
    ids = model.generate(*batch(SIZES[0]))[0].tolist()
    first = next(index for index in range(1, len(ids)) if ids[index] not in ids[:index])
    ending_after(model, SIZES[0], first)
    (ended,) = model.transcribe(*batch(SIZES[0]), tokenizer=tokenizer)
    assert not ended.truncated
    assert ended.text == tokenizer.decode(ids[:first], skip_special_tokens=True).strip()


# --- joint decoding


@pytest.mark.parametrize("weight", fast_ones([0.05, 0.4, 0.95], 0.4))
def test_joint_decoding_selects_the_text_with_the_best_score(weight: float) -> None:
    generation = GenerationConfig(max_new_tokens=8, num_beams=3, ctc_weight=weight)
    model, tokenizer = assemble(generation=generation)
    assert model.ctc_vocabulary is not None
    for size in SIZES:
        waveforms, lengths = batch(size)
        with torch.no_grad():
            beams = model.generate(waveforms, lengths, num_beams=3, num_return_sequences=3)
            frames = model.encode(waveforms, lengths)
            assert frames.ctc_logits is not None
            (greedy,) = ctc.greedy(frames.ctc_logits, frames.lengths)
            texts = [
                tokenizer.decode(until_end(row, model.config.end_token_id)[0], skip_special_tokens=True).strip()
                for row in beams.tolist()
            ]
            spelled = model.ctc_vocabulary.decode(greedy).strip()
            scores = {}
            for text in [*texts, spelled]:
                (target,) = targets_of(model, tokenizer, [text])
                labels = model.ctc_vocabulary.encode(text)
                score = -(1 - weight) * loss_of_one_clip(model, size, target)
                if labels is None:
                    score = -torch.inf
                else:
                    score += weight * float(ctc.log_likelihood(frames.ctc_logits, frames.lengths, [labels]))
                scores[text] = score
        (transcript,) = model.transcribe(waveforms, lengths, tokenizer)
        assert transcript.text == max(scores, key=lambda text: scores[text])
        assert transcript.ctc_text == spelled


def test_joint_decoding_can_choose_the_ctc_text() -> None:
    """A confident CTC head outweighs an uncertain decoder."""
    model, tokenizer = assemble(generation=GenerationConfig(max_new_tokens=8, num_beams=3, ctc_weight=0.9))
    assert model.ctc_head is not None
    with torch.no_grad():
        model.ctc_head.weight *= 30
    transcripts = model.transcribe(*batch(*SIZES), tokenizer=tokenizer)
    assert [transcript.text for transcript in transcripts] == [transcript.ctc_text for transcript in transcripts]
    assert not any(transcript.truncated for transcript in transcripts), "the head's text is never truncated"


# --- the table of parts


def test_parts_are_counted() -> None:
    model, tokenizer = assemble()
    rows = {row["part"]: row for row in describe_parts(model)}
    assert list(rows) == ["encoder", "projector", "decoder", "ctc_head"]
    hidden, dim, stack = 64, 32, 5
    assert rows["projector"]["total"] == stack * dim + 3 * hidden * dim + 2 * hidden * dim * (stack - 1) + dim
    assert rows["ctc_head"]["total"] == (dim + 1) * (len(set("".join(TRANSCRIPTS))) + 1)
    attention = 2 * dim * dim + 2 * dim * dim // 2
    layer = attention + 3 * dim * 64 + 2 * dim
    assert rows["decoder"]["total"] == len(tokenizer) * dim + 2 * layer + dim, "tied embeddings count once"
    assert sum(row["total"] for row in rows.values()) == sum(tensor.numel() for tensor in model.parameters())
    positions = 750 * dim
    assert rows["encoder"]["total"] - rows["encoder"]["trainable"] == positions
    for part in ("projector", "decoder", "ctc_head"):
        assert rows[part]["trainable"] == rows[part]["total"]
    about = {part: (row["name"], row["class"], row["dim"], row["frame_rate_hz"]) for part, row in rows.items()}
    assert about == {
        "encoder": ("whisper", "WhisperEncoder", dim, 50.0),
        "projector": ("swiglu", "SwigluProjector", dim, 10.0),
        "decoder": ("smollm3", "CausalLMDecoder", dim, None),
        "ctc_head": (None, "Linear", 1 + len(set("".join(TRANSCRIPTS))), 50.0),
    }


def test_without_a_head_it_is_not_counted() -> None:
    assert [row["part"] for row in describe_parts(assemble(ctc=False)[0])] == ["encoder", "projector", "decoder"]
