"""The key-value cache of a transformers causal LM, in which each row can be cropped."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from tiny_audio.decoders import DecoderCache

_KINDS = {"full_attention", "sliding_attention"}
"""Types of layers whose state consists only of a key and a value for each position."""


def can_crop(model: Any) -> bool:
    """Whether the rows of the cache of a transformers ``…ForCausalLM`` can be cropped.

    The state of the model must consist only of a key and a value for each position.
    """
    kinds = {*(getattr(model.config, "layer_types", None) or ())}
    return _cache_argument(model) is not None and not model._is_stateful and kinds <= _KINDS


def _cache_argument(model: Any) -> str | None:
    """Return the name of ``forward``'s cache argument, or None if there is none. transformers 5.24 changed the name."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in parameters), None)


class CausalLMCache(DecoderCache):
    """A transformers cache whose rows are contiguous and right-aligned.

    In assisted decoding, each row accepts a different number of draft tokens. The rows are then moved, so that all of
    them end at the same position. Masking the rejected tokens would be faster, but would leave these tokens in the
    cache. Layers with sliding windows or linear position biases (ALiBi) would count the rejected tokens in the distance
    between two other tokens.

    Args:
        model: a ``…ForCausalLM``.
        undecodable: ranges ``[start, stop)`` of ids that must never be generated.
        takes_positions: whether the model accepts position ids. Other models derive positions from the mask.
    """

    def __init__(self, model: Any, undecodable: list[list[int]], *, takes_positions: bool) -> None:
        from transformers import DynamicCache

        self._model = model
        self._undecodable = undecodable
        self._takes_positions = takes_positions
        argument = _cache_argument(model)
        assert argument is not None, "can_crop is False for such a model"
        self._argument = argument
        # Do not pass the model's config. If it were passed, the cache would discard old positions of sliding-window
        # layers, and the states of these layers could not be cropped.
        self._states = DynamicCache()
        self._mask: Tensor | None = None  # [B, P]

    def extend(self, embeddings: Tensor, mask: Tensor, num_kept: int) -> Tensor:
        """Run the model over ``embeddings`` with the cache."""
        size = embeddings.shape[1]
        self._mask = mask if self._mask is None else torch.cat([self._mask, mask], dim=1)
        settings: dict[str, Any] = {self._argument: self._states}
        if self._takes_positions:
            settings["position_ids"] = (self._mask.long().cumsum(1) - 1).clamp(min=0)[:, -size:]
        logits: Tensor = self._model(
            inputs_embeds=embeddings,
            attention_mask=self._mask.long(),
            use_cache=True,
            logits_to_keep=num_kept,
            **settings,
        ).logits
        for start, stop in self._undecodable:
            logits[..., start:stop] = -torch.inf
        return logits

    def keep(self, rows: Tensor, lengths: Tensor) -> None:
        """Crop every layer's keys and values, and align the rows on the right if they end at different positions."""
        assert self._mask is not None, "extend must be called first"
        size = int(lengths.max())
        shifts = self._mask.int().argmax(1)[rows] - (size - lengths)
        in_place = len(rows) == len(self._mask) and bool((rows.diff() == 1).all())
        if in_place and bool((shifts == shifts[0]).all()) and int(shifts[0]) >= 0:
            start = int(shifts[0])
            for layer in self._layers():
                layer.keys, layer.values = (states[:, :, start : start + size] for states in (layer.keys, layer.values))
        else:
            # [K, W]: the old index of each of the W new positions. Positions before the start of a row are masked.
            columns = (torch.arange(size, device=rows.device) + shifts[:, None]).clamp(min=0)
            for layer in self._layers():
                # [B, G, P, D] -> [K, W, G, D] -> [K, G, W, D], for G heads of D channels
                layer.keys, layer.values = (
                    states.transpose(1, 2)[rows[:, None], columns].transpose(1, 2)
                    for states in (layer.keys, layer.values)
                )
        self._mask = torch.arange(size, device=rows.device) >= (size - lengths)[:, None]

    def _layers(self) -> list[Any]:
        """Return the layers that have a state of their own. In some models, several layers share one state."""
        return [layer for layer in self._states.layers if layer.is_initialized]
