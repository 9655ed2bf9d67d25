"""What every decoder that wraps a transformers causal LM shares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tiny_audio.decoders import Decoder, DecoderConfig, DecoderContext
from tiny_audio.pretrained import architecture_of, attention_for, load_weights, prepare_training, transformers_config


def build_causal_lm(model_class: Any, config: DecoderConfig, context: DecoderContext, **settings: Any) -> Decoder:
    """A transformers ``…ForCausalLM`` from a checkpoint, or a random one with the tokenizer's vocabulary.

    Raises:
        UserError: see :mod:`tiny_audio.pretrained`.
    """
    from transformers import GenerationConfig

    tokenizer = context.tokenizer
    if context.architecture is None and config.init == "random":
        settings |= {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    architecture = transformers_config(model_class.config_class, config, context.architecture, **settings)
    architecture._attn_implementation = attention_for(config)
    if context.architecture is not None:
        model = model_class._from_config(architecture)
    else:
        model = load_weights(model_class, architecture, config)
        # A checkpoint's weights decide, and a config that says otherwise would rebuild another model.
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        model.config.tie_word_embeddings = tied
    # A checkpoint's own sampling habits (temperature, penalties) are not the recipe's, and an export would lose them.
    model.generation_config = GenerationConfig()
    prepare_training(model, config)
    return CausalLMDecoder(model)


class CausalLMDecoder(Decoder):
    """A transformers ``…ForCausalLM``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.dim: int = model.config.hidden_size

    def embed(self, ids: Tensor) -> Tensor:
        """The model's input embeddings."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def forward(self, embeddings: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        """The backbone over everything, the language-model head over ``keep``."""
        output = self.model.get_decoder()(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=torch.arange(embeddings.shape[1], device=embeddings.device)[None],
            use_cache=False,
        )
        logits: Tensor = self.model.get_output_embeddings()(output.last_hidden_state[keep])
        return logits

    def generate(self, embeddings: Tensor, mask: Tensor, **settings: Any) -> Any:
        """transformers' generate, which numbers positions from each row's own start."""
        return self.model.generate(inputs_embeds=embeddings, attention_mask=mask.long(), **settings)

    def embedding_rms(self) -> float:
        """Over the whole table."""
        weight = self.model.get_input_embeddings().weight.detach()
        return float(weight.float().pow(2).mean().sqrt())

    def architecture(self) -> dict[str, Any]:
        """The transformers config."""
        return architecture_of(self.model.config)
