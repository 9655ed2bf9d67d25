"""Limits of a model: the longest clip and the longest context that fit into its decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
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
        config = self.config
        encoder = ENCODERS.parse(config.encoder).with_architecture(config.encoder_architecture or {})
        reserved = self.settings.max_tokens if config.context else 0
        return longest_clip_s(encoder, self.projector, self._max_positions, self._num_text_ids + reserved, at_most_s)

    def context_encoder(self, tokenizer: Any, longest_s: float) -> ContextEncoder:
        """Return the encoder of contexts for clips of at most ``longest_s`` seconds."""
        most, positions = self.settings.max_tokens, self._max_positions
        if positions is not None and not self.config.context:  # training has reserved no positions for a context
            encoder = ENCODERS.parse(self.config.encoder).with_architecture(self.config.encoder_architecture or {})
            audio = num_embeddings(encoder, self.projector, self.longest_clip_s(longest_s))
            most = max(0, min(most, positions - self._num_text_ids - audio))
        return ContextEncoder(tokenizer, self.settings, most)

    @property
    def settings(self) -> ContextSettings:
        """The kinds of context that the model was trained with."""
        return ContextSettings.model_validate(self.config.context or {}, strict=False)

    @property
    def _max_positions(self) -> int | None:
        config = self.config
        return DECODERS.parse(config.decoder).with_architecture(config.decoder_architecture or {}).max_positions()

    @property
    def _num_text_ids(self) -> int:
        config = self.config
        num_prompt_ids = len(config.prompt_prefix_ids) + len(config.prompt_suffix_ids)
        return num_prompt_ids + int(GenerationConfig(**config.generation).max_new_tokens)
