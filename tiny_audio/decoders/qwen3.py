"""Qwen3 (Yang et al. 2025, arXiv 2505.09388): normalized queries and keys, thoughts that a prompt switches off."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig, DecoderContext
from tiny_audio.decoders._causal_lm import LLAMA_LAYERS, TINY_LLAMA, build_causal_lm
from tiny_audio.decoders._tokenizer import TrainedTokenizerConfig
from tiny_audio.pretrained.parts import ALL_ATTENTIONS


class Qwen3Config(DecoderConfig):
    """Qwen3: 0.6 to 32 billion parameters, of the dense kind."""

    attentions: ClassVar[tuple[str, ...]] = ALL_ATTENTIONS
    linear_layers: ClassVar[tuple[str, ...] | None] = LLAMA_LAYERS
    plain_head: ClassVar[bool] = True

    name: Literal["qwen3"] = "qwen3"
    pretrained: str = "Qwen/Qwen3-1.7B"
    """Hub id or local folder of a dense Qwen3 checkpoint, its tokenizer included."""

    @classmethod
    def tiny(cls) -> Self:
        """Two layers of 32 channels."""
        tokenizer = TrainedTokenizerConfig(kind="characters")
        return cls(init="random", overrides=TINY_LLAMA | {"head_dim": 8}, tokenizer=tokenizer, freeze=False)


@DECODERS.register
def build_qwen3(config: Qwen3Config, context: DecoderContext) -> Decoder:
    """Qwen3 from a checkpoint, or a random one."""
    from transformers import Qwen3ForCausalLM

    return build_causal_lm(Qwen3ForCausalLM, config, context)
