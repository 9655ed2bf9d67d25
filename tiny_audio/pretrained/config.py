"""The config fields of every part that wraps a transformers model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    JsonValue,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

from tiny_audio.config import LATER, NO_IDENTITY, Config, expand_path
from tiny_audio.pretrained.packing import VARLEN
from tiny_audio.pretrained.published import published_fields
from tiny_audio.registry import did_you_mean

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "varlen"]

ALL_ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "varlen")
"""Attention implementations of families that support packed rows, see :mod:`tiny_audio.pretrained.packing`."""


class LoraConfig(Config):
    """Low-rank adapters on frozen linear layers (Hu et al. 2021, arXiv 2106.09685)."""

    rank: PositiveInt
    """Width of the bottleneck. An adapter has rank · (inputs + outputs) parameters."""
    alpha: PositiveFloat
    """The adapter's output is scaled by alpha / rank, or by alpha / √rank with ``rslora``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of the dropout on the adapters' inputs."""
    targets: tuple[str, ...] = Field(min_length=1)
    """Names of linear layers, such as ``q_proj``. Every layer whose path ends in one of these names gets an
    adapter."""
    dora: bool = Field(default=False, json_schema_extra=LATER)
    """Also train the norm of each row of the adapted weights (DoRA, Liu et al. 2024, arXiv 2402.09353). This adds one
    parameter per output. Training is slower, because each pass computes the norms of all rows."""
    rslora: bool = Field(default=False, json_schema_extra=LATER)
    """Scale by alpha / √rank, so that a higher rank does not weaken the adapters (Kalajdzievski 2023, arXiv
    2312.03732)."""


class TransformersPartConfig(Config):
    """Base of encoder and decoder configs."""

    attentions: ClassVar[tuple[str, ...]] = ("sdpa", "eager", "flash_attention_2")
    """Attention implementations of the model family. With ``attention: auto``, an encoder uses the first of them. A
    decoder uses the first that its architecture supports. But decoder families that are known to work with ``varlen``
    use ``varlen`` instead of ``sdpa``, unless there is dropout."""
    linear_layers: ClassVar[tuple[str, ...] | None] = None
    """Names that ``lora.targets`` may use; None if they are unknown until the part is built."""
    sections: ClassVar[tuple[str, ...]] = ()
    """Path to this part's fields in a whole model's ``config.json``, such as ``("thinker_config", "audio_config")``.
    Sections that are missing in a checkpoint are skipped."""
    other_model_types: ClassVar[tuple[str, ...]] = ()
    """Values of ``model_type`` that the publisher of the family uses instead of transformers' value."""
    prefix: ClassVar[str | None] = None
    """Regular expression for the start of this part's keys in the checkpoint of a whole model. Only tensors with such
    keys are read. None if transformers' model class finds the part's tensors by itself."""

    name: str
    pretrained: str
    """Hub id or local folder of the checkpoint."""
    revision: str | None = None
    """Commit, tag or branch on the hub. If None, the newest commit of the main branch is used."""
    init: Literal["pretrained", "random"] = "pretrained"
    """``random`` builds the architecture described by ``overrides`` with random weights. The weights of ``pretrained``
    are not used."""
    overrides: dict[str, JsonValue] = Field(default={})
    """Fields of the transformers config that differ from the defaults of transformers, such as ``num_hidden_layers:
    4``. Only for ``init: random``."""
    freeze: bool = True
    """Do not train the weights. With ``lora``, only the adapters train."""
    lora: LoraConfig | None = None
    """Adapters to train on the frozen weights. If this is None, there are no adapters."""
    attention: Attention = "auto"
    """Implementation of attention. ``auto`` is SDPA if the family supports it. ``varlen`` runs all clips of a batch as
    one sequence without padding. In half precision on a GPU, ``varlen`` uses PyTorch's kernel for such sequences.
    Otherwise, it computes attention clip by clip. ``flash_attention_2`` also avoids padding, but needs a GPU, half
    precision and the flash-attn package. In a decoder, the prompts of all clips begin with the same tokens: those
    before the context or, without a context, those before the audio. In training on a CPU, a decoder with ``varlen`` or
    ``auto`` computes this shared prefix only once per batch. There are three exceptions: a prefix of fewer than 8
    tokens, a decoder with dropout, and ``causal_lm`` with ``auto``."""
    gradient_checkpointing: bool = Field(default=False, json_schema_extra=NO_IDENTITY)
    """Recompute activations in the backward pass instead of storing them. This takes a third more time and far less
    memory."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate of this part. If None, it is ``training.learning_rate``. Warmup and schedule are the same for
    all parts."""
    weight_decay: NonNegativeFloat | None = None
    """Weight decay of this part. If None, it is ``training.weight_decay``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of each dropout in the part. It replaces the dropout settings of the checkpoint."""

    # Families redeclare `pretrained` with a default. This validator still applies.
    _path = field_validator("pretrained")(expand_path)
    _architecture: dict[str, Any] | None = PrivateAttr(default=None)

    def with_architecture(self, fields: Mapping[str, Any]) -> Self:
        """Return a copy whose :meth:`known_fields` are the fields of the checkpoint's ``config.json``."""
        known = self.model_copy()
        known._architecture = dict(fields)
        return known

    def known_fields(self) -> Mapping[str, Any]:
        """Return the fields of the transformers config that are known without reading the checkpoint.

        These are the fields given to :meth:`with_architecture`, the overrides of a random part, or the fields of a
        well-known checkpoint. Missing fields are unknown, or have the defaults of transformers.
        """
        fields: Mapping[str, Any] | None = self._architecture
        if fields is None:
            is_random = self.init == "random"
            fields = self.overrides if is_random else published_fields(self.pretrained, self.revision) or {}
        return self.own_fields(fields)

    def own_fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return this part's fields of a ``config.json``: the innermost section in :attr:`sections`, or all fields."""
        for name in self.sections:
            inner = fields.get(name)
            fields = inner if isinstance(inner, dict) else fields
        return fields

    def own_keys(self, keys: Iterable[str]) -> list[str]:
        """Return the keys to read from a checkpoint: those that start with :attr:`prefix`.

        All keys are returned if there is no prefix. If no key starts with the prefix, the checkpoint contains only this
        part, so all keys are returned, too.
        """
        keys = list(keys)
        return [key for key in keys if self.prefix and re.match(self.prefix, key)] or keys

    @model_validator(mode="after")
    def _check(self) -> TransformersPartConfig:
        if self.overrides and self.init == "pretrained":
            raise ValueError(
                "overrides change the architecture, but pretrained weights fit only their own architecture; "
                "set init: random, or remove the overrides"
            )
        if self.lora and not self.freeze:
            raise ValueError("lora adapts frozen weights; set freeze: true, or remove lora to train the whole part")
        if self.attention not in ("auto", *self.attentions):
            raise ValueError(
                f"attention: {self.name} does not support {self.attention}; choose one of auto, "
                f"{', '.join(self.attentions)}"
            )
        if self.attention == VARLEN and self.dropout:
            raise ValueError("attention: varlen has no dropout; set dropout: 0, or attention: auto")
        for target in self.lora.targets if self.lora and self.linear_layers is not None else ():
            # A target may be a longer path, such as `layers.1.attention.q_proj`.
            if target.rpartition(".")[2] not in (self.linear_layers or ()):
                raise ValueError(
                    f"lora.targets: {self.name} has no linear layer called {target!r}; "
                    f"{did_you_mean(target, self.linear_layers or ())}"
                )
        return self
