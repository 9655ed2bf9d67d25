"""Plan the batches of an epoch.

The plan depends only on the settings, the seed, the epoch, and the durations, groups and weights of the clips. Array
operations plan ten million clips in less than a minute. With ``augmentation.speed`` or ``augmentation.silence``, the
durations after augmentation are computed clip by clip, which takes longer. To resume, a run needs only the hash of the
plan, the epoch and the index of the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from tiny_audio.config import Config

_PHASES = 1
"""Third number of the seed in :func:`_weighted`. It makes this seed differ from the seed that shuffles the clips."""

AugmentedDurations = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A function that returns the duration after augmentation, ``[m]`` in seconds, of m occurrences of clips in an epoch.

The arguments are the index of the clip, ``[m]``, and the number of the occurrence, ``[m]`` (counted from 0).
"""


class BatchingConfig(Config):
    """Batches of clips of similar length."""

    max_clips: PositiveInt = 16
    """Maximum number of clips in a batch."""
    max_padded_s: PositiveFloat | None = None
    """Maximum seconds in a batch, padding and augmentation included: the number of clips × the longest duration. A
    clip that is longer than this is alone in its batch. If None, there is no limit."""
    pool_batches: PositiveInt = 50
    """Clips are sorted by duration within pools of this many batches. A larger pool means less padding and less
    shuffling. With 1, clips are assigned to batches at random."""
    short_first_epochs: PositiveInt | None = None
    """Number of epochs at the start of training in which batches of short clips come first. Short clips are easier to
    align (SortaGrad, Amodei et al. 2015, arXiv 1512.02595). This order starts again in each window of clips
    (see ``shuffle_clips``)."""
    shuffle_clips: PositiveInt = 20_000
    """Clips are shuffled within windows of about this many clips. Parquet files are read by row group: the row groups
    are put in random order, and each window takes the next row groups until it has enough clips. Larger windows shuffle
    better and need more disk space."""


@dataclass(frozen=True, eq=False)
class EpochPlan(Sequence[np.ndarray]):
    """The batches of one epoch. Each training process takes a slice of every batch."""

    order: np.ndarray
    """``[n]`` int64: the clip indices, batch after batch."""
    starts: np.ndarray
    """``[batches + 1]`` int64: batch k is ``order[starts[k]:starts[k + 1]]``."""
    repeats: np.ndarray | None = None
    """``[n]`` int64: for each entry of ``order``, the number of the occurrence. The occurrences of a clip in an epoch
    are numbered from 0. None if no clip occurs twice."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, k: int) -> np.ndarray:  # type: ignore[override]  # slices are not supported
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        k %= len(self)
        return self.order[self.starts[k] : self.starts[k + 1]]

    def repeats_of(self, k: int) -> np.ndarray:
        """Return the number of the occurrence (see ``repeats``) for each clip of batch k."""
        span = slice(self.starts[k], self.starts[k + 1])
        return np.zeros(span.stop - span.start, np.int64) if self.repeats is None else self.repeats[span]

    @cached_property
    def hash(self) -> str:
        """Hash of the plan. Plans with the same batches in the same order have the same hash."""
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
    augmented_s: AugmentedDurations | None = None,
) -> EpochPlan:
    """Plan the batches of one epoch. Without weights, each clip occurs once.

    The groups are shuffled and divided into windows of ``shuffle_clips`` clips. In each window, the clips are shuffled
    and divided into pools. Each pool is sorted by duration and divided into batches within the limits ``max_clips`` and
    ``max_padded_s``. Then the batches of the window are shuffled. In the first ``short_first_epochs`` epochs, they are
    sorted by duration instead.

    Args:
        durations_s: ``[n]``: duration of each clip.
        groups: ``[n]``: group of each clip. Clips of one group are fetched together. If None, each clip is fetched
            alone.
        weights: ``[n]``: average number of occurrences of each clip per epoch. With 0.5, a clip occurs in every other
            epoch.
        augmented_s: if given, batches are planned with the durations after augmentation.
    """
    rng = np.random.default_rng([seed, epoch])
    clips = np.arange(len(durations_s)) if weights is None else _weighted(weights, seed, epoch)
    repeats = None if weights is None else _numbered(clips)
    if augmented_s is None:
        durations = np.asarray(durations_s, dtype=np.float64)[clips]
    else:
        durations = augmented_s(clips, np.zeros_like(clips) if repeats is None else repeats)
    order, starts = [], [np.zeros(1, np.int64)]
    total = 0
    # A window has indices into `clips` and `durations`, because each occurrence of a clip has its own duration.
    for window in _windows(len(clips), None if groups is None else groups[clips], config.shuffle_clips, rng):
        flat, ends = _batched(window, durations, config)
        sizes = np.diff(ends, prepend=0)
        if epoch < (config.short_first_epochs or 0):
            batches = np.argsort(durations[flat[ends - 1]], kind="stable")  # the last clip of a batch is the longest
        else:
            batches = rng.permutation(len(sizes))
        order.append(_gathered(flat, ends - sizes, sizes, batches))
        starts.append(total + np.cumsum(sizes[batches]))
        total += len(flat)
    planned = np.concatenate(order) if order else np.empty(0, np.int64)
    return EpochPlan(clips[planned], np.concatenate(starts), None if repeats is None else repeats[planned])


def _weighted(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the indices of the clips in this epoch. A clip that occurs twice is listed twice.

    After e epochs, a clip has occurred ``floor(weight × e + phase)`` times in total. Each clip has a random phase
    between 0 and 1, so that clips with equal weights occur in different epochs.
    """
    phase = np.random.default_rng([seed, 0, _PHASES]).random(len(weights))
    counts = np.floor(weights * (epoch + 1) + phase) - np.floor(weights * epoch + phase)
    return np.repeat(np.arange(len(weights)), counts.astype(np.int64))


def _numbered(clips: np.ndarray) -> np.ndarray:
    """Return, for each entry of the sorted indices ``clips`` (``[m]``), how many equal entries precede it."""
    return np.arange(len(clips)) - np.searchsorted(clips, clips)


def _windows(
    num_clips: int, groups: np.ndarray | None, shuffle_clips: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield the shuffled indices of the clips of each window. All clips of a group are in the same window."""
    if groups is None:
        shuffled = rng.permutation(num_clips)
        for start in range(0, num_clips, shuffle_clips):
            yield shuffled[start : start + shuffle_clips]
        return
    by_group = np.argsort(groups, kind="stable")
    _, firsts, sizes = np.unique(groups[by_group], return_index=True, return_counts=True)
    shuffled = rng.permutation(len(firsts))
    # A window ends with the group that reaches `shuffle_clips`, so a window may have more clips than that.
    filled = np.cumsum(sizes[shuffled])
    start, done = 0, 0
    while start < len(shuffled):
        stop = int(np.searchsorted(filled, done + shuffle_clips)) + 1
        members = _gathered(by_group, firsts, sizes, shuffled[start:stop])
        yield rng.permutation(members)
        start, done = stop, int(filled[min(stop, len(filled)) - 1])


def _gathered(flat: np.ndarray, firsts: np.ndarray, sizes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Concatenate the slices ``flat[firsts[i] : firsts[i] + sizes[i]]`` for each i in ``chosen``."""
    lengths = sizes[chosen]
    ends = np.cumsum(lengths)
    return flat[np.repeat(firsts[chosen] - (ends - lengths), lengths) + np.arange(int(lengths.sum()))]


def _batched(window: np.ndarray, durations: np.ndarray, config: BatchingConfig) -> tuple[np.ndarray, np.ndarray]:
    """Divide the clips of a window into batches. Return the clips, batch after batch, and the end of each batch."""
    if config.pool_batches == 1:
        # Batches consist of random clips. Only the clips within a batch are sorted by duration.
        ends = _cut(durations[window], config, None)
        batches = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        return window[np.lexsort((window, durations[window], batches))], ends
    size = config.max_clips * config.pool_batches
    pools = np.arange(len(window)) // size
    window = window[np.lexsort((window, durations[window], pools))]
    return window, _cut(durations[window], config, size)


def _cut(durations: np.ndarray, config: BatchingConfig, pool_size: int | None) -> np.ndarray:
    """Divide the clips into batches without changing their order. Return the end of each batch."""
    if config.max_padded_s is not None:
        return np.array(list(_ends(durations.tolist(), pool_size, config.max_clips, config.max_padded_s)))
    # Every pool except the last consists of whole batches of max_clips clips, so the pools need no cuts of their own.
    ends = np.arange(config.max_clips, len(durations) + config.max_clips, config.max_clips)
    return np.minimum(ends, len(durations))


def _ends(durations: list[float], pool_size: int | None, max_clips: int, max_padded_s: float) -> Iterator[int]:
    """Yield the end of each batch. Batches are filled up to the limits.

    A clip that is longer than ``max_padded_s`` gets a batch of its own.
    """
    start, longest = 0, 0.0
    for index, duration in enumerate(durations):
        longest = max(longest, duration)
        count = index - start
        full = count == max_clips or (count + 1) * longest > max_padded_s
        if count and (full or (pool_size is not None and index % pool_size == 0)):
            yield index
            start, longest = index, duration
    yield len(durations)
