"""A decoder that wraps a transformers causal LM, and its builder."""

from __future__ import annotations

import inspect
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from tiny_audio.config import UserError
from tiny_audio.decoders import Decoder, DecoderCache, DecoderConfig, DecoderContext, Head
from tiny_audio.decoders._cache import CausalLMCache, can_crop
from tiny_audio.pretrained.building import (
    architecture_of,
    attention_implementation,
    build_or_load,
    transformers_config,
)
from tiny_audio.pretrained.config import Attention
from tiny_audio.pretrained.packing import PACKED, VARLEN, Packing, register_varlen
from tiny_audio.pretrained.trainable import prepare_training

TINY_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
"""Fields of a Llama config with two layers of 32 channels."""

_LEAST_SHARED = 8
"""A prefix that all rows share is computed only once if it has at least this many positions. With fewer, packing would
save little."""
# `CausalLMDecoder.architecture` stores the ids that must never be generated under this key.
_UNDECODABLE = "undecodable_ids"


def build_causal_lm(
    model_class: Any,
    config: DecoderConfig,
    context: DecoderContext,
    config_class: Any = None,
    *,
    can_share: bool = False,
) -> CausalLMDecoder:
    """Build a transformers ``…ForCausalLM`` from a checkpoint, or with random weights for the tokenizer's vocabulary.

    Args:
        model_class: a model class of ``transformers``.
        config_class: a config class of ``transformers``. If None, the model's own config class is used.
        can_share: whether ``varlen`` attention is known to work for this family. If so, ``attention: auto`` may pack
            rows that share a prefix into one sequence.

    Raises:
        UserError: the decoder cannot be built (see :mod:`tiny_audio.pretrained.building`).
    """
    from transformers import GenerationConfig

    tokenizer, known = context.tokenizer, context.architecture
    undecodable: list[list[int]] = []
    settings: dict[str, Any] = {}
    if known is not None:
        undecodable = known.get(_UNDECODABLE, [])
        known = {name: value for name, value in known.items() if name != _UNDECODABLE}
    elif config.init == "random":
        settings = {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    architecture = transformers_config(config_class or model_class.config_class, config, known, **settings)
    configure_dropout(architecture, config.dropout)
    attention = _attention(model_class, architecture, config, can_share=can_share)
    model = build_or_load(model_class, architecture, config, rebuilt=known is not None, attention=attention)
    if known is None:
        # Models are rebuilt from this config, so it must state whether head and embeddings share their weights.
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        model.config.tie_word_embeddings = tied
        if config.init == "pretrained" and tokenizer is not None:
            undecodable = undecodable_ids(tokenizer, model.config.vocab_size)
    _check_head_not_adapted(model, config)
    # A checkpoint's sampling settings (temperature, penalties) are not used, because the recipe has its own settings.
    model.generation_config = GenerationConfig()
    prepare_training(model, config)
    packs = config.attention in PACKED and _can_pack(model_class, architecture)
    return CausalLMDecoder(model, undecodable, packs=packs, shares=attention == VARLEN and not _has_dropout(config))


def configure_dropout(architecture: Any, probability: float) -> None:
    """Set every dropout in a transformers config to ``probability``, and switch other random operations off."""
    from transformers import PreTrainedConfig

    for name, value in vars(architecture).items():
        if isinstance(value, PreTrainedConfig):  # a nested config
            configure_dropout(value, probability)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            off = "layerdrop" in name or "drop_path" in name or "jitter_noise" in name
            wanted = 0.0 if off else probability if "drop" in name else value
            if value != wanted:  # do not replace the integer 0 by 0.0
                setattr(architecture, name, wanted)


def _has_dropout(config: DecoderConfig) -> bool:
    """Whether the config enables dropout. Dropout differs between rows, so rows with dropout cannot share a prefix."""
    return bool(config.dropout or (config.lora and config.lora.dropout))


def _attention(model_class: Any, architecture: Any, config: DecoderConfig, *, can_share: bool) -> str:
    """Return transformers' name of the attention implementation.

    For ``auto``, this is the first implementation in ``config.attentions`` that the architecture supports. If it is
    SDPA, ``varlen`` is used instead under three conditions: ``can_share`` is True, the architecture supports
    ``varlen``, and there is no dropout. If no rows are packed, SDPA and ``varlen`` give the same result.

    Raises:
        UserError: the architecture does not support the requested implementation.
    """
    has: dict[Attention, bool] = {
        "sdpa": model_class._supports_sdpa,
        "eager": True,
        "flash_attention_2": model_class._supports_flash_attn,
        "varlen": _can_pack(model_class, architecture),
    }
    if config.attention == "auto":
        first = next(name for name in config.attentions if has[name])  # type: ignore[index]
        if first == "sdpa" and can_share and has["varlen"] and not _has_dropout(config):
            register_varlen()
            return VARLEN
        return first
    if not has[config.attention]:
        names = ", ".join(name for name, there in has.items() if there)
        raise UserError(
            f"attention: {model_class.__name__} does not support {config.attention}; choose one of auto, {names}"
        )
    return attention_implementation(config)


def _can_pack(model_class: Any, architecture: Any) -> bool:
    """Whether a model supports packed rows. It must accept position ids, and pass row lengths to its attention."""
    takes_positions = "position_ids" in inspect.signature(model_class.forward).parameters
    # Chunked attention, convolutions and recurrent states would cross the borders between packed rows.
    has_borders = {*(getattr(architecture, "layer_types", None) or ())} <= {"full_attention", "sliding_attention"}
    return takes_positions and has_borders and bool(model_class._supports_attention_backend)


def _check_head_not_adapted(model: Any, config: DecoderConfig) -> None:
    """Check that no LoRA target is the head, which often shares its weights with the embeddings.

    Raises:
        UserError: a target is the head.
    """
    head = next(path for path, module in model.named_modules() if module is model.get_output_embeddings())
    for target in config.lora.targets if config.lora else ():
        if f".{head}".endswith(f".{target}"):
            raise UserError(
                f"lora.targets: {target} is the head of the language model, and the head cannot have an adapter; "
                f"remove {target} from lora.targets"
            )


def undecodable_ids(tokenizer: Any, vocab_size: int) -> list[list[int]]:
    """Return the ids that the model can generate but the tokenizer does not know, as ranges ``[start, stop)``.

    Vocabularies are often padded to round sizes. The extra rows are not trained, so their logits are meaningless.
    """
    spare = sorted(set(range(vocab_size)) - set(tokenizer.get_vocab().values()))
    ranges = []
    for _, run in groupby(enumerate(spare), lambda entry: entry[1] - entry[0]):
        ids = [index for _, index in run]
        ranges.append([ids[0], ids[-1] + 1])
    return ranges


class CausalLMDecoder(Decoder):
    """A transformers ``…ForCausalLM``.

    Args:
        undecodable: ranges ``[start, stop)`` of ids that :meth:`generate` never returns.
        packs: whether :meth:`forward` packs rows into one sequence without padding.
        shares: whether :meth:`forward` on a CPU packs rows that share a prefix, so that the prefix is computed only
            once.
    """

    def __init__(self, model: Any, undecodable: list[list[int]], *, packs: bool = False, shares: bool = False) -> None:
        super().__init__()
        self.model = model
        self.packs, self.shares = packs, shares
        # `hidden_size` may differ from the embeddings' width. For example, OPT has a projection after its embeddings.
        self.dim: int = model.get_input_embeddings().weight.shape[1]
        self._undecodable = undecodable
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings that the model's own forward would use. For Gemma, they are scaled."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def forward(
        self, embeddings: Tensor, mask: Tensor, keep: Tensor, head: Head | None = None, num_shared: int = 0
    ) -> Tensor:
        """Run the model's own forward, which may scale or cap logits.

        Raises:
            UserError: a ``head`` is given, but the model's own head has a bias or caps logits.
        """
        settings: dict[str, Any] = {}
        shares = self.shares and num_shared >= _LEAST_SHARED and embeddings.device.type == "cpu"
        if self.packs or shares:
            packing = Packing.of(mask, num_shared if shares else 0)
            embeddings, keep = packing.pack(embeddings), packing.pack(keep)
            settings = {"position_ids": packing.positions(), **packing.attention()}
        else:
            settings["attention_mask"] = mask
            if self._takes_positions:
                settings["position_ids"] = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        if head is not None:
            own = self.model.get_output_embeddings()
            if own.bias is not None or getattr(self.model.config, "final_logit_softcapping", None):
                raise UserError(
                    "execution.fused_cross_entropy: the head of this decoder has a bias or caps logits; set "
                    "fused_cross_entropy: false"
                )
            hidden = self.model.base_model(inputs_embeds=embeddings, use_cache=False, **settings).last_hidden_state
            return head(hidden[keep], own.weight)
        output = self.model(inputs_embeds=embeddings, logits_to_keep=keep, use_cache=False, **settings)
        logits: Tensor = output.logits
        return logits

    def generate(self, embeddings: Tensor, mask: Tensor, **settings: Any) -> Any:
        """Run transformers' ``generate``, which counts positions from the first real position of each row."""
        spare = [index for start, stop in self._undecodable for index in range(start, stop)]
        if spare:
            settings["suppress_tokens"] = sorted({*spare, *(settings.get("suppress_tokens") or ())})
        # Every process has all weights while it generates, so it must not wait for other processes.
        settings.setdefault("synced_gpus", False)
        return self.model.generate(inputs_embeds=embeddings, attention_mask=mask.long(), **settings)

    def cache(self) -> DecoderCache | None:
        """Return an empty key-value cache, or None if the model has other states."""
        if not can_crop(self.model):
            return None
        return CausalLMCache(self.model, self._undecodable, takes_positions=self._takes_positions)

    @torch.no_grad()
    def embedding_rms(self) -> float:
        """Return the root mean square over the whole embedding table, with the scale of :meth:`embed`."""
        table = self.model.get_input_embeddings()
        embeddings = table(torch.arange(len(table.weight), device=table.weight.device))
        return float(embeddings.float().pow(2).mean().sqrt())

    def architecture(self) -> dict[str, Any]:
        """Return the transformers config, and the ids that must never be generated."""
        architecture = architecture_of(self.model.config)
        return architecture | {_UNDECODABLE: self._undecodable} if self._undecodable else architecture
