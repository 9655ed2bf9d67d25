"""Count the resource usage of a run: audio, FLOPs, waiting, memory, energy.

The sums are stored in :class:`tiny_audio.training.progress.Progress`, so a continued run adds to them. They exclude
the startup time, and steps that were lost because the process was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tiny_audio.analysis.ledger import JOULES_PER_KWH, rates
from tiny_audio.data.batches import Batch
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.plan.work import Work
from tiny_audio.training.host import Host
from tiny_audio.training.progress import Progress

_SUMS = (
    *("wall_s", "waited_s", "beside_s", "audio_s", "padded_s", "tokens"),
    *("flops", "possible_flops", "measured_j", "rated_j"),
)
_OVERHEAD = ("beside_s", "measured_j", "rated_j")


@dataclass
class Amounts:
    """The audio and resource usage of one step in one process. Amounts of several processes can be added."""

    audio_s: float = 0.0
    padded_s: float = 0.0
    tokens: int = 0
    """Number of target tokens, end tokens included."""
    flops: float = 0.0
    """FLOPs that the clips need, without padding."""
    joules: float = 0.0
    """Joules since the previous step. 0 if there is no meter."""

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


class Ledger:
    """Adds up the resource usage of a training run.

    Args:
        progress: stores the sums.
        host: the machine.
        work: computes the FLOPs of clips. If None, FLOPs are not counted.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, progress: Progress, host: Host, work: Work | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.progress, self._host, self._work, self._clock = progress, host, work, clock
        self._joules = host.joules() if host.joules else 0.0
        self._ended = clock()
        # ``logged`` is empty at the start of training, and in checkpoints of older versions.
        if not progress.logged:
            progress.logged = self._sums()

    def amounts(self, batches: Sequence[Batch], skip_decoder: bool = False) -> Amounts:
        """Return the amounts of this process's batches in a step."""
        seconds = [length / SAMPLE_RATE for batch in batches for length in batch.lengths.tolist()]
        tokens = [len(row) for batch in batches for row in batch.targets]
        contexts = [len(row) for batch in batches for row in batch.contexts or [()] * len(batch.targets)]
        return Amounts(
            sum(batch.audio_s for batch in batches),
            sum(batch.padded_s for batch in batches),
            sum(tokens),
            self._work.flops(seconds, tokens, contexts if any(contexts) else None, skip_decoder) if self._work else 0.0,
            self.joules(),
        )

    def joules(self) -> float:
        """Return the joules that this process's device has used since the last call. 0 if the device has no meter."""
        if self._host.joules is None:
            return 0.0
        before, self._joules = self._joules, self._host.joules()
        return self._joules - before

    def add_step(self, amounts: Amounts, wall_s: float) -> None:
        """Add a finished step. The time between the end of the previous step and the start of this step is overhead.

        Args:
            amounts: the amounts of all processes.
            wall_s: duration of this step in seconds. It has already been added to ``progress.wall_s``.
        """
        progress = self.progress
        progress.audio_s += amounts.audio_s
        progress.padded_s += amounts.padded_s
        progress.tokens += amounts.tokens
        if self._work:
            progress.flops += amounts.flops
            progress.possible_flops += self._host.peak_flops * wall_s
        self._add_time(wall_s, amounts.joules)

    def add_overhead(self, joules: float) -> None:
        """Add the time since the last step, or since the last call, as overhead.

        Args:
            joules: the sum of :meth:`joules` over all processes.
        """
        self._add_time(0.0, joules)

    def _add_time(self, step_s: float, joules: float) -> None:
        now = self._clock()
        elapsed_s, self._ended = now - self._ended, now
        self.progress.beside_s += elapsed_s - step_s
        if self._host.joules:
            self.progress.measured_j += joules
        else:
            self.progress.rated_j += self._host.rated_watts * elapsed_s

    def row(self) -> dict[str, Any]:
        """Return the values of the next line of the log.

        Rates cover the steps since the last line. All other values cover the whole run so far.
        """
        progress, before = self.progress, self.progress.logged
        progress.peak_memory_bytes = max(progress.peak_memory_bytes, self._host.peak_memory_bytes())
        progress.logged = self._sums()
        joules = progress.measured_j + progress.rated_j
        since = {name: progress.logged[name] - before[name] for name in _SUMS}
        return {
            "audio_hours": progress.audio_s / 3600,
            **rates(since),
            "peak_memory_bytes": progress.peak_memory_bytes,
            "energy_kwh": joules / JOULES_PER_KWH if joules else None,  # None: the power is not known
            "wall_s": progress.wall_s,
        }

    def _sums(self) -> dict[str, float]:
        return {name: getattr(self.progress, name) for name in _SUMS}

    def totals(self) -> dict[str, Any]:
        """Return the sums of the whole training run, and the properties of the machine.

        ``peak_source`` is the origin of the peak FLOPs per second, and ``power_source`` is the origin of
        ``power_watts``. The result is the input of :func:`tiny_audio.analysis.ledger.account`.
        """
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
    """Measures the resource usage of the main process after training, when it exports and scores the model.

    Args:
        host: the machine. Its ``rated_watts`` must be the power of this process's device only.
        clock: returns monotonic seconds.
    """

    def __init__(self, host: Host, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = Ledger(Progress(), host, None, clock)

    def usage(self) -> dict[str, float]:
        """Return the usage since the last call. The first call returns the usage since this object was created.

        The keys are ``beside_s``, ``measured_j`` and ``rated_j``, as in :meth:`Ledger.totals`.
        """
        before = replace(self._ledger.progress)
        self._ledger.add_overhead(self._ledger.joules())
        return {name: getattr(self._ledger.progress, name) - getattr(before, name) for name in _OVERHEAD}


def with_overhead(totals: Mapping[str, Any], overheads: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """Add the results of :meth:`Overhead.usage` to the totals of a training run."""
    overheads = list(overheads)
    return {**totals, **{name: totals[name] + sum(one[name] for one in overheads) for name in _OVERHEAD}}
