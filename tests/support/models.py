"""Tiny random models that generate text, and their outputs for two clips."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tiny_audio.ctc import CtcVocabulary
from tiny_audio.decoders import DECODERS, DecoderContext, build_tokenizer
from tiny_audio.encoders import ENCODERS, EncoderContext
from tiny_audio.model.context import CONTEXT_CHARACTERS, ContextSettings
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.processor import TinyAudioProcessor
from tiny_audio.model.prompt import PromptConfig, build_prompt
from tiny_audio.projectors import PROJECTORS

TRANSCRIPTS = ("one two three", "four five six", "zero")
GREEDY = GenerationConfig(max_new_tokens=8)
BEAMS = GenerationConfig(max_new_tokens=8, num_beams=3)
JOINT = GenerationConfig(max_new_tokens=8, num_beams=3, ctc_weight=0.4)


def assemble(
    encoder: str = "whisper",
    decoder: str | dict[str, Any] = "smollm3",
    projector: str = "swiglu",
    *,
    transcripts: Sequence[str] = TRANSCRIPTS,
    prompt: str = "fox {audio} wins",
    lora: bool = False,
    ctc: bool = True,
    generation: GenerationConfig = GREEDY,
    hidden_size: int | None = None,
    overrides: dict[str, Any] | None = None,
    context: ContextSettings | None = None,
) -> tuple[TinyAudioModel, Any]:
    """Build a model and its tokenizer.

    Args:
        encoder, projector: names of parts; their ``tiny()`` configs are used.
        decoder: name of a part, or the fields of its config.
        transcripts: texts whose characters the tokenizer and the CTC head know.
        prompt: the user's message.
        lora: freeze encoder and decoder, and add adapters.
        ctc: whether there is a CTC head.
        generation: the model's generation settings.
        hidden_size: hidden size of the encoder. None uses the size of its ``tiny()`` config.
        overrides: further config fields of the encoder.
        context: the model's context settings. The tokenizer can then encode contexts.
    """
    torch.manual_seed(0)
    encoder_config: Any = ENCODERS.entry(encoder).config.tiny()  # type: ignore[attr-defined]
    decoder_config: Any = (
        DECODERS.entry(decoder).config.tiny() if isinstance(decoder, str) else DECODERS.parse(decoder)  # type: ignore[attr-defined]
    )
    changes = ({} if hidden_size is None else {"hidden_size": hidden_size}) | (overrides or {})
    if changes:
        encoder_config = encoder_config.model_copy(update={"overrides": encoder_config.overrides | changes})
    tokenizer = build_tokenizer(decoder_config, (*transcripts, *([CONTEXT_CHARACTERS] if context else [])))
    if lora:
        encoder_config = with_lora(encoder_config, ENCODERS.build(encoder_config, EncoderContext()))
        decoder_config = with_lora(decoder_config, DECODERS.build(decoder_config, DecoderContext(tokenizer)))
    model = TinyAudioModel.assemble(
        encoder_config,
        PROJECTORS.entry(projector).config.tiny(),  # type: ignore[attr-defined]
        decoder_config,
        tokenizer=tokenizer,
        prompt=build_prompt(PromptConfig(user=prompt), tokenizer),
        ctc_vocabulary=CtcVocabulary.of(transcripts) if ctc else None,
        generation=generation,
        context=context,
    )
    # With the usual initialization, a tiny model repeats one special token, and adapters have no effect.
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.4 if "lora" not in name else 0.1)
    return model.eval(), tokenizer


def with_lora(config: Any, part: nn.Module) -> Any:
    """Return the config of a frozen part with adapters on all linear layers that have the most frequent name."""
    names = Counter(name.rsplit(".", 1)[-1] for name, module in part.named_modules() if isinstance(module, nn.Linear))
    lora = {"rank": 2, "alpha": 4.0, "targets": [names.most_common(1)[0][0]]}
    return type(config).model_validate({**config.model_dump(), "freeze": True, "lora": lora}, strict=False)


def batch(*sizes: int, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Return waveforms with loud noise beyond each length, and the lengths."""
    waveforms = 10 * torch.randn(len(sizes), max(sizes) + extra, generator=torch.Generator().manual_seed(1))
    for row, size in zip(waveforms, sizes, strict=True):
        row[:size] = clip(size)
    return waveforms, torch.tensor(sizes)


def clip(size: int) -> Tensor:
    return 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(size))


def two_clips() -> list[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    return [generator.normal(0, 0.1, size).astype(np.float32) for size in (16_000, 9_001)]


def decoder_losses(model: TinyAudioModel, tokenizer: Any) -> Tensor:
    """Return the decoder's loss on each of :func:`two_clips`."""
    targets = [torch.tensor([*tokenizer.encode(text, add_special_tokens=False), 2]) for text in ("stop now", "left")]
    with torch.no_grad():
        return model(**TinyAudioProcessor(tokenizer)(two_clips()), targets=targets).decoder_loss


def outputs(model: TinyAudioModel, tokenizer: Any) -> dict[str, Any]:
    """Return a model's token ids and transcripts of :func:`two_clips`, as JSON values."""
    inputs = TinyAudioProcessor(tokenizer)(two_clips())
    transcripts = model.transcribe(**inputs, tokenizer=tokenizer)
    return {
        "ids": model.generate(**inputs).tolist(),
        "transcripts": [[one.text, one.ctc_text, one.truncated] for one in transcripts],
    }


def losses(model: TinyAudioModel, tokenizer: Any) -> Tensor:
    """Return teacher-forced losses on :func:`two_clips`, ``[2, B]``: one row for the decoder, one for the CTC head."""
    texts = TRANSCRIPTS[:2]
    targets = [torch.tensor([*tokenizer.encode(text, add_special_tokens=False), 2]) for text in texts]
    labels = [CtcVocabulary.of(TRANSCRIPTS).encode(text) or [] for text in texts]
    with torch.no_grad():
        scores = model(**TinyAudioProcessor(tokenizer)(two_clips()), targets=targets, ctc_targets=labels)
    assert scores.ctc_loss is not None
    return torch.stack([scores.decoder_loss, scores.ctc_loss])


def change_config(folder: Path, **fields: Any) -> None:
    """Change fields of an exported model's ``config.json``."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def write_decoder(folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint of a tiny decoder in half precision, with its tokenizer, like a published checkpoint."""
    tiny = DECODERS.entry("smollm3").config.tiny()  # type: ignore[attr-defined]
    tokenizer = build_tokenizer(tiny, TRANSCRIPTS)
    torch.manual_seed(seed)
    decoder: Any = DECODERS.build(tiny, DecoderContext(tokenizer))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    decoder.model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
