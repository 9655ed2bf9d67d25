"""Llama (Grattafiori et al. 2024, arXiv 2407.21783): the architecture that most open language models descend from."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig, DecoderContext
from tiny_audio.decoders._causal_lm import LLAMA_LAYERS, TINY_LLAMA, build_causal_lm
from tiny_audio.decoders._tokenizer import TrainedTokenizerConfig
from tiny_audio.pretrained.parts import ALL_ATTENTIONS


class LlamaConfig(DecoderConfig):
    """Llama: 1 to 70 billion parameters, and the many models that share its architecture."""

    attentions: ClassVar[tuple[str, ...]] = ALL_ATTENTIONS
    linear_layers: ClassVar[tuple[str, ...] | None] = LLAMA_LAYERS
    plain_head: ClassVar[bool] = True

    name: Literal["llama"] = "llama"
    pretrained: str = "meta-llama/Llama-3.2-1B-Instruct"
    """Hub id or local folder of a checkpoint in the Llama architecture, its tokenizer included."""

    @classmethod
    def tiny(cls) -> Self:
        """Two layers of 32 channels."""
        tokenizer = TrainedTokenizerConfig(kind="characters")
        return cls(init="random", overrides=TINY_LLAMA, tokenizer=tokenizer, freeze=False)


@DECODERS.register
def build_llama(config: LlamaConfig, context: DecoderContext) -> Decoder:
    """Llama from a checkpoint, or a random one."""
    from transformers import LlamaForCausalLM

    return build_causal_lm(LlamaForCausalLM, config, context)
