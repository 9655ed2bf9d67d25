"""SmolLM2 (Ben Allal et al. 2025, arXiv 2502.02737): small models in the Llama architecture."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig, DecoderContext
from tiny_audio.decoders._causal_lm import LLAMA_LAYERS, TINY_LLAMA, build_causal_lm
from tiny_audio.decoders._tokenizer import TrainedTokenizerConfig
from tiny_audio.pretrained.parts import ALL_ATTENTIONS


class SmolLM2Config(DecoderConfig):
    """SmolLM2: 135 million, 360 million or 1.7 billion parameters."""

    attentions: ClassVar[tuple[str, ...]] = ALL_ATTENTIONS
    linear_layers: ClassVar[tuple[str, ...] | None] = LLAMA_LAYERS
    plain_head: ClassVar[bool] = True

    name: Literal["smollm2"] = "smollm2"
    pretrained: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Hub id or local folder of a SmolLM2 checkpoint, its tokenizer included."""

    @classmethod
    def tiny(cls) -> Self:
        """Two layers of 32 channels."""
        tokenizer = TrainedTokenizerConfig(kind="characters")
        return cls(init="random", overrides=TINY_LLAMA, tokenizer=tokenizer, freeze=False)


@DECODERS.register
def build_smollm2(config: SmolLM2Config, context: DecoderContext) -> Decoder:
    """SmolLM2 from a checkpoint, or a random one."""
    from transformers import LlamaForCausalLM

    return build_causal_lm(LlamaForCausalLM, config, context)
