"""Encoder × projector × decoder: every pair of parts builds, trains, generates and comes back, alone as in a batch."""

from __future__ import annotations

from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny_audio.ctc import CtcVocabulary
from tiny_audio.decoders import DECODERS, build_tokenizer
from tiny_audio.encoders import ENCODERS
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.prompt import PromptConfig, build_prompt
from tiny_audio.projectors import PROJECTORS

TRANSCRIPTS = ("one two three", "four five six", "zero")
SIZES = (32_000, 24_000, 13_337)
"""Samples; at the slowest encoder's 12.5 frames a second there are still enough frames for each transcript."""
TOLERANCE = 1e-5
"""Largest difference between a clip alone and in a batch, as a share of the root mean square."""

Names = tuple[str, str, str]
EVERYTHING: list[Names] = list(product(ENCODERS.names(), PROJECTORS.names(), DECODERS.names()))


def pairs(names: Names) -> set[tuple[tuple[int, str], ...]]:
    return set(combinations(enumerate(names), 2))


def pairwise(everything: list[Names]) -> list[Names]:
    """Few combinations with every pair of parts in one of them, found greedily."""
    missing = set().union(*map(pairs, everything))
    chosen = []
    while missing:
        best = max(everything, key=lambda names: len(pairs(names) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


PAIRWISE = pairwise(EVERYTHING)


def test_every_pair_is_covered() -> None:
    assert set().union(*map(pairs, PAIRWISE)) == set().union(*map(pairs, EVERYTHING))
    assert len(PAIRWISE) < len(EVERYTHING)


@cache
def tokenizer_of(decoder: str) -> Any:
    config: Any = DECODERS.entry(decoder).config.tiny()
    return build_tokenizer(config, TRANSCRIPTS)


def assemble(names: Names) -> TinyAudioModel:
    torch.manual_seed(0)
    encoder, projector, decoder = (
        registry.entry(name).config.tiny()
        for registry, name in zip((ENCODERS, PROJECTORS, DECODERS), names, strict=True)
    )
    tokenizer = tokenizer_of(names[2])
    return TinyAudioModel.assemble(
        encoder,
        projector,
        decoder,
        tokenizer=tokenizer,
        prompt=build_prompt(PromptConfig(user="fox {audio} wins"), tokenizer),
        ctc_vocabulary=CtcVocabulary.of(TRANSCRIPTS),
        generation=GenerationConfig(max_new_tokens=6),
    )


def clip(size: int) -> Tensor:
    return 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(size))


def batch() -> tuple[Tensor, Tensor]:
    waveforms = 10 * torch.randn(len(SIZES), max(SIZES) + 999, generator=torch.Generator().manual_seed(1))
    for row, size in zip(waveforms, SIZES, strict=True):
        row[:size] = clip(size)
    return waveforms, torch.tensor(SIZES)


def targets_of(model: TinyAudioModel, tokenizer: Any) -> tuple[list[Tensor], list[list[int]]]:
    assert model.ctc_vocabulary is not None
    end = model.config.end_token_id
    ids = [torch.tensor([*tokenizer.encode(text, add_special_tokens=False), end]) for text in TRANSCRIPTS]
    return ids, [model.ctc_vocabulary.encode(text) or [] for text in TRANSCRIPTS]


def check_training(model: TinyAudioModel, tokenizer: Any) -> None:
    waveforms, lengths = batch()
    targets, labels = targets_of(model, tokenizer)
    scores = model.train()(waveforms, lengths, targets, labels)
    assert scores.ctc_loss is not None
    (scores.decoder_loss.sum() + scores.ctc_loss.sum()).backward()
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            assert tensor.grad is not None, f"no gradient reaches {name}"
            assert tensor.grad.isfinite().all(), f"the gradient of {name} is not finite"
    model.zero_grad(set_to_none=True)


def logits_of(model: TinyAudioModel, waveforms: Tensor, lengths: Tensor, targets: list[Tensor]) -> list[Tensor]:
    """Teacher-forced, over the targets' positions, clip by clip."""
    audio, audio_lengths = model.projector(model.encode(waveforms, lengths))
    embeddings, mask = model.splice(audio, audio_lengths, targets, padding_side="right")
    logits = model.decoder(embeddings, mask, mask)
    rows = logits.split(mask.sum(1).tolist())
    return [row[-len(target) :] for row, target in zip(rows, targets, strict=True)]


def assert_close(found: Tensor, wanted: Tensor, what: str) -> None:
    assert found.shape == wanted.shape, what
    difference, rms = float((found - wanted).abs().max()), float(wanted.pow(2).mean().sqrt())
    assert difference <= TOLERANCE * rms, f"{what}: {difference:.2e} of RMS {rms:.2e}"


def check_invariance(model: TinyAudioModel, tokenizer: Any) -> None:
    waveforms, lengths = batch()
    targets, _ = targets_of(model, tokenizer)
    together, together_lengths = model.projector(model.encode(waveforms, lengths))
    logits = logits_of(model, waveforms, lengths, targets)
    said = model.generate(waveforms, lengths)
    for row, size in enumerate(SIZES):
        alone = clip(size)[None], torch.tensor([size])
        embeddings, (length,) = model.projector(model.encode(*alone))
        assert int(together_lengths[row]) == int(length)
        assert_close(together[row, : int(length)], embeddings[0, : int(length)], f"embeddings of clip {row}")
        (single,) = logits_of(model, *alone, [targets[row]])
        assert_close(logits[row], single, f"logits of clip {row}")
        (words,) = model.generate(*alone)
        size = min(len(words), said.shape[1])
        for position in range(size):
            if said[row, position] == words[position]:
                continue
            # A tie: rounding alone decides which of two tokens is said.
            ids = [torch.cat([words[:position], words[:1]])]
            first, second = logits_of(model, *alone, ids)[0][position - len(ids[0])].topk(2).values.tolist()
            assert first - second <= TOLERANCE * float(single.pow(2).mean().sqrt()), f"clip {row} says something else"
            break


def check_reload(model: TinyAudioModel, folder: Path) -> None:
    model.save_pretrained(folder)
    again = TinyAudioModel.from_pretrained(folder).eval()
    waveforms, lengths = batch()
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(model.generate(waveforms, lengths), again.generate(waveforms, lengths))
    first, second = (each.projector(each.encode(waveforms, lengths))[0] for each in (model, again))
    assert torch.equal(first, second)


def check(names: Names, folder: Path) -> None:
    model, tokenizer = assemble(names), tokenizer_of(names[2])
    check_training(model, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.requires_grad:
                nn.init.normal_(parameter, std=0.2)  # as initialized, a small model repeats one token
        check_invariance(model.eval(), tokenizer)
        check_reload(model, folder)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("names", PAIRWISE, ids="-".join)
def test_pairs(names: Names, tmp_path: Path) -> None:
    check(names, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("names", EVERYTHING, ids="-".join)
def test_everything(names: Names, tmp_path: Path) -> None:
    check(names, tmp_path)
