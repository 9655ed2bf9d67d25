"""TinyAudioConfig: all settings that are needed to rebuild a model without its base checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from tiny_audio.runtime.requirements import check_audio_pair

# When an export is loaded, this module is imported first, so check here that torch and torchaudio work together.
# Without this check, an incompatible pair would make a later import fail deep inside transformers.
check_audio_pair()


class TinyAudioConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped here
    """The configs and architectures of a model's parts, and its prompt as token ids.

    Args:
        encoder, projector, decoder: the parts' configs as plain mappings, each with its ``name``.
        encoder_architecture, decoder_architecture: see ``Encoder.architecture``.
        embedding_rms: root mean square of the decoder's token embeddings, measured when the model was assembled.
        ctc_characters: the CTC head's labels. None if the model has no CTC head.
        prompt_prefix_ids, prompt_suffix_ids, end_token_id: see :class:`tiny_audio.model.prompt.Prompt`.
        generation: :class:`tiny_audio.model.decoding.GenerationConfig` as a mapping.
        context: :class:`tiny_audio.model.context.ContextSettings` as a mapping. None if the model was trained without
            context.
        base_weights: references to the weights that an export leaves out, by part (see
            :mod:`tiny_audio.model.base_weights`). None if the export contains all weights.
        clip_durations: :class:`tiny_audio.model.clip_durations.ClipDurations` of the training clips as a mapping. None
            if they are not recorded, as in older exports.
    """

    model_type = "tiny_audio"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        projector: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        encoder_architecture: dict[str, Any] | None = None,
        decoder_architecture: dict[str, Any] | None = None,
        embedding_rms: float = 1.0,
        ctc_characters: Sequence[str] | None = None,
        prompt_prefix_ids: Sequence[int] = (),
        prompt_suffix_ids: Sequence[int] = (),
        end_token_id: int = 0,
        generation: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None,
        base_weights: dict[str, Any] | None = None,
        clip_durations: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder = encoder
        self.projector = projector
        self.decoder = decoder
        self.encoder_architecture = encoder_architecture
        self.decoder_architecture = decoder_architecture
        self.embedding_rms = embedding_rms
        self.ctc_characters = None if ctc_characters is None else list(ctc_characters)
        self.prompt_prefix_ids = list(prompt_prefix_ids)
        self.prompt_suffix_ids = list(prompt_suffix_ids)
        self.end_token_id = end_token_id
        self.generation = generation or {}
        self.context = context
        self.base_weights = base_weights
        self.clip_durations = clip_durations
        super().__init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> TinyAudioConfig:
        """Return this config. Without this method, transformers would treat the mapping ``decoder`` as a config."""
        return self
