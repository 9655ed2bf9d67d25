"""The state of a training run, as stored in a checkpoint, and its summary in a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Position and sums of a training run.

    The order of the clips is planned in advance. To continue, a run needs only the position in this plan.
    """

    step: int = 0
    """Number of finished optimizer steps, including skipped steps."""
    epoch: int = 0
    batch: int = 0
    """Number of batches of this epoch's plan that have been used."""
    plan: str = ""
    """Hash of this epoch's plan."""
    audio_s: float = 0.0
    padded_s: float = 0.0
    tokens: int = 0
    wall_s: float = 0.0
    """Seconds of all steps. A step includes the wait for its batches and ends with the update."""
    waited_s: float = 0.0
    """Seconds of ``wall_s`` in which training waited for batches."""
    beside_s: float = 0.0
    """Overhead in seconds: time between steps, for evaluations and checkpoints."""
    flops: float = 0.0
    """FLOPs that the clips need without padding, see :class:`tiny_audio.plan.work.Work`."""
    possible_flops: float = 0.0
    """FLOPs that the machine could compute in ``wall_s`` at its peak speed."""
    measured_j: float = 0.0
    """Joules measured by a meter."""
    rated_j: float = 0.0
    """Estimated joules if there is no meter, assuming that the devices always use their rated power."""
    peak_memory_bytes: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    unaligned_clips: int = 0
    """Number of clips without an alignment loss, because they have too few audio embeddings for their tokens. A clip
    counts each time that it is used."""
    evaluated_step: int = 0
    """The last step that was evaluated during training."""
    num_evaluations: int = 0
    best_step: int = 0
    """Step of the best evaluation, if the recipe has ``training.keep_best``. 0 before the first evaluation."""
    best_value: float = 0.0
    """The value of the metric at ``best_step``."""
    evaluations_since_best: int = 0
    window_decoder_loss: float = 0.0
    """The decoder's loss, summed over all processes and the steps since the last line of the log, without skipped
    steps. The next four fields are sums over the same processes and steps."""
    window_ctc_loss: float = 0.0
    window_alignment_loss: float = 0.0
    window_tokens: int = 0
    window_labels: int = 0
    logged: dict[str, float] = field(default_factory=dict)
    """The sums of :class:`tiny_audio.training.ledger.Ledger` at the last line of the log."""

    def start_window(self) -> None:
        """Reset the sums for the next line of the log."""
        self.window_decoder_loss = self.window_ctc_loss = self.window_alignment_loss = 0.0
        self.window_tokens = self.window_labels = 0


def summary(progress: Progress) -> dict[str, Any]:
    """Return the training section of a report."""
    return {
        "steps": progress.step,
        "epochs": progress.epoch,
        "wall_s": progress.wall_s,
        "audio_hours": progress.audio_s / 3600,
        "audio_hours_per_hour": progress.audio_s / max(1e-9, progress.wall_s),
        "padding_share": 1 - progress.audio_s / max(1e-9, progress.padded_s),
        "tokens": progress.tokens,
        "skipped_steps": progress.skipped_steps,
    }
