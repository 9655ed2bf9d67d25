"""Linear layers in 4 and 8 bits. Most of these tests need bitsandbytes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.conftest import Document, changed
from tests.support.models import TRANSCRIPTS
from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS, DecoderContext, build_tokenizer
from tiny_audio.pretrained.quantization import (
    Quantization,
    QuantizedLinear,
    dequantize,
    quantizable,
    quantize,
    quantized_layers,
    whole_state,
)
from tiny_audio.pretrained.trainable import reset_magnitudes
from tiny_audio.recipe import load_recipe

KINDS: tuple[Quantization, ...] = ("nf4", "int8")
LORA = {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "down_proj"], "dora": True}


@pytest.fixture(scope="module")
def bnb() -> Any:
    return pytest.importorskip("bitsandbytes")


def linear(inputs: int = 48, outputs: int = 20, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def decoder(kind: Quantization | None, name: str = "smollm3", **fields: Any) -> Any:
    """Return a tiny frozen decoder with adapters. Its weights are large, so that quantization has an effect."""
    tiny = DECODERS.entry(name).config.tiny()  # type: ignore[attr-defined]
    config = type(tiny).model_validate({**tiny.model_dump(), "freeze": True, "lora": LORA, **fields}, strict=False)
    torch.manual_seed(0)
    built: Any = DECODERS.build(config, DecoderContext(build_tokenizer(tiny, TRANSCRIPTS)))
    for parameter in built.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    if kind is not None:
        quantize(built, kind)
    reset_magnitudes(built)
    return built


# --- one layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 20), (576, 192), (6, 3)])
def test_memory_is_computed_without_bitsandbytes(bnb: Any, kind: Quantization, inputs: int, outputs: int) -> None:
    real, planned = (
        QuantizedLinear(layer, kind) for layer in (linear(inputs, outputs), linear(inputs, outputs).to("meta"))
    )
    sizes = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in layer.named_buffers()} for layer in (real, planned)
    ]
    assert sizes[0] == sizes[1]
    assert planned.weight.shape == real.weight.shape == (outputs, inputs)


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4 + 8 / 64 + 32 / (64 * 256)), ("int8", 8 + 32 / 1024)])
def test_bits_per_weight_are_known(kind: Quantization, bits: float) -> None:
    layer = QuantizedLinear(nn.Linear(1024, 1024, bias=False, device="meta"), kind)
    size = 8 * sum(tensor.numel() * tensor.element_size() for tensor in layer.buffers())
    assert size / layer.num_weights == pytest.approx(bits, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_quantized_layer_equals_a_layer_with_the_restored_weight(
    bnb: Any, kind: Quantization, dtype: torch.dtype
) -> None:
    plain = linear()
    layer = QuantizedLinear(plain, kind).to(dtype)
    assert (layer.dtype, layer.weight.dtype, layer.bias.dtype) == (dtype,) * 3
    # An error is at most half a step. Relative to the largest weight, the largest step of nf4 is 0.3.
    limit = {"nf4": 0.2, "int8": 0.008}[kind]
    assert (layer.weight.float() - plain.weight).abs().max() < limit * plain.weight.abs().max()
    twin = nn.Linear(48, 20).to(dtype)
    twin.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    grads = []
    for module in (layer, twin):
        inputs = torch.randn(2, 5, 48, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
        outputs = module(inputs)
        outputs.square().sum().backward()
        grads.append((outputs.detach(), inputs.grad))
    assert all(torch.equal(ours, wanted) for ours, wanted in zip(*grads, strict=True))


def test_outputs_equal_those_of_bitsandbytes(bnb: Any) -> None:
    plain = linear(128, 64)
    theirs = bnb.nn.Linear4bit(128, 64, compute_dtype=torch.float32, quant_type="nf4")
    theirs.weight = bnb.nn.Params4bit(plain.weight.data.clone(), requires_grad=False, quant_type="nf4")
    theirs.bias = plain.bias
    theirs = theirs.to("cpu")
    inputs = torch.randn(3, 128).requires_grad_()  # without a gradient, bitsandbytes uses a kernel in half precision
    torch.testing.assert_close(QuantizedLinear(plain, "nf4")(inputs), theirs(inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_does_not_change_the_quantized_weights(bnb: Any, kind: Quantization) -> None:
    layer, same = (QuantizedLinear(linear(), kind) for _ in range(2))
    layer.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(layer.weight, same.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_layers_work_under_autocast(bnb: Any, kind: Quantization) -> None:
    plain = linear()
    layer = QuantizedLinear(plain, kind)
    plain.weight.data = layer.weight
    grads = []
    for module in (layer, plain):
        inputs = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = module(inputs)
        assert outputs.dtype == torch.bfloat16
        outputs.float().square().sum().backward()
        assert inputs.grad is not None
        grads.append((outputs.detach(), inputs.grad))
    for ours, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(ours, wanted)


# --- a decoder


def test_all_linear_layers_except_the_head_are_quantized(bnb: Any) -> None:
    part, plain = decoder("nf4"), decoder(None)
    quantized = dict(quantized_layers(part))
    assert len(quantized) == 2 * 7, "two decoder layers have seven linear layers each"
    assert quantizable(part).keys() == quantizable(plain).keys() == quantized.keys()
    assert "model.lm_head" not in quantized
    assert {name for name, tensor in part.named_parameters() if tensor.requires_grad} == {
        name for name, tensor in plain.named_parameters() if tensor.requires_grad
    }
    assert whole_state(part).keys() == plain.state_dict().keys()
    assert part.state_dict().keys() == plain.state_dict().keys() - {f"{path}.weight" for path in quantized}
    for path, layer in quantized.items():
        assert torch.equal(whole_state(part)[f"{path}.weight"], layer.weight)
    dequantize(part)
    assert not dict(quantized_layers(part))
    assert part.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_do_not_depend_on_the_batch(bnb: Any, kind: Quantization) -> None:
    part = decoder(kind).eval()
    rows = [torch.randn(length, part.dim, generator=torch.Generator().manual_seed(length)) for length in (23, 9, 14)]
    mask = torch.zeros(3, 23, dtype=torch.bool)
    batch = torch.full((3, 23, part.dim), 7.0)
    for index, row in enumerate(rows):
        batch[index, : len(row)], mask[index, : len(row)] = row, True
    with torch.no_grad():
        alone = torch.cat([part(row[None], every := torch.ones(1, len(row), dtype=torch.bool), every) for row in rows])
        together = part(batch, mask, mask)
    assert (alone - together).abs().max() <= 1e-5 * alone.square().mean().sqrt()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_the_restored_weights(bnb: Any, kind: Quantization) -> None:
    """The gradients are also equal with gradient checkpointing."""
    grads: list[dict[str, Tensor]] = []
    for restored, checkpointing in ((False, False), (True, False), (False, True)):
        part = decoder(kind, gradient_checkpointing=checkpointing).train()
        if restored:
            dequantize(part)
        rows = torch.randn(2, 6, part.dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
        every = torch.ones(2, 6, dtype=torch.bool)
        part(rows, every, every).square().sum().backward()
        assert rows.grad is not None
        assert rows.grad.any()
        grads.append({name: tensor.grad for name, tensor in part.named_parameters() if tensor.grad is not None})
    assert any("magnitude" in name for name in grads[0])
    for other in grads[1:]:
        assert grads[0].keys() == other.keys()
        assert all(torch.equal(grads[0][name], other[name]) for name in other)


# --- errors


def test_trainable_weights_cannot_be_quantized() -> None:
    with pytest.raises(ValidationError, match=r"quantization: nf4 .*freeze: true"):
        DECODERS.parse({"name": "smollm3", "freeze": False, "quantization": "nf4"})
    with pytest.raises(ValidationError, match=r"'nf4' or 'int8'"):
        DECODERS.parse({"name": "smollm3", "quantization": "fp4"})


def test_quantized_layers_cannot_be_compiled(document: Document, write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(changed(document, decoder={"name": "smollm3", "quantization": "nf4"}))
    with pytest.raises(UserError, match=r"execution\.compile: .*decoder\.quantization: nf4"):
        load_recipe(path, ["execution.compile=true"])


def test_a_missing_bitsandbytes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"decoder\.quantization: int8 .*pip install 'bitsandbytes>="):
        decoder("int8")


def test_a_decoder_without_linear_layers_cannot_be_quantized(bnb: Any) -> None:
    gpt2 = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 96}
    with pytest.raises(UserError, match=r"decoder\.quantization: nf4 .*Conv1D"):
        decoder("nf4", "causal_lm", model_type="gpt2", overrides=gpt2, lora=None)
