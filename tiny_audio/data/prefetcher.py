"""Row groups that a plan needs soon, fetched while training works on those it has."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread
from types import TracebackType
from typing import Self

import numpy as np

from tiny_audio.config import UserError
from tiny_audio.data.clips import Clips
from tiny_audio.data.order import EpochPlan

_THREADS = 4
"""All of it is waiting for the network or the disk."""
_LOOK_S = 0.5
"""Between looks whether a stop was asked for."""


class Prefetcher:
    """Asks for one clip of each row group in the order in which the plan needs them, which fetches the group.

    Whoever trains calls :meth:`reached` as it goes. Between what is used and what is fetched lie as many clips as are
    shuffled together, since a batch takes its clips from all over such a window. Enter it after the loader's processes
    were started, and leave it before the next are: a process that is forked while a thread holds a lock waits for ever.
    So leaving waits for what is being fetched. Only where the process is about to end it does not: a hub that stalls
    may take minutes, and threads that nobody waits for end with the process.

    Args:
        clips: of the plan; where they are fetched one by one, there is nothing to do.
        plan: of the epoch.
        first: the batch that training starts with.
        ahead_clips: how many.
        stopped: whether the process is about to end.
    """

    def __init__(
        self,
        clips: Clips,
        plan: EpochPlan,
        first: int,
        ahead_clips: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._clips, self._plan, self._ahead = clips, plan, ahead_clips
        self._places = np.empty(0, np.int64)
        self._next = 0
        if clips.groups is not None:
            start = int(plan.starts[first])
            _, places = np.unique(clips.groups[plan.order[start:]], return_index=True)
            # Of each group the place in the order where it is needed first; those that are needed now come anyway.
            self._places = np.sort(places) + start
        self._stopped = stopped
        self._wanted: SimpleQueue[int | None] = SimpleQueue()
        self._left = Event()
        # Not an executor's: the interpreter waits for those when it ends.
        count = _THREADS if len(self._places) else 0
        self._threads = [Thread(target=self._work, name="prefetcher", daemon=True) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left.set()
        for _ in self._threads:
            self._wanted.put(None)
        for thread in self._threads:
            thread.join(_LOOK_S)
            while thread.is_alive() and not self._stopped():
                thread.join(_LOOK_S)

    def reached(self, batch: int) -> None:
        """Training is at this batch; fetch what it needs from here to the end of the window after it."""
        if not self._threads:
            return
        here = int(self._plan.starts[batch])
        stop = int(np.searchsorted(self._places, here + self._ahead))
        for place in self._places[max(self._next, int(np.searchsorted(self._places, here))) : stop]:
            self._wanted.put(int(place))
        self._next = max(self._next, stop)

    def _work(self) -> None:
        while (place := self._wanted.get()) is not None and not self._left.is_set():
            self._fetch(place)

    def _fetch(self, place: int) -> None:
        clip = self._clips[int(self._plan.order[place])]
        try:
            clip.source.encoded(clip.utterance)
        except (UserError, OSError):
            return  # whoever needs the clip meets the same, and says so
