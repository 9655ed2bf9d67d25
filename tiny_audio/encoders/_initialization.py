"""Initial weights of encoders that train from scratch."""

from __future__ import annotations

from torch import nn


def scale_by_fan_in(model: nn.Module) -> None:
    """Reinitialize the weights of convolutions (He initialization) and linear layers (Xavier initialization).

    transformers draws these weights with a standard deviation of 0.02, which suits the widths of published models. But
    in a narrow encoder, the output of convolutions with such weights would be much too small.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
