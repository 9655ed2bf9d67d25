"""Build the encoder and the projector with the code that an export contains."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, NamedTuple

import torch
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from tiny_audio_vllm.config import TinyAudioConfig

SAMPLE_RATE = 16_000
_LONGEST_CLIP_S = 30


class Parts(NamedTuple):
    """The encoder and the projector of a model, and the encoder's config, which limits the duration of clips."""

    encoder: Any
    projector: Any
    encoder_config: Any

    def num_embeddings(self, num_samples: int) -> int:
        """Return the maximum number of audio embeddings of a clip. Most projectors always return this number."""
        frames = torch.tensor([self.encoder_config.num_frames(num_samples)])
        return int(self.projector.max_embeddings(frames)[0])


def build_parts(config: TinyAudioConfig, folder: str, revision: str | None) -> Parts:
    """Build encoder and projector on the current default device, without their trained weights.

    Args:
        config: the config of the export.
        folder: folder of the export, or its id on the Hugging Face hub.
        revision: revision on the hub.

    Raises:
        ValueError: the number of audio embeddings depends on the content of a clip.
    """
    model_class = get_class_from_dynamic_module("modeling_tiny_audio.TinyAudioModel", folder, revision=revision)
    code: Any = sys.modules[f"{model_class.__module__.rpartition('.')[0]}.model_parts"]
    encoder_config = code.ENCODERS.parse(config.encoder).with_architecture(config.encoder_architecture)
    encoder = code.ENCODERS.build(code.ENCODERS.parse(config.encoder), code.EncoderContext(config.encoder_architecture))
    context = code.ProjectorContext(
        encoder.dim, config.text_config.hidden_size, encoder.frame_rate, config.embedding_rms
    )
    projector_config = code.PROJECTORS.parse(config.projector)
    if projector_config.needs_ctc:
        raise ValueError(
            f"the projector {projector_config.name!r} merges frames by their content, and vLLM needs the number of "
            "embeddings before it encodes a clip"
        )
    projector = code.PROJECTORS.build(projector_config, context)
    return Parts(encoder.eval(), projector.eval(), encoder_config)


@cache
def parts_for_counting(folder: str, revision: str | None) -> Parts:
    """Return parts on the meta device, without memory for weights. They are used only to count audio embeddings."""
    config = TinyAudioConfig.from_pretrained(folder, revision=revision)
    with torch.device("meta"):
        return build_parts(config, folder, revision)


def longest_clip_s(folder: str, revision: str | None, max_positions: int) -> int:
    """Return the duration in whole seconds of the longest clip that encoder and decoder accept, at most 30 s.

    Args:
        max_positions: number of positions of the decoder. Audio takes at most two thirds of the positions, so that the
            prompt and the text have room.
    """
    parts = parts_for_counting(folder, revision)
    longest_s = int(min(parts.encoder_config.max_duration_s() or _LONGEST_CLIP_S, _LONGEST_CLIP_S))
    room = 2 * max_positions // 3
    fitting = (s for s in range(longest_s, 0, -1) if parts.num_embeddings(s * SAMPLE_RATE) <= room)
    return next(fitting, 1)
