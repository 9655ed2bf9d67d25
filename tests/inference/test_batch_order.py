"""Texts do not depend on the batch or on the order of clips, for every encoder and every way to transcribe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.models import assemble
from tests.support.paths import SHARED
from tests.support.registered_parts import names, parts
from tiny_audio.decoders import DECODERS, load_tokenizer
from tiny_audio.encoders import ENCODERS
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.pipeline import TinyAudioPipeline
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.processor import TinyAudioProcessor
from tiny_audio.model.prompt import PromptConfig, build_prompt
from tiny_audio.projectors import PROJECTORS

pytestmark = pytest.mark.usefixtures("one_thread")
SECONDS = (0.3, 9.0, 1.7)
MORE_SECONDS = (0.3, 29.0, 1.7)
MAX_BF16_DIFFERENCE = 0.03
"""Largest allowed relative difference in bf16 between the audio embeddings of a clip that is encoded alone and those of
the clip in a batch. Tiny models had 0.002 to 0.015. The relative precision of bf16 is 0.008. Such a difference can
change a text only if two tokens have nearly equal scores."""


def clips(durations_s: Sequence[float]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(int(seconds * SAMPLE_RATE), generator=generator) for seconds in durations_s]


def by_generate(model: TinyAudioModel, tokenizer: Any, waveforms: Sequence[Tensor]) -> list[str]:
    """Transcribe with ``generate``, like a user of an exported model."""
    arrays: list[np.ndarray[Any, Any]] = [waveform.numpy() for waveform in waveforms]
    rows = model.generate(**TinyAudioProcessor(tokenizer)(arrays)).tolist()
    end = model.config.end_token_id
    cut = [row[: row.index(end)] if end in row else row for row in rows]
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in cut]


def by_pipeline(model: TinyAudioModel, tokenizer: Any, waveforms: Sequence[Tensor]) -> list[str]:
    recognizer = TinyAudioPipeline(model, tokenizer, device="cpu")
    recordings = [{"raw": waveform.numpy(), "sampling_rate": SAMPLE_RATE} for waveform in waveforms]
    found = recognizer(recordings, batch_size=len(recordings), filter_hallucinations=False)
    return [one["text"] for one in found]


def by_command(model: TinyAudioModel, tokenizer: Any, waveforms: Sequence[Tensor]) -> list[str]:
    """Transcribe like ``tiny-audio transcribe``."""
    transcriber = Transcriber(model, tokenizer, filter_hallucinations=False)
    return [found.text for found in transcriber.transcribe(waveforms)]


def check_order(model: TinyAudioModel, tokenizer: Any, durations_s: Sequence[float]) -> None:
    waveforms = clips(durations_s)
    alone = [by_command(model, tokenizer, [waveform])[0] for waveform in waveforms]
    assert any(alone), "all texts are empty, so their equality proves little"
    for way, order in (
        (by_command, [1, 2, 0]),
        (by_generate, [2, 1, 0]),
        (by_pipeline, [0, 1]),
    ):
        found = way(model, tokenizer, [waveforms[index] for index in order])
        assert found == [alone[index] for index in order], f"{way.__name__}, order {order}"


def embeddings(model: TinyAudioModel, waveforms: Sequence[Tensor]) -> list[Tensor]:
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
    with torch.no_grad():
        audio, counts = model.projector(model.encode(padded, lengths))
    return [row[:count].float() for row, count in zip(audio, counts.tolist(), strict=True)]


def tiny(encoder: str, *, ctc: bool) -> tuple[TinyAudioModel, Any]:
    config: Any = ENCODERS.entry(encoder).config
    positions = {"max_source_positions": 1500} if "max_source_positions" in config.tiny().overrides else None
    return assemble(encoder, prompt="{audio}", ctc=ctc, overrides=positions)


ENCODER_NAMES = names(parts(ENCODERS))


WITH_LONG_CLIPS = pytest.mark.parametrize("durations_s", [SECONDS, pytest.param(MORE_SECONDS, marks=pytest.mark.slow)])


@WITH_LONG_CLIPS
@pytest.mark.parametrize(
    ("encoder", "ctc"),
    [
        *((name, True) for name in ENCODER_NAMES if name != "wav2vec2"),
        pytest.param("wav2vec2", True, marks=pytest.mark.slow),  # slow, because it shares the code of HuBERT
        (ENCODER_NAMES[0], False),
    ],
)
def test_texts_are_equal_in_fp32(encoder: str, ctc: bool, durations_s: Sequence[float]) -> None:
    """With a CTC head, only ``generate`` decodes without drafts. Its texts must equal those of assisted decoding."""
    check_order(*tiny(encoder, ctc=ctc), durations_s)


@WITH_LONG_CLIPS
@pytest.mark.parametrize("encoder", ENCODER_NAMES)
def test_embeddings_are_nearly_equal_in_bf16(encoder: str, durations_s: Sequence[float]) -> None:
    model, _ = tiny(encoder, ctc=False)
    model.to(torch.bfloat16)
    waveforms = clips(durations_s)
    for index, together in enumerate(embeddings(model, waveforms)):
        (alone,) = embeddings(model, [waveforms[index]])
        assert alone.shape == together.shape
        difference = (alone - together).norm() / alone.norm()
        assert difference <= MAX_BF16_DIFFERENCE, f"clip of {durations_s[index]} s: {difference:.4f}"


CHECKPOINTS = Path(os.environ.get("TINY_AUDIO_PRETRAINED", SHARED / "pretrained"))


@pytest.mark.slow
@pytest.mark.skipif(not (CHECKPOINTS / "whisper-tiny.en").is_dir(), reason="no real checkpoints")
def test_texts_of_real_checkpoints_are_equal() -> None:
    """``../shared/pretrained/make.py`` writes the checkpoints whisper-tiny.en and SmolLM2-135M-Instruct."""
    torch.manual_seed(0)
    lm = CHECKPOINTS / "SmolLM2-135M-Instruct"
    tokenizer = load_tokenizer(str(lm), None)
    model = TinyAudioModel.assemble(
        ENCODERS.parse({"name": "whisper", "pretrained": str(CHECKPOINTS / "whisper-tiny.en")}),
        PROJECTORS.parse({"name": "linear", "stack": 5, "hidden_dim": 64}),
        DECODERS.parse({"name": "smollm2", "pretrained": str(lm)}),
        tokenizer=tokenizer,
        prompt=build_prompt(PromptConfig(), tokenizer),
        generation=GenerationConfig(max_new_tokens=12),
    ).eval()
    check_order(model.float(), tokenizer, MORE_SECONDS)
