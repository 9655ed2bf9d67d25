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
    """CTC compression: averages of consecutive frames with the same CTC label, then two linear layers.

    In speech translation, Gaido et al. 2021 (arXiv 2102.01578) report gains of 1.3 to 1.5 BLEU. Between a speech
    encoder and a language model, CTC compression is often worse than a fixed rate (arXiv 2409.17044). The number of
    embeddings depends on the content of a clip, not on its duration. Early in training, a CTC head predicts only
    blanks, so a whole clip becomes one embedding. Therefore, start from a trained CTC head (``ctc.init: pretrained`` or
    ``training.init_from``).
    """

    needs_ctc: ClassVar[bool] = True

    name: Literal["ctc_compress"] = "ctc_compress"
    blanks: Literal["merge", "drop"] = "merge"
    """Treatment of frames with the blank label. arXiv 2411.07607 compares the two values. ``merge`` treats the blank
    like other labels, so each pause and each gap between characters becomes one embedding. ``drop`` removes frames with
    the blank label. If all frames of a clip have this label, the average of these frames becomes one embedding."""
    hidden_dim: PositiveInt | None = None
    """Number of channels between the two linear layers. If None, it is the decoder's width."""

    def min_frames(self) -> int:
        """Return 1, because every frame has a label."""
        return 1

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with 64 hidden channels."""
        return cls(hidden_dim=64)


@PROJECTORS.register
def build_ctc_compress(config: CtcCompressConfig, context: ProjectorContext) -> Projector:
    """Build the projector with random weights."""
    return CtcCompressProjector(config, context)


class CtcCompressProjector(Projector):
    """Average over runs of equal labels → linear → GELU → linear → RMSNorm."""

    def __init__(self, config: CtcCompressConfig, context: ProjectorContext) -> None:
        super().__init__()
        self.drop_blanks = config.blanks == "drop"
        hidden_dim = context.out_dim if config.hidden_dim is None else config.hidden_dim
        self.feedforward = FeedForward(context.in_dim, hidden_dim, context.out_dim, nn.GELU)
        self.output_norm = output_norm(config, context)

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Return the number of frames, an upper bound of the number of embeddings."""
        return num_frames

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Map frames ``[B, T, D]`` with CTC logits ``[B, T, V]`` to embeddings ``[B, N, H]``.

        N is the largest number of runs of equal labels in any of the clips. The labels are the argmax of the CTC
        logits, so no gradient reaches the CTC head.
        """
        assert frames.ctc_logits is not None, "needs_ctc is True, so recipes without a CTC head are rejected"
        labels, kept = frames.ctc_logits.argmax(-1), frames.mask()
        if labels.is_meta:
            # Meta tensors have no content. Assume the maximum number of runs, with one frame each.
            labels = torch.arange(1, labels.shape[1] + 1, device=frames.lengths.device).expand(labels.shape)
        if self.drop_blanks:
            spoken = kept & (labels != BLANK)
            kept = spoken | (kept & ~spoken.any(1, keepdim=True))
        averages, lengths = merge_runs(frames.zeroed().values, labels, kept)
        return normalize(self.output_norm, self.feedforward(averages)), lengths


def merge_runs(values: Tensor, labels: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Average over runs of equal labels.

    Args:
        values: ``[B, T, D]``, finite also in padding.
        labels: ``[B, T]``.
        kept: bool ``[B, T]``, True for frames that are used. Either all frames of a run are used, or none.

    Returns:
        The averages ``[B, N, D]``, with zeros after the last run of a row, and the numbers of runs ``[B]``.
    """
    starts = kept.clone()
    starts[:, 1:] &= labels[:, 1:] != labels[:, :-1]
    lengths = starts.sum(1)
    runs = starts.cumsum(1) - 1
    # [B, T] -> [B, N, T], True on a run's frames. On a GPU, index_add is not deterministic, but a matrix product is.
    indices = torch.arange(int(lengths.max()), device=values.device)
    members = (runs[:, None, :] == indices[:, None]) & kept[:, None, :]
    sums = members.to(values.dtype) @ values
    return sums / members.sum(-1, keepdim=True).clamp(min=1), lengths
