"""Data types in training: frozen weights in bf16, trainable weights in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from tests.conftest import changed
from tests.support.models import assemble
from tests.support.registered_parts import names, parts
from tests.support.training import LORA, logged, recipe_on, run
from tests.training.throughput_models import score
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.training.precision import autocast, set_types

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def types(model: TinyAudioModel, *, trained: bool) -> set[torch.dtype]:
    return {tensor.dtype for tensor in model.parameters() if tensor.requires_grad == trained}


@pytest.mark.parametrize(
    ("precision", "device", "frozen"),
    [("bf16", "cpu", torch.bfloat16), ("bf16", "cuda", torch.bfloat16), ("bf16", "mps", torch.float32)]
    + [("fp32", device, torch.float32) for device in ("cpu", "cuda")],
)
def test_frozen_weights_may_be_in_bf16(precision: Any, device: str, frozen: torch.dtype) -> None:
    model, _ = assemble(lora=True)
    set_types(model, precision, torch.device(device))
    assert types(model, trained=False) == {frozen}
    assert types(model, trained=True) == {torch.float32}


def losses_and_gradients(model: TinyAudioModel, tokenizer: Any, precision: Any) -> tuple[Tensor, dict[str, Tensor]]:
    with autocast(precision, CPU):
        losses = score(model.train(), tokenizer).decoder_loss
    losses.sum().backward()
    found = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
    return losses.detach(), found


def gradient_of_projector(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for name, gradient in gradients.items() if name.startswith("projector.")])


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [(name, "smollm3") for name in names(parts(ENCODERS))] + [("whisper", name) for name in names(parts(DECODERS))],
)
def test_every_part_trains_with_frozen_weights_in_bf16(encoder: str, decoder: str) -> None:
    """Losses are close to those in fp32. Frozen weights in bf16 make the error of the projector's gradient less than 4
    times as large as bf16 autocast alone does."""
    # The tiny configs of these encoders have convolutions with 8 channels per group, for which oneDNN's bf16 kernel for
    # AMX gives wrong results (see tests/export/test_auto.py). Hidden size 64 makes 16 channels per group.
    size = 64 if encoder in ("hubert", "wav2vec2", "wavlm") else None

    def computed(precision: Any, weights: Any) -> tuple[Tensor, dict[str, Tensor]]:
        model, tokenizer = assemble(encoder, decoder, lora=True, hidden_size=size)
        set_types(model, weights, CPU)
        return losses_and_gradients(model, tokenizer, precision)

    exact, before, found = computed("fp32", "fp32"), computed("bf16", "fp32"), computed("bf16", "bf16")
    assert not torch.equal(found[0], exact[0])
    assert torch.allclose(found[0], exact[0], rtol=0.06)
    assert found[1].keys() == exact[1].keys()
    wanted, previous, gradient = (gradient_of_projector(gradients) for _, gradients in (exact, before, found))
    assert (gradient - wanted).norm() < 4 * (previous - wanted).norm()


def test_adapters_get_the_inputs_of_their_layers() -> None:
    """By default, peft casts the inputs of adapters to fp32, and autocast casts them back to bf16. Therefore, turning
    off peft's cast changes no result."""
    results = []
    for casts in (True, False):
        model, tokenizer = assemble(lora=True)
        set_types(model, "bf16", CPU)
        in_layers: list[torch.dtype] = []
        in_adapters: list[torch.dtype] = []
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.cast_input_dtype_enabled |= casts
                for module, seen in ((layer, in_layers), (layer.lora_A["default"], in_adapters)):
                    module.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].dtype))
        results.append(losses_and_gradients(model, tokenizer, "bf16"))
        assert torch.bfloat16 in in_layers
        assert (in_layers == in_adapters) is not casts
    (losses, gradients), (again, gradients_again) = results
    assert torch.equal(losses, again)
    assert all(torch.equal(gradient, gradients_again[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("changes", [{"decoder__lora": LORA | {"dora": True}}, {"decoder__quantization": "int8"}])
def test_runs_with_other_adapters_and_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The run trains, evaluates and exports."""
    if "decoder__quantization" in changes:
        pytest.importorskip("bitsandbytes")
    document = changed(recipe_on(tmp_path), training__precision="bf16", generation__max_new_tokens=8)
    run(changed(document, **({"decoder__freeze": True, "decoder__lora": LORA} | changes)), tmp_path / "run")
    assert len(logged(tmp_path / "run", "gradient_norm")) == 2
