"""Two linear layers with a ReLU on stacked frames (SLAM-ASR, Ma et al. 2024, arXiv 2402.08846), then an RMSNorm."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveInt
from torch import nn

from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.projectors._stacked import StackedProjector


class LinearConfig(ProjectorConfig):
    """Two linear layers with a ReLU, on stacked frames: SLAM-ASR's projector, followed by an RMSNorm.

    With frozen HuBERT X-Large and frozen Vicuna 7B, SLAM-ASR (Ma et al. 2024, arXiv 2402.08846) reports a WER of 1.84%
    on LibriSpeech test-clean and 3.39% on test-other. Its learning rate is 1e-4 after 1,000 warmup steps. If only the
    projector is trained, models are not robust to other domains (arXiv 2411.03866). With LoRA on the decoder, they are
    more robust.
    """

    name: Literal["linear"] = "linear"
    stack: PositiveInt = 5
    """Number of neighboring encoder frames that are joined into one embedding. 5 in SLAM-ASR, which reduces 50 Hz to
    10 Hz."""
    hidden_dim: PositiveInt = 2048
    """Number of channels between the two layers. 2048 in SLAM-ASR."""

    def min_frames(self) -> int:
        """Return the number of frames in a stack."""
        return self.stack

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with 64 hidden channels."""
        return cls(hidden_dim=64)


@PROJECTORS.register
def build_linear(config: LinearConfig, context: ProjectorContext) -> Projector:
    """Build the projector with random weights."""
    return StackedProjector(
        config, context, stack=config.stack, hidden_dim=config.hidden_dim, activation=nn.ReLU, bias=True
    )
