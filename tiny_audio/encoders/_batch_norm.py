"""Batch normalization with fixed statistics, for Conformers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FixedBatchNorm(nn.BatchNorm1d):
    """Batch norm that uses the checkpoint's statistics, even in training.

    If the norm used the batch's statistics in training, a clip's frames would depend on padding and on the other clips
    of the batch. Also, the running statistics would change in training, even if the encoder is frozen.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm1d) -> FixedBatchNorm:
        """Return a fixed batch norm that shares the parameters and buffers of ``norm``."""
        fixed = cls(norm.num_features, norm.eps)
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            setattr(fixed, name, tensor)
        return fixed

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``[B, D, T]`` to ``[B, D, T]``."""
        assert self.running_mean is not None
        assert self.running_var is not None
        statistics = self.running_mean.float(), self.running_var.float()
        weights = self.weight.float(), self.bias.float()
        return F.batch_norm(input.float(), *statistics, *weights, eps=self.eps).to(input.dtype)
