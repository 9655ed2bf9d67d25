"""Tiny models, three clips as their input, and an unfused loss to compare fused losses with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_audio.ctc import CtcVocabulary
from tiny_audio.decoders import DECODERS, build_tokenizer
from tiny_audio.encoders import ENCODERS
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.prompt import PromptConfig, build_prompt
from tiny_audio.projectors import PROJECTORS
from tiny_audio.training.fused import by_liger

TEXTS = ["one two three", "four", "nine zero"]
LENGTHS = torch.tensor([24_000, 3_000, 9_111])


def with_fields(config: Any, **fields: Any) -> Any:
    return type(config).model_validate({**config.model_dump(), **fields})


def tiny(registry: Any, name: str, **fields: Any) -> Any:
    return with_fields(registry.entry(name).config.tiny(), **fields)


def waveforms() -> Tensor:
    return 0.1 * torch.randn(len(LENGTHS), int(LENGTHS.max()), generator=torch.Generator().manual_seed(0))


def assemble(decoder: str, *, head: bool = False, **fields: Any) -> tuple[TinyAudioModel, Any]:
    torch.manual_seed(0)
    config = tiny(DECODERS, decoder, **fields)
    tokenizer = build_tokenizer(config, TEXTS)
    model = TinyAudioModel.assemble(
        tiny(ENCODERS, "whisper", freeze=True),
        tiny(PROJECTORS, "swiglu"),
        config,
        tokenizer=tokenizer,
        prompt=build_prompt(PromptConfig(), tokenizer),
        ctc_vocabulary=CtcVocabulary.of(TEXTS) if head else None,
    )
    return model.train(), tokenizer


def score(model: TinyAudioModel, tokenizer: Any, **settings: Any) -> Any:
    targets = [torch.tensor([*tokenizer.encode(text), model.config.end_token_id]) for text in TEXTS]
    labels = None
    if model.ctc_vocabulary is not None:
        labels = [model.ctc_vocabulary.encode(text) or [] for text in TEXTS]
    return model(waveforms(), LENGTHS, targets, labels, **settings)


def unfused(hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets, reduction="none", label_smoothing=label_smoothing)


def compare_with_liger() -> None:
    """Check that Liger's fused loss gives a model in fp32 the same losses and gradients as the unfused loss."""
    for smoothing in (0.0, 0.1):
        found = []
        for fused in (unfused, by_liger):
            model, tokenizer = assemble("smollm3")
            scores = score(model, tokenizer, label_smoothing=smoothing, linear_cross_entropy=fused)
            # Weight the rows differently, so that each token's gradient is checked.
            (scores.decoder_loss * torch.tensor([1.0, 3.0, 0.5])).sum().backward()
            found.append({name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None})
            found[-1]["loss"] = scores.decoder_loss.detach()
        assert found[0].keys() == found[1].keys()
        for name, wanted in found[0].items():
            assert torch.allclose(found[1][name], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())), name
