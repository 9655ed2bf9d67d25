"""The decoder ``causal_lm``: any causal language model of transformers. Code from the hub is not run."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig, DecoderContext
from tiny_audio.decoders._causal_lm import TINY_LLAMA, build_causal_lm
from tiny_audio.decoders._probe import probe
from tiny_audio.decoders._tokenizer import TrainedTokenizerConfig
from tiny_audio.pretrained.checkpoints import published_architecture
from tiny_audio.pretrained.config import ALL_ATTENTIONS
from tiny_audio.registry import did_you_mean


class CausalLMConfig(DecoderConfig):
    """Any causal LM of transformers, such as Granite, OLMo or Pythia. A chat template is optional."""

    attentions: ClassVar[tuple[str, ...]] = ALL_ATTENTIONS

    name: Literal["causal_lm"] = "causal_lm"
    pretrained: str = ""
    """Hub id or local folder of the checkpoint with its tokenizer. There is no default."""
    model_type: str | None = None
    """Architecture for ``init: random``, by its name in transformers, such as ``granite``. With ``init: pretrained``,
    the checkpoint determines the architecture."""

    @model_validator(mode="after")
    def _check_model_type(self) -> CausalLMConfig:
        if not self.pretrained and self.init == "pretrained":
            raise ValueError("pretrained is missing and has no default; give a hub id or the folder of a checkpoint")
        if not self.pretrained and self.tokenizer is None:
            raise ValueError(
                "tokenizer is missing; set it to train a tokenizer on the transcripts, such as tokenizer: {kind: bpe}, "
                "or set pretrained to a checkpoint to use its tokenizer"
            )
        if self.init == "random" and self.model_type is None:
            raise ValueError("model_type: init: random needs an architecture to build, such as model_type: granite")
        if self.init == "pretrained" and self.model_type is not None:
            raise ValueError("model_type: the checkpoint determines it; remove model_type, or set init: random")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Return a config of Granite with two layers of 32 channels.

        Unlike most families, Granite scales its embeddings, residuals and logits.
        """
        scales = {"embedding_multiplier": 6.0, "residual_multiplier": 0.5, "logits_scaling": 4.0}
        return cls(
            init="random",
            model_type="granite",
            overrides=TINY_LLAMA | scales,
            tokenizer=TrainedTokenizerConfig(kind="characters"),
            freeze=False,
        )


@DECODERS.register
def build_any_causal_lm(config: CausalLMConfig, context: DecoderContext) -> Decoder:
    """Build a transformers causal LM with the architecture of the checkpoint or of ``model_type``.

    Architectures treat embeddings, masks and positions differently, so :func:`probe` checks a new decoder. If
    ``context.architecture`` is given, the decoder was built and checked before, and is not checked again.

    Raises:
        UserError: transformers has no suitable causal LM of that architecture, or the model fails a check of
            :func:`probe`.
    """
    architecture = context.architecture or published_architecture(config) or {"model_type": config.model_type}
    model_class, config_class = _classes(config, architecture)
    decoder = build_causal_lm(model_class, config, context, config_class)
    if context.architecture is None:
        probe(decoder, config.pretrained if config.init == "pretrained" else str(config.model_type))
    return decoder


def _classes(config: CausalLMConfig, architecture: dict[str, Any]) -> tuple[Any, Any]:
    """Return the model class and the config class of transformers."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    model_type = architecture.get("model_type")
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if config.init == "random":
            raise UserError(
                f"model_type: transformers has no causal LM called {model_type!r}; "
                f"{did_you_mean(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}"
            )
        raise UserError(
            f"causal_lm: {config.pretrained} is a {model_type!r} checkpoint, and transformers has no causal LM of that "
            "name (code that comes with a checkpoint is not run); choose another checkpoint"
        )
    config_class = CONFIG_MAPPING[model_type]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    # The config of a model for images or sound contains the config of its language model as `text_config`.
    if "text_config" in config_class.sub_configs or config_class().is_encoder_decoder:
        raise UserError(
            f"causal_lm: {model_type} is not a text-only decoder; choose a checkpoint without an encoder and without "
            "other modalities"
        )
    is_bidirectional = model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not architecture.get("is_decoder")
    if config.init == "pretrained" and is_bidirectional:
        raise UserError(
            f"causal_lm: {config.pretrained} is a {model_type!r} checkpoint, which reads text in both directions and "
            "does not generate; choose a causal language model"
        )
    needed = {"inputs_embeds", "attention_mask", "logits_to_keep"} - set(
        inspect.signature(model_class.forward).parameters
    )
    if needed:
        raise UserError(
            f"causal_lm: {model_class.__name__} does not accept {', '.join(sorted(needed))}, which audio requires; "
            "choose another family"
        )
    return model_class, config_class
