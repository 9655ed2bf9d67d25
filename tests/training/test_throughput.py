"""Training saves time and memory: no logits without labels, no graph below the trainable weights, gradient
checkpointing, compiled layers and a fused loss."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Document, changed, tiny_recipe
from tests.support.encoder_checkpoints import DEPTH_FIELDS, WAVEFORM_FAMILIES
from tests.support.training import (
    make_trainer,
    parse,
    weights,
)
from tests.training.throughput_models import (
    LENGTHS,
    TEXTS,
    assemble,
    score,
    tiny,
    unfused,
    waveforms,
    with_fields,
)
from tiny_audio.config import UserError
from tiny_audio.data.augmentation import AugmentationConfig
from tiny_audio.data.augmentation.spec_augment import SpecAugmentConfig
from tiny_audio.decoders import DECODERS, DecoderContext, build_tokenizer
from tiny_audio.encoders import ENCODERS, Encoder, EncoderContext
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.plan._dry_run import DryRun
from tiny_audio.recipe import load_recipe
from tiny_audio.training.compilation import compile_layers
from tiny_audio.training.fused import fused_cross_entropy
from tiny_audio.training.metrics import read_metrics
from tiny_audio.training.optimization import build_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")

ENCODER_NAMES = [entry.name for entry in ENCODERS.entries()]
PLAIN_HEADS = [entry.name for entry in DECODERS.entries() if entry.config.plain_head]
LORA = {"rank": 2, "alpha": 4.0}
FAST_ENCODERS = {("whisper", "full"), *((name, "lora") for name in ("whisper", "hubert", "parakeet", "granite-speech"))}
"""Pairs of encoder and kind of training. Tests of gradient checkpointing for other pairs are marked as slow, because
other encoders have the same kinds of layers."""


@contextmanager
def saved_for_backward() -> Iterator[list[Tensor]]:
    """Yield a list of the tensors that the graph saves inside the context."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def build_encoder(name: str, **fields: Any) -> Encoder:
    torch.manual_seed(0)
    return ENCODERS.build(tiny(ENCODERS, name, **fields), EncoderContext()).train()


def adapted(registry: Any, name: str) -> dict[str, Any]:
    """Return the settings of adapters on the layers that compute the queries of attention."""
    names = registry.entry(name).config.linear_layers
    return LORA | {"targets": tuple(layer for layer in names if layer in ("q_proj", "linear_q", "to_q"))}


# --- graphs


@pytest.mark.parametrize("name", ENCODER_NAMES)
def test_a_frozen_encoder_saves_no_activations(name: str) -> None:
    """This also holds in training mode and with the masks of SpecAugment."""
    encoder = build_encoder(name, freeze=True)
    with saved_for_backward() as kept:
        masks = AugmentationConfig(spec_augment=SpecAugmentConfig()).of_features(range(len(LENGTHS)))
        frames = encoder(waveforms(), LENGTHS, masks)
    assert kept == []
    assert not frames.values.requires_grad


@pytest.mark.parametrize("name", ENCODER_NAMES)
@pytest.mark.parametrize("layer", ["last", "weighted"])
def test_a_front_end_below_adapters_saves_no_activations(name: str, layer: str) -> None:
    lora = adapted(ENCODERS, name) if layer == "last" else None
    encoder = build_encoder(name, freeze=True, lora=lora, layer=layer)
    with saved_for_backward() as kept:
        features = encoder.features(waveforms(), LENGTHS)
    assert kept == []
    assert not features.values.requires_grad
    with saved_for_backward() as kept:
        assert encoder.encode(features).values.requires_grad
    assert kept


@pytest.mark.parametrize("name", WAVEFORM_FAMILIES)
def test_a_front_end_can_be_trained(name: str) -> None:
    encoder = build_encoder(name, train_front_end=True)
    with saved_for_backward() as kept:
        assert encoder.features(waveforms(), LENGTHS).values.requires_grad
    assert kept


def test_a_ctc_head_on_a_frozen_encoder_saves_only_the_frames() -> None:
    model, _ = assemble("smollm3", head=True)
    with saved_for_backward() as kept:
        frames = model.encode(waveforms(), LENGTHS)
    assert frames.ctc_logits is not None and frames.ctc_logits.requires_grad  # noqa: PT018
    assert not frames.values.requires_grad
    assert {tensor.untyped_storage().data_ptr() for tensor in kept} == {frames.values.untyped_storage().data_ptr()}


@pytest.mark.parametrize(("decoder", "attention"), [*((name, "auto") for name in PLAIN_HEADS), ("gemma3", "varlen")])
def test_logits_are_computed_only_at_labels(decoder: str, attention: str) -> None:
    model, tokenizer = assemble(decoder, attention=attention)
    rows: list[int] = []
    head: nn.Module = model.decoder.model.get_output_embeddings()  # type: ignore[union-attr,operator,assignment]
    head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    score(model, tokenizer)
    assert rows == [sum(len(tokenizer.encode(text)) + 1 for text in TEXTS)]


def test_the_optimizer_is_fused(tmp_path: Path) -> None:
    model, _ = assemble("smollm3")
    optimizer = build_optimizer(model, parse(tiny_recipe(tmp_path)))
    assert [group["fused"] for group in optimizer.param_groups] == [True] * len(optimizer.param_groups)
    assert optimizer.param_groups


# --- gradient checkpointing


def peak_bytes(part: nn.Module, run: Any) -> int:
    """Return the peak memory of a forward and a backward pass, in bytes."""
    counted = DryRun()
    for tensor in part.parameters():
        counted.account(tensor, "weights")
    with counted:
        run().backward()
    return counted.peak_bytes


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in FAST_ENCODERS else [pytest.mark.slow])
        for name in ENCODER_NAMES
        for kind in ("full", "lora")
    ],
)
def test_gradient_checkpointing_saves_memory_of_an_encoder(name: str, kind: str) -> None:
    depth = DEPTH_FIELDS.get(name, "num_hidden_layers")
    trains = {"freeze": False} if kind == "full" else {"freeze": True, "lora": adapted(ENCODERS, name)}
    overrides = {**tiny(ENCODERS, name).overrides, depth: 8}
    peaks = []
    for checkpointing in (False, True):
        encoder = build_encoder(name, overrides=overrides, gradient_checkpointing=checkpointing, **trains)
        features = encoder.features(waveforms(), LENGTHS)
        kept = sum(4 * tensor.numel() * (1 + tensor.requires_grad) for tensor in encoder.parameters())
        peaks.append(peak_bytes(encoder, lambda: encoder.encode(features).values.sum()) - kept)  # noqa: B023
    assert peaks[1] < 0.6 * peaks[0], "the peaks do not include weights and gradients"


@pytest.mark.parametrize(
    ("name", "kind", "attention"),
    [
        pytest.param(
            name,
            kind,
            attention,
            marks=[] if name == "smollm3" or (name, kind) == ("gemma3", "full") else [pytest.mark.slow],
        )
        for name in PLAIN_HEADS
        for kind, attention in (("full", "auto"), ("lora", "varlen"), ("frozen", "auto"))
    ],
)
def test_gradient_checkpointing_saves_memory_of_a_decoder(name: str, kind: str, attention: str) -> None:
    trains: dict[str, Any] = {"freeze": kind != "full"}
    if kind == "lora":
        trains["lora"] = adapted(DECODERS, name)
    base = tiny(DECODERS, name)
    types = {"layer_types": ["sliding_attention", "full_attention"] * 4} if name == "gemma3" else {}
    overrides = {**base.overrides, "num_hidden_layers": 8, **types}
    rows = torch.randn(3, 120, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(120) < torch.tensor([[120], [20], [70]])
    keep = torch.arange(120) == torch.tensor([[119], [19], [69]])
    peaks = []
    for checkpointing in (False, True):
        config = with_fields(
            base, overrides=overrides, gradient_checkpointing=checkpointing, attention=attention, **trains
        )
        torch.manual_seed(0)
        decoder = DECODERS.build(config, DecoderContext(build_tokenizer(config, TEXTS))).train()
        embeddings = rows.clone().requires_grad_()
        peaks.append(peak_bytes(decoder, lambda: decoder(embeddings, mask, keep).sum()))  # noqa: B023
    assert peaks[1] < 0.6 * peaks[0]


# --- compiled layers


def test_layers_are_compiled_in_place() -> None:
    model, tokenizer = assemble("smollm3", lora=LORA | {"targets": ("q_proj",)}, freeze=True)
    before = list(model.state_dict()), [type(module) for module in model.modules()]
    assert compile_layers(model, torch.device("cpu")) == 4, "two layers of each part, and no convolution"
    assert (list(model.state_dict()), [type(module) for module in model.modules()]) == before
    with torch.compiler.set_stance("force_eager"):
        assert score(model, tokenizer).decoder_loss.isfinite().all()


def test_convolutions_of_the_front_end_are_not_compiled() -> None:
    encoder = build_encoder("hubert")
    assert compile_layers(encoder, torch.device("cpu")) == 2
    assert not any(module._compiled_call_impl for module in encoder.model.feature_extractor.modules())  # type: ignore[union-attr]


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = assemble("smollm3")
    monkeypatch.setenv("CXX", "g++-of-another-machine")
    with pytest.raises(
        UserError,
        match=r"execution\.compile needs a C\+\+ compiler on a CPU, but there is no g\+\+-of-another-machine; i",
    ):
        compile_layers(model, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("layer", ["last", "weighted"])
def test_compiled_training_equals_training(document: Document, tmp_path: Path, layer: str) -> None:
    """With compiled layers, losses and weights are the same except for rounding, and weights keep their names. The
    evaluation during training also works, for which the compiled layers run in eager mode."""
    document = changed(document, encoder__layer=layer, training__steps=4, execution__evaluate_every=2)
    document = changed(document, execution__evaluate_set="held_out", data__evaluation=document["data"]["evaluation"])
    found = []

    def evaluate(model: TinyAudioModel) -> dict[str, Any]:
        return {"set": "held_out", "wer": float(model.generate(torch.ones(2, 8_000)).numel())}

    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        torch.manual_seed(0)
        trainer = make_trainer(changed(document, execution__compile=compiled), folder, evaluate)
        trainer.run()
        rows = read_metrics(folder / "metrics.jsonl")
        found.append(([row["loss"] for row in rows if "loss" in row], weights(trainer)))
    (plain, own), (fast, compiled_own) = found
    assert len(plain) == 4
    assert fast == pytest.approx(plain, rel=1e-5)
    assert own.keys() == compiled_own.keys()
    for name, tensor in own.items():
        assert torch.allclose(tensor, compiled_own[name], atol=1e-3), name


# --- the fused loss


@pytest.mark.parametrize(("decoder", "attention"), [*((name, "auto") for name in PLAIN_HEADS), ("qwen3", "varlen")])
def test_a_fused_loss_function_gets_hidden_states_and_head(decoder: str, attention: str) -> None:
    overrides = {**tiny(DECODERS, decoder).overrides}
    overrides.pop("final_logit_softcapping", None)
    gradients = []
    for fused in (None, unfused):
        model, tokenizer = assemble(decoder, attention=attention, overrides=overrides)
        model.double()
        scores = score(model, tokenizer, label_smoothing=0.1, linear_cross_entropy=fused)
        assert scores.decoder_loss.shape == (3,)
        scores.decoder_loss.sum().backward()
        tensors = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
        gradients.append(tensors | {"loss": scores.decoder_loss.detach()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        # ``unfused`` computes in fp64, but the default loss computes in fp32. Therefore, gradients differ slightly.
        assert torch.allclose(
            gradients[1][name].to(wanted.dtype), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())
        ), name


def test_capped_logits_cannot_be_fused() -> None:
    model, tokenizer = assemble("gemma3")
    with pytest.raises(UserError, match=r"^execution\.fused_cross_entropy: .*false"):
        score(model, tokenizer, linear_cross_entropy=unfused)


def test_the_fused_loss_needs_a_gpu(document: Document, tmp_path: Path) -> None:
    document = changed(document, execution__fused_cross_entropy=True, execution__device="auto")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"^execution\.fused_cross_entropy "):
            make_trainer(document, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is not None, reason="it is installed")
def test_the_fused_loss_needs_its_library() -> None:
    with pytest.raises(
        UserError,
        match=r"^execution\.fused_cross_entropy needs liger-kernel; pip install 'tiny-audio\[liger\]'",
    ):
        fused_cross_entropy(torch.device("cuda"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["execution.device=cpu"], r"execution\.fused_cross_entropy: .*execution\.device is cpu"),
        (
            ["decoder=causal_lm", "decoder.pretrained=some/model"],
            r"execution\.fused_cross_entropy: .*'causal_lm'",
        ),
    ],
)
def test_recipes_that_cannot_use_the_fused_loss_are_rejected(
    document: Document, write_recipe: Any, changes: list[str], message: str
) -> None:
    path = write_recipe(changed(document, execution__device="auto"))
    with pytest.raises(UserError, match=message):
        load_recipe(path, ["execution.fused_cross_entropy=true", *changes])


# Triton's interpreter runs kernels without a GPU. It converts arrays with one number to integers, which NumPy 2.4 does
# not allow.
_CAN_INTERPRET = importlib.util.find_spec("liger_kernel") is not None and np.lib.NumpyVersion(np.__version__) < "2.4.0"


@pytest.mark.skipif(not _CAN_INTERPRET, reason="needs liger-kernel, and NumPy below 2.4 for Triton's interpreter")
def test_liger_equals_plain_cross_entropy() -> None:
    program = "from tests.training.throughput_models import compare_with_liger as compare; compare()"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
