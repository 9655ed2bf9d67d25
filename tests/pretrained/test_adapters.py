"""The computation of adapters: LoRA, DoRA and rank-stabilized LoRA."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tiny_audio.config import identity_of
from tiny_audio.pretrained.config import LoraConfig
from tiny_audio.pretrained.trainable import inject_lora, reset_magnitudes

RANK, ALPHA = 4, 6.0


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(rank=RANK, alpha=ALPHA, targets=("q_proj",), **fields)


def adapted(config: LoraConfig, dtype: torch.dtype = torch.float64) -> Any:
    """Return a linear layer with adapters. Its attribute ``base_layer`` is the frozen linear layer."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"q_proj": nn.Linear(10, 7).to(dtype)}).requires_grad_(False)
    inject_lora(model, config)
    return model["q_proj"]


@pytest.mark.parametrize(("fields", "scale"), [({}, ALPHA / RANK), ({"rslora": True}, ALPHA / math.sqrt(RANK))])
@pytest.mark.parametrize("dora", [False, True])
def test_outputs_equal_the_formulas(fields: dict[str, Any], scale: float, dora: bool) -> None:
    layer = adapted(lora(dora=dora, **fields))
    weight, bias = layer.base_layer.weight, layer.base_layer.bias
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(up)
    wanted = weight + scale * up @ down
    if dora:
        magnitude = layer.lora_magnitude_vector["default"].weight
        torch.testing.assert_close(magnitude, weight.norm(dim=1))
        nn.init.normal_(magnitude)
        wanted = magnitude[:, None] * wanted / wanted.norm(dim=1, keepdim=True)
    inputs = torch.randn(5, 10, dtype=torch.float64)
    torch.testing.assert_close(layer(inputs), inputs @ wanted.T + bias)
    trained = {name for name, tensor in layer.named_parameters() if tensor.requires_grad}
    assert trained == {"lora_A.default.weight", "lora_B.default.weight"} | (
        {"lora_magnitude_vector.default.weight"} if dora else set()
    )


def test_new_dora_adapters_do_not_change_half_precision_weights() -> None:
    """DoRA's magnitudes are the norms of the bf16 weights. Norms of unrounded weights would change the outputs."""
    layer = adapted(lora(dora=True), torch.bfloat16)
    reset_magnitudes(nn.ModuleDict({"q_proj": layer}))
    layer.float()
    inputs = torch.randn(5, 10)
    torch.testing.assert_close(layer(inputs), layer.base_layer(inputs), rtol=1e-6, atol=1e-6)


def test_default_fields_are_not_part_of_the_identity() -> None:
    plain = {"rank": RANK, "alpha": ALPHA, "dropout": 0.0, "targets": ["q_proj"]}
    assert identity_of(lora()) == identity_of(lora(dora=False, rslora=False)) == plain
    assert identity_of(lora(dora=True)) == plain | {"dora": True}
    assert identity_of(lora(rslora=True)) == plain | {"rslora": True}
