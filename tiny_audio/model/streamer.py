"""Text as it is written: what transformers' generate tells while it runs, greedy or with beams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


class LiveIds(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Tells the ids of each clip after each token, of the likeliest beam where there are several; stops nothing.

    transformers' streamers take a single clip and no beams; its stopping criteria see both.

    Args:
        num_clips: B; transformers has some rows for each.
        tell: called with the number of a clip, and its ids up to now.
    """

    def __init__(self, num_clips: int, tell: Callable[[int, list[int]], None]) -> None:
        self._num_clips, self._tell = num_clips, tell

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """No row of ``input_ids [N, new tokens]`` is done."""
        likeliest = input_ids[:: len(input_ids) // self._num_clips]
        for clip, ids in enumerate(likeliest.tolist()):
            self._tell(clip, ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
