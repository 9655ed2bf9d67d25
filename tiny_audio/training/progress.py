"""The state of a training, as stored in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Position and sums of a training. With the planned order, this is the whole state of the data."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    epoch: int = 0
    batch: int = 0
    """Number of batches of this epoch's plan that have been used."""
    plan: str = ""
    """Hash of this epoch's plan."""
    audio_s: float = 0.0
    padded_s: float = 0.0
    tokens: int = 0
    wall_s: float = 0.0
    """Seconds of all steps. A step lasts from the wait for its batches to the end of the update."""
    waited_s: float = 0.0
    """Seconds of ``wall_s`` in which training waited for batches."""
    beside_s: float = 0.0
    """Overhead in seconds: time between steps, for evaluations and checkpoints."""
    flops: float = 0.0
    """FLOPs that the clips need, see :class:`tiny_audio.plan.work.Work`."""
    possible_flops: float = 0.0
    """FLOPs of the machine at its peak during ``wall_s``."""
    measured_j: float = 0.0
    """Joules measured by a meter."""
    rated_j: float = 0.0
    """Joules without a meter, on the assumption that the devices always use their rated power."""
    peak_memory_bytes: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    window_decoder_loss: float = 0.0
    """Sum since the last line of the log, over all processes, without skipped steps. The next three are also sums."""
    window_ctc_loss: float = 0.0
    window_tokens: int = 0
    window_labels: int = 0
    logged: dict[str, float] = field(default_factory=dict)
    """The ledger's sums at the last line of the log. Empty before the first line."""

    def start_window(self) -> None:
        """Begin the sums of the next line of the log."""
        self.window_decoder_loss = self.window_ctc_loss = 0.0
        self.window_tokens = self.window_labels = 0
