"""Report partial texts while transformers' ``generate`` runs, greedy or with beams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

OnText = Callable[[int, str], None]
"""Receives the index of a clip and its text so far. With beams or joint decoding, the final text may differ
from this text."""

OnIds = Callable[[int, list[int]], None]
"""Receives the index of a clip and its token ids so far."""


class TokenStreamer(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Calls ``on_ids`` for each clip after each token, with the ids of its likeliest beam. Never stops generation.

    This class is a stopping criterion, because transformers' own streamers support neither batches nor beams.

    Args:
        num_clips: number of clips. transformers passes one row for each beam of each clip.
    """

    def __init__(self, num_clips: int, on_ids: OnIds) -> None:
        self._num_clips, self._on_ids = num_clips, on_ids

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Report ``input_ids [clips × beams, new tokens]``, and return False for every row."""
        likeliest = input_ids[:: len(input_ids) // self._num_clips]
        for clip, ids in enumerate(likeliest.tolist()):
            self._on_ids(clip, ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def decoding(on_text: OnText, tokenizer: Any, end_id: int) -> OnIds:
    """Return a callback that decodes token ids and calls ``on_text`` with the text."""

    def on_ids(clip: int, ids: list[int]) -> None:
        on_text(clip, tokenizer.decode(until_end(ids, end_id)[0], skip_special_tokens=True).strip())

    return on_ids


def until_end(ids: list[int], end_id: int) -> tuple[list[int], bool]:
    """Return the ids before the first end token, and whether there is an end token."""
    return (ids[: ids.index(end_id)], True) if end_id in ids else (ids, False)
