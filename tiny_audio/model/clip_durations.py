"""The durations of the clips that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClipDurations:
    """Quantiles of the durations of training clips, in seconds."""

    min_s: float
    median_s: float
    p95_s: float
    """95% of the clips are at most this long."""
    max_s: float

    @classmethod
    def of(cls, durations_s: np.ndarray) -> ClipDurations:
        """Return the quantiles of durations ``[n]`` in seconds. There must be at least one clip."""
        return cls(*(round(float(value), 3) for value in np.quantile(durations_s, [0.0, 0.5, 0.95, 1.0])))

    def warning(self, duration_s: float) -> str | None:
        """Return a warning if a clip is shorter than half of the shortest training clip, else None.

        Clips that are longer than all training clips need no warning, because they are split into chunks.
        """
        if duration_s >= self.min_s / 2:
            return None
        trained = f"{self.min_s:g} to {self.max_s:g} s"
        return f"the text is unreliable: the recording lasts {duration_s:.2f} s, but the training clips last {trained}"
