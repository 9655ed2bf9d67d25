"""``tiny-audio probe``: find the largest batches that fit into memory, by training on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tiny_audio.commands._output import print_json
from tiny_audio.commands.probe._process import GIB, Measured, Process
from tiny_audio.config import UserError
from tiny_audio.plan import predict_bytes
from tiny_audio.recipe import Recipe, load_recipe
from tiny_audio.runtime.device import device_of

MARGIN = 0.1
"""Default share of the memory to leave free. In training, batches of different lengths fragment the memory, so a run
can need more memory than the probe measures."""
MOST_CLIPS = 512
"""Maximum number of clips in a batch."""
_RESOLUTION = 0.05
"""Relative precision of the number of clips. More precision would be useless, because the default margin is larger."""

Trial = Callable[[int], Measured | None]
"""A function that trains on a batch of the given number of clips. It returns None if the batch does not fit."""


@dataclass(frozen=True)
class Bucket:
    """The largest batch that fits into memory, for clips of one duration."""

    duration_s: float
    """The duration after augmentation."""
    clips: int
    measured: Measured
    predicted_bytes: int
    """The estimate of ``tiny-audio plan`` for the same batch."""

    @property
    def padded_s(self) -> float:
        """Seconds of audio in the batch, including padding."""
        return self.clips * self.duration_s


@dataclass(frozen=True)
class Probe:
    """The largest batches that fit into memory, and the batching settings that follow from them."""

    device: str
    memory_bytes: int
    margin: float
    buckets: tuple[Bucket, ...]
    """From the longest to the shortest duration."""
    num_processes: int = 1
    """Number of processes that will train together, each on a device like the measured one."""

    @property
    def budget_s(self) -> float:
        """Seconds of audio, with padding, that fit into one process, whatever the duration of the clips.

        This is the minimum of :attr:`Bucket.padded_s`. Buckets of :data:`MOST_CLIPS` clips are left out, because more
        clips may fit. If all buckets have this many clips, the maximum is returned instead.
        """
        bound = [bucket.padded_s for bucket in self.buckets if bucket.clips < MOST_CLIPS]
        return min(bound) if bound else max(bucket.padded_s for bucket in self.buckets)

    @property
    def max_padded_s(self) -> float:
        """Maximum seconds of audio, with padding, in a global batch, which is divided among all processes.

        Let n be the number of processes, and B the budget of one process (:attr:`budget_s`). If a global batch has c
        clips of d seconds, a process gets up to ⌈c/n⌉ clips, and ⌈c/n⌉ ≤ (c + n - 1)/n. These clips fit if
        d · (c + n - 1)/n ≤ B. This condition is the same as c · d ≤ n · B - (n - 1) · d, where c · d is the audio in
        the global batch. The limit is lowest for the largest d, so the longest duration is used.
        """
        others = self.num_processes - 1
        # A global batch that fits into one process also fits if it is divided.
        return max(self.budget_s, self.num_processes * self.budget_s - others * self.buckets[0].duration_s)

    @property
    def max_clips(self) -> int:
        """Number of clips of the shortest duration that fit into all processes together."""
        return self.num_processes * self.buckets[-1].clips

    def as_json(self) -> dict[str, Any]:
        """Return the result for JSON, with memory in bytes and durations in seconds."""
        return {
            "device": self.device,
            "memory_bytes": self.memory_bytes,
            "margin": self.margin,
            "num_processes": self.num_processes,
            "buckets": [
                {
                    "duration_s": bucket.duration_s,
                    "clips": bucket.clips,
                    "padded_s": bucket.padded_s,
                    "predicted_bytes": bucket.predicted_bytes,
                    **asdict(bucket.measured),
                }
                for bucket in self.buckets
            ],
            "batching": {"max_padded_s": self.max_padded_s, "max_clips": self.max_clips},
        }


def probe(
    path: Path,
    overrides: Sequence[str],
    memory_gb: float | None,
    margin: float,
    durations: str | None,
    random_weights: bool,
    num_processes: int,
    *,
    as_json: bool,
) -> None:
    """Probe a recipe and print the result; see :func:`probe_recipe`.

    Args:
        durations: durations in seconds, separated by commas.
    """
    try:
        seconds = None if durations is None else [float(duration) for duration in durations.split(",")]
    except ValueError:
        raise UserError(f"--durations {durations!r} must be numbers of seconds, such as 5,10,20") from None
    probed = probe_recipe(
        load_recipe(path, overrides),
        memory_gb=memory_gb,
        margin=margin,
        durations_s=seconds,
        random_weights=random_weights,
        num_processes=num_processes,
    )
    if as_json:
        print_json(probed.as_json())
    else:
        print(probe_table(probed))


def probe_recipe(
    recipe: Recipe,
    *,
    memory_gb: float | None = None,
    margin: float = MARGIN,
    durations_s: Sequence[float] | None = None,
    random_weights: bool = False,
    num_processes: int = 1,
) -> Probe:
    """Search for the largest batches by training on synthetic batches, in a separate process.

    Args:
        recipe: the recipe.
        memory_gb: memory limit in GiB. If None, the limit is the memory of the GPU. On a CPU, a limit is required.
        margin: share of the memory to leave free.
        durations_s: durations of the clips before augmentation, one for each bucket. If None, the longest duration and
            1/2, 1/4 and 1/8 of it are used. Augmentation can make clips longer, so a bucket's clips have the maximum
            duration that a clip of the given duration can have after augmentation.
        random_weights: do not read the weights of checkpoints. Random weights need the same memory.
        num_processes: number of processes that will train together. Only one process is measured.

    Raises:
        UserError: an argument is out of range, a part cannot be built, or not even one clip fits.
    """
    device = device_of(recipe.execution.device).type
    if device == "mps" or (device == "cpu" and sys.platform != "linux"):
        raise UserError("probe measures memory on CUDA GPUs, and on CPUs under Linux; elsewhere use tiny-audio plan")
    if device == "cpu" and memory_gb is None:
        raise UserError("probe: on a CPU, other programs share the memory; set the limit with --memory-gb")
    if memory_gb is not None and not 0 < memory_gb < float("inf"):
        raise UserError(f"--memory-gb {memory_gb:g} is not an amount of memory; give GiB above 0")
    if not 0 <= margin < 1:
        raise UserError(f"--margin {margin:g} is not a share of the memory; give a number from 0 to below 1")
    if num_processes < 1:
        raise UserError(f"--num-processes {num_processes} is not a number of processes; give 1 or more")
    longest_s = partial(recipe.augmentation.longest_s, max_duration_s=recipe.data.max_duration_s)
    durations = sorted(set(map(longest_s, _durations(recipe, durations_s))), reverse=True)
    buckets = []
    with Process(recipe, memory_gb, margin, random_weights) as process:
        for duration_s in durations:

            def predict(clips: int, duration_s: float = duration_s) -> int:
                return predict_bytes(recipe, clips, duration_s, "cuda" if device == "cuda" else "cpu")

            def train(clips: int, duration_s: float = duration_s) -> Measured | None:
                return process.train(clips, duration_s)

            guess = _guess(predict, process.allowed_bytes)
            clips, measured = most_that_fit(train, guess, MOST_CLIPS)
            if measured is None:
                raise UserError(
                    f"probe: not even one clip of {duration_s:g} s fits into {process.allowed_bytes / GIB:.2f} GiB; "
                    "run `tiny-audio plan` to see which changes help"
                )
            buckets.append(Bucket(duration_s, clips, measured, predict(clips)))
        return Probe(process.device_name, process.memory_bytes, margin, tuple(buckets), num_processes)


def most_that_fit(train: Trial, guess: int, most: int) -> tuple[int, Measured | None]:
    """Search for the largest number of clips, up to ``most``, that fits. Return this number and its measurement.

    The returned number fits, but up to 5 % more clips may also fit. If not even one clip fits, return 0 and None.
    """
    fits, too_many = 0, most + 1
    best: Measured | None = None
    clips = min(max(1, guess), most)
    while True:
        measured = train(clips)
        if measured is None:
            too_many = clips
        else:
            fits, best = clips, measured
        if too_many - fits <= max(1, int(_RESOLUTION * fits)):
            return fits, best
        # Increase in small steps, because the guess is usually near the answer. Once a batch does not fit, bisect.
        clips = min(most, max(fits + 1, fits * 5 // 4)) if too_many > most else (fits + too_many) // 2


def _guess(predict: Callable[[int], int], allowed_bytes: int) -> int:
    """Estimate how many clips fit, by linear extrapolation from the predicted memory of 1 clip and of 3 clips."""
    one, three = predict(1), predict(3)
    each = max(1, (three - one) // 2)
    return 1 + int((allowed_bytes - one) // each)


def _durations(recipe: Recipe, wanted: Sequence[float] | None) -> Sequence[float]:
    shortest, longest = recipe.data.min_duration_s, recipe.data.max_duration_s
    if wanted is None:
        return [max(shortest, longest / part) for part in (1, 2, 4, 8)]
    for duration_s in wanted:
        if not shortest <= duration_s <= longest:
            raise UserError(
                f"--durations: {duration_s:g} s is not between data.min_duration_s {shortest:g} and "
                f"data.max_duration_s {longest:g}; give durations between them"
            )
    if longest not in wanted:
        raise UserError(
            f"--durations must include data.max_duration_s, {longest:g}, because the longest clips need the most memory"
        )
    return wanted


def probe_table(probe: Probe) -> str:
    """Format the result as text: a row for each duration, and the ``batching`` section for the recipe."""
    from tiny_audio.runtime.columns import in_columns

    rows = [["clips of", "fit", "padded s", "GiB measured", "predicted", "s/step", "audio s/s"]]
    for bucket in probe.buckets:
        count = f"{bucket.clips}{'+' if bucket.clips == MOST_CLIPS else ''}"
        rows.append(
            [
                f"{bucket.duration_s:g} s",
                count,
                f"{bucket.padded_s:g}",
                f"{bucket.measured.peak_bytes / GIB:.2f}",
                f"{bucket.predicted_bytes / GIB:.2f}",
                f"{bucket.measured.step_s:.2f}",
                f"{bucket.padded_s * bucket.measured.batches / bucket.measured.step_s:,.0f}",
            ]
        )
    share = f"{probe.memory_bytes / GIB:.2f} GiB of {probe.device}, {probe.margin:.0%} of it left free (--margin)"
    batching = f"batching: {{max_padded_s: {probe.max_padded_s:g}, max_clips: {probe.max_clips}}}"
    together = "" if probe.num_processes == 1 else f", for {probe.num_processes} processes together"
    return f"{in_columns(rows, num_texts=1)}\n{share}\nput into the recipe{together}:\n  {batching}"
