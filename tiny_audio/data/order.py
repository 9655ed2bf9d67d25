"""The planned order: which clips make which batch, as a pure function of (columns of the clips, settings, seed, epoch).

All of it is arithmetic on columns, so that ten million clips are planned in seconds, and the state of the data in a
training is three values: the hash of the plan, the epoch, and the number of its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from tiny_audio.config import Config

_PHASES = 1
"""Sets the random numbers of weights apart from those of the order, which have the seed and the epoch."""


class BatchingConfig(Config):
    """Batches of clips of similar length."""

    max_clips: PositiveInt = 16
    """Most clips in a batch."""
    max_padded_s: PositiveFloat | None = None
    """Most seconds in a batch, padding included: clips times the longest of them. None bounds by clips alone."""
    pool_batches: PositiveInt = 50
    """Clips of so many batches are sorted by duration together. More is less padding and less shuffling; 1 sorts
    only within a batch, so that which clips share one is random."""
    shuffle_clips: PositiveInt = 20_000
    """Corpora in parquet files are fetched by row group, and row groups come in random order; the clips of so many row
    groups as hold so many clips are shuffled together. More is a better shuffle, and needs more of the disk."""


@dataclass(frozen=True, eq=False)
class EpochPlan(Sequence[np.ndarray]):
    """The global batches of one epoch."""

    order: np.ndarray
    """``[n]`` int64, the number of each clip, batch after batch."""
    starts: np.ndarray
    """``[batches + 1]`` int64: batch k is ``order[starts[k]:starts[k + 1]]``."""
    repeats: np.ndarray | None = None
    """``[n]`` int32, how often the clip came before in this epoch; None where none comes twice."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, k: int) -> np.ndarray:  # type: ignore[override]  # slices have no use
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        k %= len(self)
        return self.order[self.starts[k] : self.starts[k + 1]]

    def repeats_of(self, k: int) -> np.ndarray:
        """For each clip of batch k, how often it came before in this epoch."""
        span = slice(self.starts[k], self.starts[k + 1])
        return np.zeros(span.stop - span.start, np.int32) if self.repeats is None else self.repeats[span]

    @cached_property
    def hash(self) -> str:
        """Equal where the same clips come in the same batches in the same order."""
        digest = hashlib.sha256(self.starts.tobytes())
        digest.update(self.order.tobytes())
        return digest.hexdigest()[:16]


def plan_epoch(
    durations_s: Sequence[float] | np.ndarray,
    config: BatchingConfig,
    seed: int,
    epoch: int,
    *,
    groups: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> EpochPlan:
    """The batches of one epoch; every clip comes exactly once, or as often as its weight says.

    Shuffle the groups; take as many as make a window of ``shuffle_clips``; shuffle its clips, cut them into pools, sort
    each pool by duration, cut batches under both bounds, shuffle the batches of the window. Numbers of workers and of
    processes have no part in it.

    Args:
        durations_s: ``[n]``.
        groups: ``[n]``, which clips are fetched together; None: each by itself.
        weights: ``[n]``, how often each clip comes in an epoch on average; 0.5 is in every other epoch.
    """
    durations = np.asarray(durations_s, dtype=np.float64)
    rng = np.random.default_rng([seed, epoch])
    clips = np.arange(len(durations)) if weights is None else _weighted(weights, seed, epoch)
    order, starts = [], [np.zeros(1, np.int64)]
    total = 0
    for window in _windows(clips, None if groups is None else groups[clips], config.shuffle_clips, rng):
        flat, ends = _batched(window, durations, config)
        sizes = np.diff(ends, prepend=0)
        shuffled = rng.permutation(len(sizes))
        order.append(_gathered(flat, ends - sizes, sizes, shuffled))
        starts.append(total + np.cumsum(sizes[shuffled]))
        total += len(flat)
    planned = np.concatenate(order) if order else np.empty(0, np.int64)
    return EpochPlan(planned, np.concatenate(starts), None if weights is None else _repeats(planned))


def _weighted(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Each clip as often as it comes in this epoch: its share of every epoch's end, counted down to whole numbers."""
    phase = np.random.default_rng([seed, 0, _PHASES]).random(len(weights))
    counts = np.floor(weights * (epoch + 1) + phase) - np.floor(weights * epoch + phase)
    return np.repeat(np.arange(len(weights)), counts.astype(np.int64))


def _repeats(order: np.ndarray) -> np.ndarray:
    """For each place, how often its number stands before it."""
    sorting = np.argsort(order, kind="stable")
    ordered = order[sorting]
    first = np.searchsorted(ordered, ordered)
    repeats = np.empty(len(order), np.int32)
    repeats[sorting] = np.arange(len(order)) - first
    return repeats


def _windows(
    clips: np.ndarray, groups: np.ndarray | None, shuffle_clips: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Shuffled clips, window by window; groups stay whole."""
    if groups is None:
        shuffled = clips[rng.permutation(len(clips))]
        for start in range(0, len(clips), shuffle_clips):
            yield shuffled[start : start + shuffle_clips]
        return
    by_group = np.argsort(groups, kind="stable")
    _, firsts, sizes = np.unique(groups[by_group], return_index=True, return_counts=True)
    shuffled = rng.permutation(len(firsts))
    # A window ends with the group that fills it.
    filled = np.cumsum(sizes[shuffled])
    start, done = 0, 0
    while start < len(shuffled):
        stop = int(np.searchsorted(filled, done + shuffle_clips)) + 1
        members = _gathered(by_group, firsts, sizes, shuffled[start:stop])
        yield clips[rng.permutation(members)]
        start, done = stop, int(filled[min(stop, len(filled)) - 1])


def _gathered(flat: np.ndarray, firsts: np.ndarray, sizes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The runs ``flat[firsts[i] : firsts[i] + sizes[i]]`` of the chosen i, one after another."""
    lengths = sizes[chosen]
    ends = np.cumsum(lengths)
    return flat[np.repeat(firsts[chosen] - (ends - lengths), lengths) + np.arange(int(lengths.sum()))]


def _batched(window: np.ndarray, durations: np.ndarray, config: BatchingConfig) -> tuple[np.ndarray, np.ndarray]:
    """The window's clips in the order of unshuffled batches, each sorted by duration, and where each batch ends."""
    if config.pool_batches == 1:
        ends = _cut(durations[window], config, None)
        batches = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        return window[np.lexsort((window, durations[window], batches))], ends
    size = config.max_clips * config.pool_batches
    pools = np.arange(len(window)) // size
    window = window[np.lexsort((window, durations[window], pools))]
    return window, _cut(durations[window], config, size)


def _cut(durations: np.ndarray, config: BatchingConfig, pool_size: int | None) -> np.ndarray:
    """Where batches end that are cut from clips in their order."""
    if config.max_padded_s is not None:
        return np.array(list(_ends(durations.tolist(), pool_size, config.max_clips, config.max_padded_s)))
    # Pools hold whole batches, so only the window's last one is cut short.
    ends = np.arange(config.max_clips, len(durations) + config.max_clips, config.max_clips)
    return np.minimum(ends, len(durations))


def _ends(durations: list[float], pool_size: int | None, max_clips: int, max_padded_s: float) -> Iterator[int]:
    """Where batches end that are as full as both bounds allow; a clip beyond the bound comes alone."""
    start, longest = 0, 0.0
    for place, duration in enumerate(durations):
        longest = max(longest, duration)
        count = place - start
        full = count == max_clips or (count + 1) * longest > max_padded_s
        if count and (full or (pool_size is not None and place % pool_size == 0)):
            yield place
            start, longest = place, duration
    yield len(durations)
