"""The config of an export in the form that vLLM expects: the decoder has a config of its own, the text config."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


class TinyAudioConfig(PreTrainedConfig):
    """``config.json`` of an export of Tiny Audio. See ``configuration_tiny_audio.py`` in the export for its fields.

    Raises:
        ValueError: the export has unmerged adapters, or refers to base models for some weights, or its decoder is not a
            causal language model of transformers.
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
        prompt_prefix_ids: list[int] | None = None,
        prompt_suffix_ids: list[int] | None = None,
        end_token_id: int = 0,
        base_weights: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder, self.projector, self.decoder = encoder, projector, decoder
        self.encoder_architecture, self.decoder_architecture = encoder_architecture, decoder_architecture
        self.embedding_rms = embedding_rms
        self.prompt_prefix_ids, self.prompt_suffix_ids = prompt_prefix_ids or [], prompt_suffix_ids or []
        self.end_token_id = end_token_id
        self.base_weights = base_weights
        adapted = [kind for kind in ("encoder", "decoder") if (getattr(self, kind) or {}).get("lora")]
        if base_weights or adapted:
            raise ValueError(
                "vLLM needs an export with all weights and merged adapters; this is not the case for: "
                f"{', '.join([*(base_weights or {}), *adapted])}; export the run again with "
                "`tiny-audio export RUN FOLDER --merge-lora`"
            )
        known = dict(decoder_architecture or {"model_type": "llama"})
        self.undecodable_ids: list[int] = known.pop("undecodable_ids", [])
        kind = known.pop("model_type")
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(f"the decoder's architecture {kind!r} is not a causal language model of transformers")
        self.text_config = CONFIG_MAPPING[kind](**known)
        self.text_config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
        super().__init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the decoder's config."""
        return self.text_config

    @property
    def audio_token_id(self) -> int:
        """The token id at the positions of audio embeddings: the lowest id that neither prompt nor end token uses.

        Exports have no special token for audio. The embedding of this id is never used, so any unused id works.
        """
        taken = {*self.prompt_prefix_ids, *self.prompt_suffix_ids, self.end_token_id}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    @property
    def prompt_ids(self) -> list[int]:
        """The token ids of the prompt, with one placeholder for the audio."""
        return [*self.prompt_prefix_ids, self.audio_token_id, *self.prompt_suffix_ids]
