"""SmolLM3 (Hugging Face 2025): grouped queries, no positions in every fourth layer, tied embeddings."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig, DecoderContext
from tiny_audio.decoders._causal_lm import LLAMA_LAYERS, TINY_LLAMA, build_causal_lm
from tiny_audio.decoders._tokenizer import TrainedTokenizerConfig
from tiny_audio.pretrained.parts import ALL_ATTENTIONS


class SmolLM3Config(DecoderConfig):
    """SmolLM3: 3 billion parameters, or any size from nothing."""

    attentions: ClassVar[tuple[str, ...]] = ALL_ATTENTIONS
    linear_layers: ClassVar[tuple[str, ...] | None] = LLAMA_LAYERS
    plain_head: ClassVar[bool] = True

    name: Literal["smollm3"] = "smollm3"
    pretrained: str = "HuggingFaceTB/SmolLM3-3B"
    """Hub id or local folder of a SmolLM3 checkpoint, its tokenizer included."""

    @classmethod
    def tiny(cls) -> Self:
        """Two layers of 32 channels."""
        tokenizer = TrainedTokenizerConfig(kind="characters")
        return cls(init="random", overrides=TINY_LLAMA, tokenizer=tokenizer, freeze=False)


@DECODERS.register
def build_smollm3(config: SmolLM3Config, context: DecoderContext) -> Decoder:
    """SmolLM3 from a checkpoint, or a random one."""
    from transformers import SmolLM3ForCausalLM

    return build_causal_lm(SmolLM3ForCausalLM, config, context)
