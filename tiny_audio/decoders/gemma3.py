"""Gemma 3 (Kamath et al. 2025, arXiv 2503.19786): sliding windows in five of six layers, scaled embeddings."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig, DecoderContext
from tiny_audio.decoders._causal_lm import LLAMA_LAYERS, TINY_LLAMA, build_causal_lm
from tiny_audio.decoders._tokenizer import TrainedTokenizerConfig
from tiny_audio.pretrained.parts import ALL_ATTENTIONS


class Gemma3Config(DecoderConfig):
    """Gemma 3: 270 million or 1 billion parameters, those that read text only."""

    attentions: ClassVar[tuple[str, ...]] = ALL_ATTENTIONS
    linear_layers: ClassVar[tuple[str, ...] | None] = LLAMA_LAYERS
    plain_head: ClassVar[bool] = True

    name: Literal["gemma3"] = "gemma3"
    pretrained: str = "google/gemma-3-1b-it"
    """Hub id or local folder of a text-only Gemma 3 checkpoint, its tokenizer included."""

    @classmethod
    def tiny(cls) -> Self:
        """Two layers of 32 channels, one of them with a window that is shorter than a sentence."""
        own = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6, "final_logit_softcapping": 30.0}
        layers = {"layer_types": ["sliding_attention", "full_attention"]}
        tokenizer = TrainedTokenizerConfig(kind="characters")
        return cls(init="random", overrides=TINY_LLAMA | own | layers, tokenizer=tokenizer, freeze=False)


@DECODERS.register
def build_gemma3(config: Gemma3Config, context: DecoderContext) -> Decoder:
    """Gemma 3 from a checkpoint, or a random one."""
    from transformers import Gemma3ForCausalLM

    return build_causal_lm(Gemma3ForCausalLM, config, context)
