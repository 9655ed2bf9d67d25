"""Fetch row groups of parquet files before the planned batches need them."""

from __future__ import annotations

import time
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
"""Number of threads. They mostly wait for the network or the disk."""
_POLL_S = 0.5
"""While :meth:`Prefetcher.__exit__` waits for threads, it checks at this interval, in seconds, whether the process is
about to end."""


class Prefetcher:
    """Fetches row groups in the order of the plan, by reading one clip of each row group.

    The training process calls :meth:`reached` for each batch. Background threads then fetch the row groups of the next
    ``ahead_clips`` clips.

    Enter this context manager after the loader processes have started, and exit it before new loader processes start.
    Otherwise, a loader process could be forked while a thread holds a lock, and would wait for this lock forever. For
    the same reason, exiting waits for running fetches. If the training process is about to end, exiting does not wait,
    because a fetch from a stalled hub may take minutes.

    Args:
        clips: the clips of the plan. If ``clips.groups`` is None, nothing is fetched ahead.
        first: index of the first batch.
        ahead_clips: number of clips to fetch ahead.
        stopped: returns whether the process is about to end.
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
        self._first_uses = np.empty(0, np.int64)
        self._next = 0
        if clips.groups is not None:
            start = int(plan.starts[first])
            _, first_uses = np.unique(clips.groups[plan.order[start:]], return_index=True)
            self._first_uses = np.sort(first_uses) + start  # for each group, the index of its first clip in plan.order
        self._stopped = stopped
        self._wanted: SimpleQueue[int | None] = SimpleQueue()
        self._left = Event()
        # Use daemon threads instead of a ThreadPoolExecutor. When the interpreter exits, it waits for the threads of an
        # executor, and a stalled fetch would delay the exit.
        count = _THREADS if len(self._first_uses) else 0
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
        deadline = time.monotonic() + _POLL_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            while thread.is_alive() and not self._stopped():
                thread.join(_POLL_S)

    def reached(self, batch: int) -> None:
        """Start to fetch the row groups of this batch and of the clips after it, ``ahead_clips`` clips in total."""
        if not self._threads:
            return
        here = int(self._plan.starts[batch])
        stop = int(np.searchsorted(self._first_uses, here + self._ahead))
        for index in self._first_uses[max(self._next, int(np.searchsorted(self._first_uses, here))) : stop]:
            self._wanted.put(int(index))
        self._next = max(self._next, stop)

    def _work(self) -> None:
        while (index := self._wanted.get()) is not None and not self._left.is_set():
            self._fetch(index)

    def _fetch(self, index: int) -> None:
        clip = self._clips[int(self._plan.order[index])]
        try:
            clip.source.encoded(clip.utterance)
        except (UserError, OSError):
            return  # when the clip is loaded, the same error is raised and reported
