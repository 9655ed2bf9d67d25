"""Send values from other processes to the main process. No process waits for another."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from typing import Any

_PART_BYTES = 4 * 2**20
"""Maximum size of a part in bytes. Larger values are sent in several parts, because PyTorch's store rejects values
above 8 MiB."""


class Mailbox:
    """Values that the other processes have sent to the main process.

    Args:
        store: a :class:`torch.distributed.Store` that all processes share.
        rank: rank of this process.
        size: number of processes.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank = store, rank
        # For this process's rank: the number of parts that it sent. For other ranks: the number of parts received.
        self._done = [0] * size
        self._parts = [b""] * size
        # After a restart by torchrun, the store still contains messages of the previous processes. To ignore them, keys
        # contain the number of restarts.
        self._start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

    def send(self, value: object) -> None:
        """Send a value to the main process."""
        data = pickle.dumps(value)
        for start in range(0, len(data), _PART_BYTES):
            is_last = start + _PART_BYTES >= len(data)
            self._store.set(self._key(self._rank), bytes([is_last]) + data[start : start + _PART_BYTES])
            self._done[self._rank] += 1

    def received(self) -> Iterator[Any]:
        """Yield, in the main process, the values that have arrived. Values of one process keep their order."""
        for rank in range(len(self._done)):
            while self._store.check([key := self._key(rank)]):
                part = self._store.get(key)
                self._store.delete_key(key)
                self._done[rank] += 1
                self._parts[rank] += part[1:]
                if part[0]:
                    data, self._parts[rank] = self._parts[rank], b""
                    yield pickle.loads(data)

    def _key(self, rank: int) -> str:
        return f"tiny_audio/mailbox/{self._start}/{rank}/{self._done[rank]}"
