"""Projectors equal the transformers modules that they reimplement, or the formulas that they compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.support.equality import assert_close
from tests.support.projectors import (
    CARD,
    CONTEXT,
    SMALL,
    before_output_norm,
    built,
    carry_over,
    configured,
    embed,
    noise,
    shaken,
)
from tiny_audio.frames import Frames
from tiny_audio.projectors import PROJECTORS

pytestmark = pytest.mark.usefixtures("one_thread")

MLP_NAMES = [("linear_1", "feedforward.up"), ("linear_2", "feedforward.down")]


def assert_equal_on_stacks(ours: Any, original: Any) -> None:
    """Copy the weights of ``original`` to ``ours``. Check that stacks of four frames give the same embeddings."""
    carry_over(original, ours, MLP_NAMES)
    frames = noise(40, 23)
    with torch.no_grad():
        wanted = original(frames.zeroed().values.reshape(2, 10, -1))
    assert_close(before_output_norm(ours, frames), wanted)


@pytest.mark.parametrize("family", ["voxtral", "glmasr"])
def test_mlp_equals_its_original(family: str) -> None:
    from types import SimpleNamespace

    from transformers.models.glmasr.modeling_glmasr import GlmAsrMultiModalProjector
    from transformers.models.voxtral.modeling_voxtral import VoxtralMultiModalProjector

    config = SimpleNamespace(
        audio_config=SimpleNamespace(intermediate_size=4 * CONTEXT.in_dim),
        text_config=SimpleNamespace(hidden_size=CONTEXT.out_dim),
        projector_hidden_act="gelu",
    )
    if family == "voxtral":
        original, ours = VoxtralMultiModalProjector(config), built("mlp")
    else:
        original, ours = GlmAsrMultiModalProjector(config), built("mlp", hidden_dim=2 * CONTEXT.out_dim, bias=True)
    shaken(original)
    assert_equal_on_stacks(ours, original)


def test_mlp_equals_moss_transcribe_diarize() -> None:
    from types import SimpleNamespace

    name = "transformers.models.moss_transcribe_diarize.modeling_moss_transcribe_diarize"
    modeling = pytest.importorskip(name, reason="needs transformers 5.24")
    text = SimpleNamespace(hidden_size=CONTEXT.out_dim, rms_norm_eps=1e-6)
    config = SimpleNamespace(
        adaptor_input_dim=4 * CONTEXT.in_dim, text_config=text, projector_bias=True, projector_hidden_act="silu"
    )
    original = shaken(modeling.MossTranscribeDiarizeMultiModalProjector(config))
    original.norm = torch.nn.Identity()  # compare without the last norms, which differ
    ours = built("mlp", activation="silu", bias=True)
    assert_equal_on_stacks(ours, original)


def test_mlp_of_averages_equals_audio_flamingo_3_on_pooled_frames() -> None:
    from types import SimpleNamespace

    from transformers.models.audioflamingo3.modeling_audioflamingo3 import AudioFlamingo3MultiModalProjector

    config = SimpleNamespace(
        audio_config=SimpleNamespace(hidden_size=CONTEXT.in_dim),
        text_config=SimpleNamespace(hidden_size=CONTEXT.out_dim),
        projector_bias=True,
        projector_hidden_act="gelu",
    )
    original = shaken(AudioFlamingo3MultiModalProjector(config))
    ours = built("mlp", merge="average", stack=2, bias=True)
    carry_over(original, ours, MLP_NAMES)
    frames = noise(40)
    with torch.no_grad():
        wanted = original(F.avg_pool1d(frames.values.transpose(1, 2), 2).transpose(1, 2))
    assert_close(before_output_norm(ours, frames), wanted)


def test_the_average_of_an_incomplete_stack_has_only_its_frames() -> None:
    ours = built("mlp", merge="average", stack=4)
    frames = noise(40, 6)
    with torch.no_grad():
        assert_close(before_output_norm(ours, frames)[1, 1], ours.feedforward(frames.values[1, 4:6].mean(0)))


def test_mlp_with_a_hidden_norm_equals_tiny_audios_projector_of_2026() -> None:
    context = replace(CARD, out_dim=1024)
    with torch.device("meta"):
        full = PROJECTORS.build(configured("mlp", hidden_dim=2048, hidden_norm=True), context)
    norms = 2048 + 1024
    assert sum(tensor.numel() for tensor in full.parameters()) == 4 * 1280 * 2048 + 2048 * 1024 + norms == 12_585_984
    ours = built("mlp", hidden_norm=True)
    frames = noise(40)
    with torch.no_grad():
        hidden = ours.feedforward.up(frames.values.reshape(1, 10, -1))
        wanted = ours.feedforward.down(
            F.gelu(F.rms_norm(hidden, hidden.shape[-1:], ours.feedforward.norm.weight, 1e-6))
        )
    assert_close(before_output_norm(ours, frames), wanted)


QFORMER_NAMES = [
    (r"^query$", "queries"),
    (r"^qformer\.layernorm\.", "norm."),
    (r"^linear\.", "down."),
    (r"^qformer\.encoder\.layer\.", "layers."),
    (r"\.crossattention\.", ".cross_attention."),
    (r"(layers\.\d+)\.attention\.", r"\1.self_attention."),
    (r"_attention\.output\.dense\.", "_attention.attention.output."),
    (r"_attention\.output\.LayerNorm\.", "_attention.norm."),
    (r"\.intermediate_query\.dense\.", ".feedforward.up."),
    (r"\.output_query\.dense\.", ".feedforward.down."),
    (r"\.output_query\.LayerNorm\.", ".norm."),
]
"""(regular expression for part of a tensor name in transformers' Granite Speech projector, its replacement in ours)."""


def granite(num_layers: int, every: int) -> Any:
    from transformers import Blip2QFormerConfig, GraniteConfig, GraniteSpeechConfig
    from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechEncoderProjector

    config = GraniteSpeechConfig(
        text_config=GraniteConfig(hidden_size=CONTEXT.out_dim),
        projector_config=Blip2QFormerConfig(
            hidden_size=SMALL["dim"],
            num_hidden_layers=num_layers,
            num_attention_heads=SMALL["num_heads"],
            intermediate_size=SMALL["feedforward_dim"],
            encoder_hidden_size=CONTEXT.in_dim,
            cross_attention_frequency=every,
        ),
        window_size=15,
        downsample_rate=5,
    )
    return shaken(GraniteSpeechEncoderProjector(config))


@pytest.mark.parametrize(("num_layers", "every"), [(2, 1), (4, 2)])
def test_windowed_qformer_equals_granite(num_layers: int, every: int) -> None:
    original = granite(num_layers, every)
    ours = built("qformer", num_layers=num_layers, cross_attention_every=every, **SMALL)
    carry_over(original, ours, QFORMER_NAMES)
    frames = noise(1, 14, 15, 16, 100)
    with torch.no_grad():
        wanted = original(frames.zeroed().values)
    found = before_output_norm(ours, frames)
    assert_close(found, wanted)
    embeddings, lengths = embed(ours, frames)
    assert lengths == [3, 3, 3, 6, 21]
    assert embeddings.shape[1] == 21


def test_global_qformer_equals_blip2_with_a_mask() -> None:
    original = granite(2, 1)
    ours = built("qformer", mode="global", num_queries=3, **SMALL)
    carry_over(original, ours, QFORMER_NAMES)
    frames = noise(1, 31, 100)
    with torch.no_grad():
        wanted = original.qformer(
            query_embeds=original.query.expand(3, -1, -1),
            encoder_hidden_states=frames.values,
            encoder_attention_mask=frames.mask().long(),
        ).last_hidden_state
        wanted = original.linear(wanted)
    assert_close(before_output_norm(ours, frames), wanted)
    assert embed(ours, frames)[1] == [3, 3, 3]


def test_qformer_defaults_depend_on_its_mode() -> None:
    windowed, whole = built("qformer", **SMALL), built("qformer", mode="global", **SMALL)
    sizes = torch.tensor([1, 15, 16, 1500])
    assert windowed.max_embeddings(sizes).tolist() == [3, 3, 6, 300]
    assert whole.max_embeddings(sizes).tolist() == [32, 32, 32, 32]
    assert configured("qformer").min_frames() == 15
    assert configured("qformer", mode="global").min_frames() == 1


def test_conv_without_overlap_equals_a_linear_layer_on_stacked_frames() -> None:
    projector = built("conv", strides=[5], channels=16, hidden_dim=32)
    (conv,) = projector.convs.convs
    frames = noise(5, 12, 40)
    stacked = frames.zeroed().values.unflatten(1, (-1, 5)).flatten(2)
    with torch.no_grad():
        weight = conv.weight.permute(0, 2, 1).flatten(1)  # [C, D, k] -> [C, k·D]
        wanted = projector.feedforward(F.gelu(F.linear(stacked, weight, conv.bias)))
    assert_close(before_output_norm(projector, frames), wanted)


@pytest.mark.parametrize(("stride", "kernel"), [(2, 3), (2, 2), (3, 4), (3, 7), (1, 4)])
def test_conv_windows_are_centered_on_their_stride(stride: int, kernel: int) -> None:
    """A kernel extends equally beyond both ends of its stride, or one frame more beyond the second end."""
    projector = built("conv", strides=[stride], kernel_sizes=[kernel])
    (conv,) = projector.convs.convs
    for size in range(1, 12):
        frames = noise(size, 11)
        found: Frames = projector.convs(frames)
        padded = F.pad(frames.zeroed().values, (0, 0, kernel, 2 * kernel))
        for index in range(int(found.lengths[0])):
            start = index * stride - (kernel - stride) // 2 + kernel
            window = padded[0, start : start + kernel]
            wanted = F.gelu(torch.einsum("kd,cdk->c", window, conv.weight) + conv.bias)
            torch.testing.assert_close(found.values[0, index], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["conv", "moe"])
def test_conv_lengths(name: str) -> None:
    projector = built(name, strides=[2, 3], kernel_sizes=[3, 5], hidden_dim=16)
    sizes = [1, 2, 5, 6, 7, 12, 13, 1499, 1500]
    assert projector.max_embeddings(torch.tensor(sizes)).tolist() == [1, 1, 1, 1, 2, 2, 3, 250, 250]
    assert embed(projector, noise(*sizes))[1] == [1, 1, 1, 1, 2, 2, 3, 250, 250]
    assert configured(name, strides=[2, 3]).min_frames() == 6
    shortened = projector.convs(replace(noise(30), ctc_logits=torch.zeros(1, 30, 5)))
    assert shortened.rate == pytest.approx(50 / 6)
    assert shortened.ctc_logits is None
