"""CTC compression: one embedding for each run of frames with the same label (Gaido et al. 2021, arXiv 2102.01578)."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from tiny_audio.ctc import BLANK
from tiny_audio.projectors import PROJECTORS, Frames, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.projectors._layers import FeedForward, normalize, output_norm


class CtcCompressConfig(ProjectorConfig):
    """CTC compression: consecutive frames with the same CTC label are averaged, then two linear layers.

    Gaido et al. 2021 (arXiv 2102.01578) gain 1.3 to 1.5 BLEU in speech translation. Between a speech encoder and a
    language model, it is often worse than a fixed rate (arXiv 2409.17044). The number of embeddings depends on the
    content rather than the duration. The quality depends on the labels: an untrained head predicts only blanks, so a
    whole clip becomes one embedding. Start from a trained head (``ctc.init: pretrained`` or ``training.init_from``).
    """

    needs_ctc: ClassVar[bool] = True

    name: Literal["ctc_compress"] = "ctc_compress"
    blanks: Literal["merge", "drop"] = "merge"
    """How frames with the blank label are treated (compared in arXiv 2411.07607). ``merge``: like any other label, so
    each pause and each gap between characters is one embedding. ``drop``: they are removed. A clip with only blanks
    then becomes the average of all its frames."""
    hidden_dim: PositiveInt | None = None
    """Channels between the two linear layers. None uses the decoder's width."""

    def min_frames(self) -> int:
        """One, because every frame has a label."""
        return 1

    @classmethod
    def tiny(cls) -> Self:
        """64 hidden channels."""
        return cls(hidden_dim=64)


@PROJECTORS.register
def build_ctc_compress(config: CtcCompressConfig, context: ProjectorContext) -> Projector:
    """Build the projector with random weights."""
    return CtcCompressProjector(config, context)


class CtcCompressProjector(Projector):
    """Average over runs of one label → linear → GELU → linear → RMSNorm."""

    def __init__(self, config: CtcCompressConfig, context: ProjectorContext) -> None:
        super().__init__()
        self.drop_blanks = config.blanks == "drop"
        hidden_dim = context.out_dim if config.hidden_dim is None else config.hidden_dim
        self.feedforward = FeedForward(context.in_dim, hidden_dim, context.out_dim, nn.GELU)
        self.output_norm = output_norm(config, context)

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """An upper bound: one per frame. It is reached if neighboring frames always have different labels."""
        return num_frames

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Frames ``[B, T, D]`` with CTC logits ``[B, T, V]`` -> embeddings ``[B, N, H]``.

        N is the largest number of runs in a clip. The labels are an argmax, so no gradient reaches the CTC head.
        """
        assert frames.ctc_logits is not None, "because of needs_ctc, recipes without a CTC head are rejected"
        labels, kept = frames.ctc_logits.argmax(-1), frames.mask()
        if labels.is_meta:
            # Meta tensors have no content. Assume the upper bound: every frame is a run of its own.
            labels = torch.arange(1, labels.shape[1] + 1, device=frames.lengths.device).expand(labels.shape)
        if self.drop_blanks:
            spoken = kept & (labels != BLANK)
            kept = spoken | (kept & ~spoken.any(1, keepdim=True))
        averages, lengths = merge_runs(frames.zeroed().values, labels, kept)
        return normalize(self.output_norm, self.feedforward(averages)), lengths


def merge_runs(values: Tensor, labels: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Average over runs of equal labels.

    Args:
        values: ``[B, T, D]``, finite everywhere.
        labels: ``[B, T]``.
        kept: bool ``[B, T]``, True on frames that are used. It is constant within a run.

    Returns:
        averages ``[B, N, D]``, with zeros beyond a row's runs, and the number of runs ``[B]``.
    """
    starts = kept.clone()
    starts[:, 1:] &= labels[:, 1:] != labels[:, :-1]
    lengths = starts.sum(1)
    runs = starts.cumsum(1) - 1
    # [B, T] -> [B, N, T], True on a run's frames. A matrix product, because index_add is not deterministic on a GPU.
    indices = torch.arange(int(lengths.max()), device=values.device)
    members = (runs[:, None, :] == indices[:, None]) & kept[:, None, :]
    sums = members.to(values.dtype) @ values
    return sums / members.sum(-1, keepdim=True).clamp(min=1), lengths
