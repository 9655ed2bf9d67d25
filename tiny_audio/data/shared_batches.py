"""Padded audio on its way from a loader's process to the one that trains, through memory that is used again.

torch's own way makes new shared memory for every batch: each page of it costs both processes a fault, which comes to
several times the price of the copy, and passing it on costs a connection. Here a loader has a few pieces of memory;
the receiver maps each of them once, and says when nothing holds a batch in it any more.

A piece begins with one page, whose first byte says whether the receiver holds a batch in it.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import torch
from torch import Tensor

SUPPORTED = hasattr(os, "memfd_create")
"""Linux."""

_HEADER_BYTES = mmap.PAGESIZE
_LEAST_BYTES = 1 << 26
"""Of a piece; pages that nothing was written to take no memory."""


class SharedBatches:
    """Waveforms that pickle as a place in shared memory, and come out as ``[B, S]``, zero beyond each length.

    Pickles once, in a loader's process. The receiver may keep the tensor and write into it.

    Args:
        rows: B waveforms ``[samples]``, float32.
    """

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self._rows = rows

    def __reduce__(self) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        longest = max(map(len, self._rows))
        size = len(self._rows) * longest * 4
        piece = _free_piece(size)
        for number, row in enumerate(self._rows):
            start = _HEADER_BYTES + number * longest * 4
            end = piece.write(row, start)
            piece.clear(end, start + longest * 4)
        return _received, (os.getpid(), piece.number, piece.announced(), (len(self._rows), longest))


class _Piece:
    """Memory that this process fills."""

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size
        self._descriptor = os.memfd_create("batch")
        os.ftruncate(self._descriptor, _HEADER_BYTES + size)
        self._header = mmap.mmap(self._descriptor, _HEADER_BYTES)
        self._known = False
        self._written = _HEADER_BYTES
        weakref.finalize(self, os.close, self._descriptor)

    @property
    def is_free(self) -> bool:
        return self._header[0] == 0

    def write(self, row: Tensor, offset: int) -> int:
        """Gives the offset after it. By the kernel: what is written through a mapping costs a fault for each page."""
        data = memoryview(row.numpy()).cast("B")  # type: ignore[arg-type]  # NumPy's arrays are buffers
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written
        self._written = max(self._written, offset)
        return offset

    def clear(self, start: int, stop: int) -> None:
        """Zeros; what was never written holds them already."""
        stop = min(stop, self._written)
        if start < stop:
            os.pwrite(self._descriptor, bytes(stop - start), start)

    def announced(self) -> Any:
        """Takes it; gives what the receiver maps it by, None where it has done so."""
        self._header[0] = 1
        sent = None if self._known else (DupFd(self._descriptor), self.size)
        self._known = True
        return sent


_PIECES: list[_Piece] = []
"""Of this process, where it loads."""
_NUMBERS = iter(range(1 << 62))


def _free_piece(size: int) -> _Piece:
    for piece in _PIECES:
        if piece.is_free and piece.size >= size:
            return piece
    _PIECES[:] = [piece for piece in _PIECES if not piece.is_free]  # too small, all of them
    _PIECES.append(_Piece(next(_NUMBERS), max(_LEAST_BYTES, 2 * size)))
    return _PIECES[-1]


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A loader's piece, where it is received."""

    memory: mmap.mmap

    def batch(self, shape: tuple[int, int]) -> Tensor:
        count = shape[0] * shape[1]
        held = memoryview(self.memory)[_HEADER_BYTES : _HEADER_BYTES + count * 4]
        # The tensor holds the view for as long as anything holds its storage.
        weakref.finalize(held, self._release, os.getpid())
        return torch.frombuffer(held, dtype=torch.float32).view(shape)

    def _release(self, process: int) -> None:
        if os.getpid() == process:  # and no loader that was forked from it since
            self.memory[0] = 0


_MAPPED: dict[tuple[int, int], _Mapped] = {}
"""By process and number."""


def _received(process: int, number: int, sent: Any, shape: tuple[int, int]) -> Tensor:
    if sent is not None:
        for other in {process for process, _ in _MAPPED} - _alive():
            for key in [key for key in _MAPPED if key[0] == other]:
                del _MAPPED[key]  # goes when the last batch in it does
        duplicate, size = sent
        descriptor = duplicate.detach()
        try:
            _MAPPED[process, number] = _Mapped(mmap.mmap(descriptor, _HEADER_BYTES + size))
        finally:
            os.close(descriptor)
    return _MAPPED[process, number].batch(shape)


def _alive() -> set[int]:
    """The mapped processes that there still are."""
    return {process for process, _ in _MAPPED if os.path.exists(f"/proc/{process}")}
