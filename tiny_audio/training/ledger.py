"""What training got done, and what it took: audio, work, waiting, memory, money, energy.

Sums live in :class:`tiny_audio.training.checkpoint.Progress`, so they go on where a run continues. Steps that a kill
took back are in none of them, and neither is the time it takes to start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from tiny_audio.analysis.ledger import JOULES_PER_KWH, rates
from tiny_audio.data.batches import Batch
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.plan.work import Work
from tiny_audio.training.checkpoint import Progress
from tiny_audio.training.host import Host

_SUMS = (
    *("wall_s", "waited_s", "beside_s", "audio_s", "padded_s", "tokens"),
    *("flops", "possible_flops", "measured_j", "rated_j"),
)
_ASIDE = ("beside_s", "measured_j", "rated_j")


@dataclass
class Amounts:
    """Of one step, or of several together; those of several processes add up."""

    audio_s: float = 0.0
    padded_s: float = 0.0
    tokens: int = 0
    """Of transcripts, end tokens included."""
    flops: float = 0.0
    """That the clips need; padding is none."""
    joules: float = 0.0
    """By the device's meter, since the step before; 0 where there is none."""

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


class Ledger:
    """Follows the steps of one process's training loop.

    Args:
        progress: holds the sums.
        host: what the run runs on.
        work: what a clip takes; None where that is not known, and then nothing is said of FLOPs.
        clock: seconds that only go up.
    """

    def __init__(
        self, progress: Progress, host: Host, work: Work | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.progress, self._host, self._work, self._clock = progress, host, work, clock
        self._joules = host.joules() if host.joules else 0.0
        self._ended = self._began = clock()
        # A checkpoint that an older version wrote has none after its first line, and begins a window anew.
        if not progress.logged:
            progress.logged = self._sums()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A step begins, and waits here for its batches; what came before is evaluation, checkpoints and the like."""
        self._began = self._clock()
        yield
        self.progress.waited_s += self._clock() - self._began

    def amounts(self, batches: Sequence[Batch]) -> Amounts:
        """Of this process's batches of a step."""
        seconds = [length / SAMPLE_RATE for batch in batches for length in batch.lengths.tolist()]
        tokens = [len(row) for batch in batches for row in batch.targets]
        return Amounts(
            sum(batch.audio_s for batch in batches),
            sum(batch.padded_s for batch in batches),
            sum(tokens),
            self._work.flops(seconds, tokens) if self._work else 0.0,
            self.joules(),
        )

    def joules(self) -> float:
        """That this process's device has drawn since this was last asked; 0 without a meter."""
        if self._host.joules is None:
            return 0.0
        before, self._joules = self._joules, self._host.joules()
        return self._joules - before

    def step_done(self, amounts: Amounts) -> None:
        """A step is over.

        Args:
            amounts: of all processes.
        """
        progress, now = self.progress, self._clock()
        step_s, beside_s = now - self._began, self._began - self._ended
        self._ended = now
        progress.wall_s += step_s
        progress.beside_s += beside_s
        progress.audio_s += amounts.audio_s
        progress.padded_s += amounts.padded_s
        progress.tokens += amounts.tokens
        if self._work:
            progress.flops += amounts.flops
            progress.possible_flops += self._host.peak_flops * step_s
        self._drawn(step_s + beside_s, amounts.joules)

    def rest(self, joules: float) -> None:
        """What came after the last step is over.

        Args:
            joules: of all processes, see :meth:`joules`.
        """
        now = self._clock()
        beside_s = now - self._ended
        self._ended = now
        self.progress.beside_s += beside_s
        self._drawn(beside_s, joules)

    def _drawn(self, seconds: float, joules: float) -> None:
        if self._host.joules:
            self.progress.measured_j += joules
        else:
            self.progress.rated_j += self._host.rated_watts * seconds

    def row(self) -> dict[str, Any]:
        """Of the steps since the last row; hours, memory and energy are of the whole training so far."""
        progress, before = self.progress, self.progress.logged
        progress.peak_memory_bytes = max(progress.peak_memory_bytes, self._host.peak_memory_bytes())
        progress.logged = self._sums()
        since = {name: progress.logged[name] - before[name] for name in _SUMS}
        return {
            "audio_hours": progress.audio_s / 3600,
            **rates(since),
            "peak_memory_bytes": progress.peak_memory_bytes,
            "energy_kwh": (progress.measured_j + progress.rated_j) / JOULES_PER_KWH,
            "wall_s": progress.wall_s,
        }

    def _sums(self) -> dict[str, float]:
        return {name: getattr(self.progress, name) for name in _SUMS}

    def totals(self) -> dict[str, Any]:
        """Of the whole training, with where figures of the machine come from; see
        :func:`tiny_audio.analysis.ledger.account`."""
        host = self._host
        return {name: getattr(self.progress, name) for name in (*_SUMS, "peak_memory_bytes")} | {
            "num_processes": host.num_processes,
            "peak_source": host.peak_source,
            "power_watts": host.rated_watts or None,
            "power_source": host.power_source,
            "memory_of": "GPU" if host.device.type == "cuda" else "process",
            "price_per_hour": host.price_per_hour,
        }


class Overhead:
    """Follows what one process does after training: exporting, scoring.

    Args:
        host: this process's device alone; the others are done.
        clock: seconds that only go up.
    """

    def __init__(self, host: Host, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = Ledger(Progress(), host, None, clock)

    def took(self) -> dict[str, float]:
        """Since it began, or was last asked; adds to :meth:`Ledger.totals`."""
        before = replace(self._ledger.progress)
        self._ledger.rest(self._ledger.joules())
        return {name: getattr(self._ledger.progress, name) - getattr(before, name) for name in _ASIDE}


def added(totals: Mapping[str, Any], asides: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """The totals of a training, and of what came after it."""
    asides = list(asides)
    return {**totals, **{name: totals[name] + sum(aside[name] for aside in asides) for name in _ASIDE}}
