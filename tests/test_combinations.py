"""Every two parts of different kinds (encoder, projector, decoder) work together: a model that contains both can be
trained, used for generation, and saved.

The result for a clip does not depend on the other clips in its batch.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, cycle, islice, product
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

TRANSCRIPTS = ("one two", "four", "six")
SIZES = (16_000, 12_000, 6_337)
"""Sizes of the clips in samples. Even at the lowest frame rate of all encoders, 12.5 Hz, each clip has enough frames
for the CTC loss of its transcript."""
TOLERANCE = 1e-5
"""Maximum difference that one part may cause between the values of a clip alone and in a batch. It is relative to the
root mean square of the values.

The differences of the parts add up: embeddings may differ by twice this value, because two parts compute them, and
logits by three times this value.
"""

Names = tuple[str, str, str]
EVERYTHING: list[Names] = list(product(ENCODERS.names(), PROJECTORS.names(), DECODERS.names()))


def pairs(names: Names) -> set[tuple[tuple[int, str], ...]]:
    return set(combinations(enumerate(names), 2))


def pairwise(everything: list[Names]) -> list[Names]:
    """Return a few combinations that together contain every pair of parts. They are chosen greedily."""
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
        generation=GenerationConfig(max_new_tokens=4),
    )


def clip(size: int) -> Tensor:
    return 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(size))


def batch() -> tuple[Tensor, Tensor]:
    """Return the clips as a batch. Its padding is loud noise, which must not affect the results."""
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


def logits_of(model: TinyAudioModel, audio: Tensor, lengths: Tensor, targets: list[Tensor]) -> list[Tensor]:
    """Return each clip's teacher-forced logits of its targets. ``audio`` contains audio embeddings ``[B, N, H]``."""
    embeddings, mask = model.splice(audio, lengths, targets, padding_side="right")
    logits = model.decoder(embeddings, mask, mask)
    rows = logits.split(mask.sum(1).tolist())
    return [row[-len(target) :] for row, target in zip(rows, targets, strict=True)]


def assert_close(found: Tensor, wanted: Tensor, what: str, *, num_parts: int) -> None:
    assert found.shape == wanted.shape, what
    difference, rms = float((found - wanted).abs().max()), float(wanted.pow(2).mean().sqrt())
    assert difference <= num_parts * TOLERANCE * rms, f"{what}: {difference:.2e} of RMS {rms:.2e}"


def check_invariance(model: TinyAudioModel, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Check that a clip has the same results alone and in a batch. Return the batch's embeddings and generated ids."""
    waveforms, lengths = batch()
    targets, _ = targets_of(model, tokenizer)
    embeddings, counts = model.projector(model.encode(waveforms, lengths))
    logits = logits_of(model, embeddings, counts, targets)
    generated = model.generate(waveforms, lengths)
    for row, size in enumerate(SIZES):
        waveform = clip(size)[None], torch.tensor([size])
        alone, count = model.projector(model.encode(*waveform))
        assert int(counts[row]) == int(count)
        assert_close(embeddings[row, : int(count)], alone[0, : int(count)], f"embeddings of clip {row}", num_parts=2)
        (single,) = logits_of(model, alone, count, [targets[row]])
        assert_close(logits[row], single, f"logits of clip {row}", num_parts=3)
        (ids,) = model.generate(*waveform)
        for position in range(min(len(ids), generated.shape[1])):
            if generated[row, position] == ids[position]:
                continue
            # The ids may differ only if the two best tokens have almost equal scores. Then rounding errors decide.
            (scores,) = logits_of(model, alone, count, [torch.cat([ids[:position], ids[:1]])])
            first, second = scores[-1].topk(2).values.tolist()
            tie = first - second <= 3 * TOLERANCE * float(single.pow(2).mean().sqrt())
            assert tie, f"clip {row} has other ids in a batch"
            break
    return embeddings, generated


def check(names: Names, folder: Path) -> None:
    model, tokenizer = assemble(names), tokenizer_of(names[2])
    check_training(model, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.requires_grad:
                nn.init.normal_(parameter, std=0.2)  # with the usual initialization, a tiny model repeats one token
        embeddings, generated = check_invariance(model.eval(), tokenizer)
        model.save_pretrained(folder)
        loaded = TinyAudioModel.from_pretrained(folder).eval()
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert torch.equal(loaded.projector(loaded.encode(*batch()))[0], embeddings)
        assert torch.equal(loaded.generate(*batch()), generated)


def in_turn() -> list[Names]:
    """Return a few combinations that together contain every part."""
    names = (ENCODERS.names(), PROJECTORS.names(), DECODERS.names())
    most = max(map(len, names))
    return list(zip(*(islice(cycle(column), most) for column in names), strict=True))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("names", in_turn(), ids="-".join)
def test_every_part_works(names: Names, tmp_path: Path) -> None:
    check(names, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("names", PAIRWISE, ids="-".join)
def test_every_pair_works(names: Names, tmp_path: Path) -> None:
    check(names, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("names", EVERYTHING, ids="-".join)
def test_every_combination_works(names: Names, tmp_path: Path) -> None:
    check(names, tmp_path)
