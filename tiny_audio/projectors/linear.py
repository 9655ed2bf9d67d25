"""Two linear layers with a ReLU, on stacked frames (SLAM-ASR, Ma et al. 2024, arXiv 2402.08846)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveInt
from torch import nn

from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.projectors._stacked import StackedProjector


class LinearConfig(ProjectorConfig):
    """Two linear layers with a ReLU, on stacked frames: SLAM-ASR's projector.

    With frozen HuBERT X-Large and frozen Vicuna 7B, SLAM-ASR (Ma et al. 2024, arXiv 2402.08846) reports 1.84 and 3.39 %
    WER on LibriSpeech test-clean and test-other. It trains with a learning rate of 1e-4 after 1,000 steps of warmup. If
    only the projector trains, models are fragile out of domain (arXiv 2411.03866); LoRA on the decoder helps.
    """

    name: Literal["linear"] = "linear"
    stack: PositiveInt = 5
    """Neighboring encoder frames that are joined into one embedding. 5 in SLAM-ASR, so 50 Hz become 10 Hz."""
    hidden_dim: PositiveInt = 2048
    """Channels between the two layers. 2048 in SLAM-ASR."""

    def min_frames(self) -> int:
        """One full stack."""
        return self.stack

    @classmethod
    def tiny(cls) -> Self:
        """64 hidden channels."""
        return cls(hidden_dim=64)


@PROJECTORS.register
def build_linear(config: LinearConfig, context: ProjectorContext) -> Projector:
    """Build the projector with random weights."""
    return StackedProjector(
        config, context, stack=config.stack, hidden_dim=config.hidden_dim, activation=nn.ReLU, bias=True
    )
