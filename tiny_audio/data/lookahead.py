"""Row groups that a plan needs soon, fetched while training works on those it has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np

from tiny_audio.config import UserError
from tiny_audio.data.clips import Clips
from tiny_audio.data.order import EpochPlan

_THREADS = 4
"""All of it is waiting for the network or the disk."""


class Lookahead:
    """Asks for one clip of each row group in the order in which the plan needs them, which fetches the group.

    Whoever trains calls :meth:`reached` as it goes. Between what is used and what is fetched lie as many clips as are
    shuffled together, since a batch takes its clips from all over such a window. Enter it after the loader's processes
    were started, and leave it before the next are: a process that is forked while a thread holds a lock waits for ever.

    Args:
        clips: of the plan; where they are fetched one by one, there is nothing to do.
        plan: of the epoch.
        first: the batch that training starts with.
        ahead_clips: how many.
    """

    def __init__(self, clips: Clips, plan: EpochPlan, first: int, ahead_clips: int) -> None:
        self._clips, self._plan, self._ahead = clips, plan, ahead_clips
        self._places = np.empty(0, np.int64)
        self._next = 0
        if clips.groups is not None:
            start = int(plan.starts[first])
            _, places = np.unique(clips.groups[plan.order[start:]], return_index=True)
            # Of each group the place in the order where it is needed first; those that are needed now come anyway.
            self._places = np.sort(places) + start
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if len(self._places):
            self._pool = ThreadPoolExecutor(_THREADS, "lookahead")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def reached(self, batch: int) -> None:
        """Training is at this batch; fetch what it needs from here to the end of the window after it."""
        if self._pool is None:
            return
        here = int(self._plan.starts[batch])
        stop = int(np.searchsorted(self._places, here + self._ahead))
        for place in self._places[max(self._next, int(np.searchsorted(self._places, here))) : stop]:
            self._pool.submit(self._fetch, int(place))
        self._next = max(self._next, stop)

    def _fetch(self, place: int) -> None:
        clip = self._clips[int(self._plan.order[place])]
        try:
            clip.source.encoded(clip.utterance)
        except (UserError, OSError):
            return  # whoever needs the clip meets the same, and says so
