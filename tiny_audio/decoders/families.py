"""Decoder families that have their own names, default checkpoints and known linear layers.

To add a family, add its config below, and add the config to the type annotation of :func:`build_family`. If
:func:`build_family` cannot build the model, add a file with another builder, like ``causal_lm.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig, DecoderContext
from tiny_audio.decoders._causal_lm import TINY_LLAMA, build_causal_lm
from tiny_audio.decoders._tokenizer import TrainedTokenizerConfig
from tiny_audio.pretrained.config import ALL_ATTENTIONS

LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of Llama and of architectures derived from it."""


class FamilyConfig(DecoderConfig):
    """Base class of the families' configs, with the common properties of architectures derived from Llama."""

    attentions: ClassVar[tuple[str, ...]] = ALL_ATTENTIONS
    linear_layers: ClassVar[tuple[str, ...] | None] = LLAMA_LAYERS
    plain_head: ClassVar[bool] = True

    model_class: ClassVar[str]
    """Name of the model class in ``transformers``."""
    tiny_overrides: ClassVar[dict[str, Any]] = {}
    """Fields of the transformers config that :meth:`tiny` changes in ``TINY_LLAMA``, or adds to it."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with two layers of 32 channels."""
        tokenizer = TrainedTokenizerConfig(kind="characters")
        overrides = TINY_LLAMA | cls.tiny_overrides
        # mypy does not know that every family has defaults for name and pretrained.
        return cls(init="random", overrides=overrides, tokenizer=tokenizer, freeze=False)  # type: ignore[call-arg]


class Gemma3Config(FamilyConfig):
    """Gemma 3, text-only: 270 million or 1 billion parameters."""

    # Kamath et al. 2025, arXiv 2503.19786: sliding windows in five of six layers, scaled embeddings.
    model_class: ClassVar[str] = "Gemma3ForCausalLM"
    # The sliding window is shorter than a sentence, so it has an effect in tests.
    tiny_overrides: ClassVar[dict[str, Any]] = {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 6,
        "final_logit_softcapping": 30.0,
        "layer_types": ["sliding_attention", "full_attention"],
    }

    name: Literal["gemma3"] = "gemma3"
    pretrained: str = "google/gemma-3-1b-it"
    """Hub id or local folder of a text-only Gemma 3 checkpoint with its tokenizer."""


class LlamaConfig(FamilyConfig):
    """Llama and other models with its architecture: 1 to 70 billion parameters."""

    # Grattafiori et al. 2024, arXiv 2407.21783.
    model_class: ClassVar[str] = "LlamaForCausalLM"

    name: Literal["llama"] = "llama"
    pretrained: str = "meta-llama/Llama-3.2-1B-Instruct"
    """Hub id or local folder of a checkpoint that has the Llama architecture and contains its tokenizer."""


class Qwen3Config(FamilyConfig):
    """Qwen3, dense: 0.6 to 32 billion parameters."""

    # Yang et al. 2025, arXiv 2505.09388: normalized queries and keys. The prompt switches reasoning off.
    model_class: ClassVar[str] = "Qwen3ForCausalLM"
    tiny_overrides: ClassVar[dict[str, Any]] = {"head_dim": 8}

    name: Literal["qwen3"] = "qwen3"
    pretrained: str = "Qwen/Qwen3-1.7B"
    """Hub id or local folder of a dense Qwen3 checkpoint with its tokenizer."""


class SmolLM2Config(FamilyConfig):
    """SmolLM2: 135 million, 360 million or 1.7 billion parameters."""

    # Ben Allal et al. 2025, arXiv 2502.02737: the Llama architecture.
    model_class: ClassVar[str] = "LlamaForCausalLM"

    name: Literal["smollm2"] = "smollm2"
    pretrained: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Hub id or local folder of a SmolLM2 checkpoint with its tokenizer."""


class SmolLM3Config(FamilyConfig):
    """SmolLM3: 3 billion parameters, or any size with random weights."""

    # Hugging Face 2025: grouped-query attention, no position encoding in every fourth layer, tied embeddings.
    model_class: ClassVar[str] = "SmolLM3ForCausalLM"

    name: Literal["smollm3"] = "smollm3"
    pretrained: str = "HuggingFaceTB/SmolLM3-3B"
    """Hub id or local folder of a SmolLM3 checkpoint with its tokenizer."""


@DECODERS.register
def build_family(
    config: Gemma3Config | LlamaConfig | Qwen3Config | SmolLM2Config | SmolLM3Config, context: DecoderContext
) -> Decoder:
    """Build the family's transformers model from a checkpoint or with random weights."""
    import transformers

    return build_causal_lm(getattr(transformers, config.model_class), config, context, can_share=True)
