"""Limits of a model: the longest clip and the longest context that fit into its decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS, EncoderConfig
from tiny_audio.model.config import TinyAudioConfig
from tiny_audio.model.context import ContextEncoder, ContextSettings
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.limits import longest_clip_s, num_embeddings
from tiny_audio.projectors import Projector


@dataclass(frozen=True)
class Room:
    """Divides the positions of a model's decoder between clips and contexts."""

    config: TinyAudioConfig
    projector: Projector

    def longest_clip_s(self, at_most_s: float) -> float:
        """See ``TinyAudioModel.longest_clip_s``."""
        reserved = self.settings.max_tokens if self.config.context else 0
        num_ids = self._num_text_ids + reserved
        return longest_clip_s(self._encoder, self.projector, self._max_positions, num_ids, at_most_s)

    def context_encoder(self, tokenizer: Any, longest_s: float) -> ContextEncoder:
        """Return the encoder of contexts for clips of at most ``longest_s`` seconds."""
        most, positions = self.settings.max_tokens, self._max_positions
        if positions is not None and not self.config.context:  # training has reserved no positions for a context
            audio = self._num_embeddings(self.longest_clip_s(longest_s))
            most = max(0, min(most, positions - self._num_text_ids - audio))
        return ContextEncoder(tokenizer, self.settings, most)

    def fitting(self, generation: GenerationConfig, longest_s: float) -> GenerationConfig:
        """Return the settings, with a lower ``max_new_tokens`` if the decoder has too few positions.

        ``max_new_tokens`` is never lowered below the model's own setting.

        Args:
            generation: settings that may allow more tokens than the model's own settings.
            longest_s: duration of the longest clip.
        """
        positions, own = self._max_positions, GenerationConfig(**self.config.generation).max_new_tokens
        if positions is None or generation.max_new_tokens <= own:
            return generation
        reserved = self.settings.max_tokens if self.config.context else 0
        free = positions - self._num_prompt_ids - reserved - self._num_embeddings(longest_s)
        return generation.model_copy(update={"max_new_tokens": min(generation.max_new_tokens, max(own, free))})

    @property
    def settings(self) -> ContextSettings:
        """The kinds of context that the model was trained with."""
        return ContextSettings.model_validate(self.config.context or {}, strict=False)

    @property
    def _max_positions(self) -> int | None:
        config = self.config
        return DECODERS.parse(config.decoder).with_architecture(config.decoder_architecture or {}).max_positions()

    @property
    def _encoder(self) -> EncoderConfig:
        return ENCODERS.parse(self.config.encoder).with_architecture(self.config.encoder_architecture or {})

    def _num_embeddings(self, duration_s: float) -> int:
        return num_embeddings(self._encoder, self.projector, duration_s)

    @property
    def _num_prompt_ids(self) -> int:
        return len(self.config.prompt_prefix_ids) + len(self.config.prompt_suffix_ids)

    @property
    def _num_text_ids(self) -> int:
        return self._num_prompt_ids + int(GenerationConfig(**self.config.generation).max_new_tokens)
