"""The projectors against what they are modeled on, worked examples, and settings that contradict each other."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.config import UserError
from tiny_audio.frames import Frames, length_mask
from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.recipe import load_recipe
from tiny_audio.registry import Entry
from tiny_audio.testing import PROJECTOR_CHECKS, check_projector

CONTEXT = ProjectorContext(in_dim=24, out_dim=20, frame_rate=50.0, embedding_rms=0.03)
CARD = ProjectorContext(in_dim=1280, out_dim=2048, frame_rate=50.0, embedding_rms=0.03)
SMALL = {"dim": 16, "num_heads": 4, "feedforward_dim": 32}
ENTRIES = PROJECTORS.entries()
CONTENT_DECIDES = {"ctc_compress"}
"""Projectors whose ``max_embeddings`` is an upper bound."""

pytestmark = pytest.mark.usefixtures("one_thread")


def configured(name: str, **fields: Any) -> ProjectorConfig:
    return PROJECTORS.parse({"name": name, **fields})


def built(name: str, context: ProjectorContext = CONTEXT, **fields: Any) -> Any:
    torch.manual_seed(0)
    return PROJECTORS.build(configured(name, **fields), context).eval()


def shaken(module: nn.Module) -> Any:
    """Off the initial values, where norms are ones and biases zeros."""
    numbers = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=numbers))
    return module.eval()


def noise(*lengths: int, logits: Tensor | None = None, dim: int = CONTEXT.in_dim) -> Frames:
    """Frames with loud garbage beyond each length."""
    numbers = torch.Generator().manual_seed(1)
    values = torch.randn(len(lengths), max(lengths), dim, generator=numbers)
    values[~length_mask(torch.tensor(lengths), max(lengths))] = 50.0
    return Frames(values, torch.tensor(lengths), CONTEXT.frame_rate, logits)


@torch.no_grad()
def embed(projector: Projector, frames: Frames) -> tuple[Tensor, list[int]]:
    embeddings, lengths = projector(frames)
    return embeddings, lengths.tolist()


@torch.no_grad()
def before_output_norm(projector: Any, frames: Frames) -> Tensor:
    """What the last norm gets, once it is sure that the norm is all that is left."""
    taken: list[Tensor] = []
    with projector.output_norm.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0])):
        embeddings, _ = projector(frames)
    (values,) = taken
    gain = projector.output_norm.weight
    assert_equal(embeddings, gain * values * values.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt())
    return values


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.pow(2).mean().sqrt())


def carry_over(source: nn.Module, target: nn.Module, names: Sequence[tuple[str, str]]) -> None:
    """Load ``target`` with the tensors of ``source``, renamed by regular expressions; every key counts, both ways."""
    own, state = target.state_dict(), {}
    for name, tensor in source.state_dict().items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor.reshape(own[name].shape)  # theirs may have a dimension of 1 for the clips
    assert own.keys() - state.keys() == {"output_norm.weight"}
    target.load_state_dict(own | state)


# --- every projector, at every setting that changes its shape


SETTINGS = [
    ("linear", {"stack": 1, "hidden_dim": 16}),
    ("mlp", {"hidden_dim": 30, "bias": True}),
    ("conv", {"strides": [5], "hidden_dim": 16}),
    ("conv", {"strides": [1, 2, 2], "kernel_sizes": [3, 2, 5], "channels": 8, "hidden_dim": 16}),
    ("qformer", {"mode": "global", **SMALL}),
    ("qformer", {"window": 18, "num_queries": 2, "num_layers": 3, "cross_attention_every": 2, **SMALL}),
    ("qformer", {"window": 4, "num_queries": 4, "num_layers": 1, **SMALL}),
    ("transformer", {"stack": 1, "num_layers": 1, **SMALL}),
    ("moe", {"strides": [3], "kernel_sizes": [5], "num_experts": 2, "hidden_dim": 16}),
    ("ctc_compress", {"blanks": "drop"}),
]


@pytest.mark.parametrize(("name", "fields"), SETTINGS)
def test_contract_holds_at_other_settings(name: str, fields: dict[str, Any]) -> None:
    check_projector(configured(name, **fields))


@pytest.mark.parametrize("check", PROJECTOR_CHECKS, ids=lambda check: check.__name__)
def test_contract_holds_for_salmonns_qformer(check: Callable[[ProjectorConfig], None]) -> None:
    config = configured("qformer", window=17, num_queries=1, cross_attention_every=2, **SMALL)
    if check.__name__ == "check_gradients":
        # Among one query, attention has nothing to choose: what scores it learns nothing, as in the original.
        with pytest.raises(
            AssertionError, match=r"gradient of layers\.0\.self_attention\.attention\.query\.weight is all"
        ):
            check(config)
    else:
        check(config)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_max_embeddings_is_exact(entry: Entry[Any, Any]) -> None:
    """For one clip of any length: neither more nor fewer."""
    if entry.name in CONTENT_DECIDES:
        assert entry.config.needs_ctc
        return
    projector = PROJECTORS.build(entry.config.tiny(), CONTEXT).eval()
    for size in range(1, 70):
        embeddings, (length,) = embed(projector, noise(size))
        assert length == embeddings.shape[1] == int(projector.max_embeddings(torch.tensor([size])))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_default_says_where_it_is_from(entry: Entry[Any, Any]) -> None:
    summary, blank, *evidence = (entry.config.__doc__ or "").split("\n")
    assert summary.endswith(".")
    assert not blank.strip()
    assert re.search(r"arXiv \d{4}\.\d{5}", " ".join(evidence)), "which paper?"


@pytest.mark.parametrize(
    ("name", "fields", "wanted"),
    [
        ("swiglu", {}, 6400 + 2 * 6400 * 8192 + 8192 * 2048),
        ("linear", {}, 6400 * 2048 + 2048 + 2048 * 2048 + 2048),
        ("mlp", {}, 5120 * 2048 + 2048 * 2048),
        ("mlp", {"hidden_dim": 4096, "bias": True}, 5120 * 4096 + 4096 + 4096 * 2048 + 2048),
        ("conv", {}, 5 * 1280 * 1280 + 1280 + 1280 * 2048 + 2048 + 2048 * 2048 + 2048),
        (
            "moe",
            {},
            2 * (2 * 1280 * 1280 + 1280) + 4 * 1280 + 4 + 4 * (1280 * 2048 + 2048 + 2048 * 2048 + 2048),
        ),
    ],
)
def test_sizes_at_the_cards_widths(name: str, fields: dict[str, Any], wanted: int) -> None:
    with torch.device("meta"):
        projector = built(name, CARD, **fields)
    assert sum(tensor.numel() for tensor in projector.parameters()) == wanted + 2048


def test_swiglu_is_the_cards() -> None:
    with torch.device("meta"):
        projector = built("swiglu", CARD)
    assert list(projector.state_dict()) == [
        "norm.weight",
        "gate.weight",
        "up.weight",
        "down.weight",
        "output_norm.weight",
    ]
    assert sum(tensor.numel() for tensor in projector.parameters()) == 121_643_264


def test_building_for_its_shapes_loads_no_compiler() -> None:
    """Drawing normal numbers on the meta device does, and takes two seconds of `validate`."""
    command = (
        "import sys, torch; from tiny_audio.projectors import PROJECTORS, ProjectorContext\n"
        "torch.set_default_device('meta')\n"
        "for entry in PROJECTORS.entries(): PROJECTORS.build(entry.config(), ProjectorContext(64, 64, 50.0, 1.0))\n"
        "print(len(PROJECTORS.entries()), 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(ENTRIES)} False\n"


# --- mlp


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
    carry_over(original, ours, [("linear_1", "feedforward.up"), ("linear_2", "feedforward.down")])
    frames = noise(40, 23)
    with torch.no_grad():
        wanted = original(frames.zeroed().values.reshape(2, 10, -1))
    assert_equal(before_output_norm(ours, frames), wanted)


# --- Q-Former

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
"""transformers' names of a Granite Speech projector, piece by piece, and ours."""


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
    assert_equal(found, wanted)
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
    assert_equal(before_output_norm(ours, frames), wanted)
    assert embed(ours, frames)[1] == [3, 3, 3]


def test_qformer_defaults_follow_its_mode() -> None:
    windowed, whole = built("qformer", **SMALL), built("qformer", mode="global", **SMALL)
    sizes = torch.tensor([1, 15, 16, 1500])
    assert windowed.max_embeddings(sizes).tolist() == [3, 3, 6, 300]
    assert whole.max_embeddings(sizes).tolist() == [32, 32, 32, 32]
    assert configured("qformer").min_frames() == 15
    assert configured("qformer", mode="global").min_frames() == 1


# --- convolutions


def test_conv_without_overlap_is_a_linear_layer_on_stacked_frames() -> None:
    projector = built("conv", strides=[5], channels=16, hidden_dim=32)
    (conv,) = projector.convs.convs
    frames = noise(5, 12, 40)
    stacked = F.pad(frames.zeroed().values, (0, 0, 0, 0)).unflatten(1, (-1, 5)).flatten(2)
    with torch.no_grad():
        weight = conv.weight.permute(0, 2, 1).flatten(1)  # [C, D, k] -> [C, k·D]
        wanted = projector.feedforward(F.gelu(F.linear(stacked, weight, conv.bias)))
    assert_equal(before_output_norm(projector, frames), wanted)


@pytest.mark.parametrize(("stride", "kernel"), [(2, 3), (2, 2), (3, 4), (3, 7), (1, 4)])
def test_conv_windows_lie_around_their_stride(stride: int, kernel: int) -> None:
    """Each output sees its own stride, and what the kernel has more, half before and half after."""
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


# --- mixture of experts


def test_moe_is_the_sum_of_its_experts_by_their_shares() -> None:
    projector = built("moe", num_experts=3, hidden_dim=16)
    frames = noise(20)
    values = projector.convs(frames).values
    with torch.no_grad():
        shares = torch.softmax(values @ projector.router.weight.T + projector.router.bias, dim=-1)
        outputs = torch.stack([expert(values) for expert in projector.experts], dim=-1)  # [B, N, H, experts]
        wanted = (outputs @ shares[..., None])[..., 0]
    assert_equal(before_output_norm(projector, frames), wanted)
    # The router decides: with one expert far ahead, it is alone.
    with torch.no_grad():
        projector.router.bias.copy_(torch.tensor([0.0, 100.0, 0.0]))
    assert_equal(before_output_norm(projector, frames), outputs[..., 1])


def test_moe_trains_router_and_all_experts() -> None:
    projector = built("moe", num_experts=3, hidden_dim=16).train()
    embeddings, _ = projector(noise(20, 13))
    (embeddings * torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for index in range(3):
        assert projector.router.weight.grad[index].any(), f"nothing tells the router about expert {index}"
        assert projector.experts[index].up.weight.grad.any()
    # Shares add up to one, so what one expert gains the others lose.
    scale = projector.router.bias.grad.abs().max()
    assert projector.router.bias.grad.sum().abs() <= 1e-5 * scale


def test_moe_sends_different_frames_to_different_experts() -> None:
    """Trained on two kinds of frames that want contrary outputs, the router tells them apart."""
    projector = built("moe", replace(CONTEXT, in_dim=4, out_dim=4), strides=[1], num_experts=2, hidden_dim=4).train()
    kinds = torch.eye(4)[:2]
    frames = Frames(kinds[None].repeat(1, 8, 1), torch.tensor([16]), 50.0)
    targets = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]).repeat(8, 1)
    before = torch.softmax(projector.router(projector.convs(frames).values), -1)
    optimizer = torch.optim.Adam(projector.parameters(), lr=0.03)
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.mse_loss(projector(frames)[0][0], targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = torch.softmax(projector.router(projector.convs(frames).values), -1)
    assert float(loss.detach()) < 0.05
    apart = [float((shares[0, 0] - shares[0, 1]).detach().abs().max()) for shares in (before, after)]
    assert apart[1] > apart[0] + 0.05


# --- CTC compression


def logits_of(*labels: Sequence[int]) -> Tensor:
    """``[B, T, 4]`` with a clear best label; padding spells garbage."""
    size = max(len(row) for row in labels)
    best = torch.tensor([[*row, *([3, 1] * size)[: size - len(row)]] for row in labels])
    return 5.0 * F.one_hot(best, 4)


LABELS = ([1, 1, 0, 0, 1, 2, 2, 2], [0, 0, 0], [2], [3, 3, 3, 3], [0, 1, 0], [0, 0, 2, 2, 0])
MERGED = (
    [(0, 2), (2, 4), (4, 5), (5, 8)],
    [(0, 3)],
    [(0, 1)],
    [(0, 4)],
    [(0, 1), (1, 2), (2, 3)],
    [(0, 2), (2, 4), (4, 5)],
)
DROPPED = ([(0, 2), (4, 5), (5, 8)], [(0, 3)], [(0, 1)], [(0, 4)], [(1, 2)], [(2, 4)])
"""Which frames become one embedding, by hand. 0 is the blank; the second clip has nothing else."""


@pytest.mark.parametrize(("blanks", "runs"), [("merge", MERGED), ("drop", DROPPED)])
def test_ctc_compress_by_hand(blanks: str, runs: Sequence[Sequence[tuple[int, int]]]) -> None:
    projector = built("ctc_compress", blanks=blanks, hidden_dim=16)
    frames = noise(*map(len, LABELS), logits=logits_of(*LABELS))
    _, lengths = embed(projector, frames)
    assert lengths == [len(row) for row in runs]
    assert all(length <= len(row) for length, row in zip(lengths, LABELS, strict=True))
    found = before_output_norm(projector, frames)
    assert found.shape[1] == max(lengths)
    for clip, row in enumerate(runs):
        averages = torch.stack([frames.values[clip, start:end].mean(0) for start, end in row])
        with torch.no_grad():
            assert_equal(found[clip, : len(row)], projector.feedforward(averages))


def test_ctc_compress_shares_the_gradient_of_a_run() -> None:
    projector = built("ctc_compress", hidden_dim=16)
    frames = noise(8, 3, logits=logits_of(*LABELS[:2]))
    values = frames.values.clone().requires_grad_()
    embeddings, _ = projector(replace(frames, values=values))
    embeddings[0, 3].sum().backward()  # the run of frames 5 to 7
    assert values.grad is not None
    assert not values.grad[0, :5].any()
    assert not values.grad[1].any()
    assert values.grad[0, 5].any()
    assert torch.equal(values.grad[0, 5], values.grad[0, 7])


def test_ctc_compress_bounds_its_length_by_the_frames() -> None:
    projector = built("ctc_compress", hidden_dim=16)
    sizes = torch.tensor([1, 7, 1500])
    assert projector.max_embeddings(sizes).tolist() == [1, 7, 1500]
    changing = logits_of([1, 2, 3, 1, 2, 3, 1])
    assert embed(projector, noise(7, logits=changing))[1] == [7]
    assert configured("ctc_compress").min_frames() == 1


def test_only_ctc_compress_needs_a_head() -> None:
    assert {entry.name for entry in ENTRIES if entry.config.needs_ctc} == CONTENT_DECIDES


# --- attention


def test_transformer_knows_the_order_and_the_distance() -> None:
    from tiny_audio.projectors._attention import rotated

    projector = shaken(built("transformer", **SMALL))
    frames = noise(40)
    straight, _ = embed(projector, frames)
    turned = frames.values.unflatten(1, (-1, 5)).flip(1).flatten(1, 2)
    back, _ = embed(projector, replace(frames, values=turned))
    assert (straight - back.flip(1)).abs().max() > 1e-3 * straight.abs().max()
    # A query meets the same key with the same score wherever both are, as far apart.
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    queries, keys = (rotated(vector.expand(1, 1, 300, 8))[0, 0] for vector in (query, key))
    scores = queries @ keys.T
    torch.testing.assert_close(scores[3, 1], scores[299, 297], rtol=1e-3, atol=1e-4)
    assert (scores[3, 1] - scores[3, 2]).abs() > 1e-2
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(300))


def test_transformer_looks_at_the_whole_clip_and_no_further() -> None:
    projector = built("transformer", **SMALL)
    frames = noise(40, 22)
    values = frames.values.clone().requires_grad_()
    embeddings, lengths = projector(replace(frames, values=values))
    assert lengths.tolist() == [8, 5]
    embeddings[1, 0].sum().backward()
    assert values.grad is not None
    assert values.grad[1, :22].any(-1).all()
    assert not values.grad[1, 22:].any()
    assert not values.grad[0].any()


@pytest.mark.parametrize("name", ["qformer", "transformer"])
def test_dropout_is_of_training_only(name: str) -> None:
    torch.manual_seed(0)
    plain, dropping = built(name, **SMALL), built(name, dropout=0.3, **SMALL)
    frames = noise(40)
    wanted, _ = embed(plain, frames)
    assert torch.equal(embed(dropping, frames)[0], wanted)
    assert torch.equal(embed(plain.train(), frames)[0], wanted)
    dropping.train()
    first, second = embed(dropping, frames)[0], embed(dropping, frames)[0]
    assert not torch.equal(first, wanted)
    assert not torch.equal(first, second)


# --- settings that contradict each other


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "qformer",
            {"dim": 100},
            "dim 100 cannot be shared by num_heads 16; set dim to a multiple of it, such as 112",
        ),
        (
            "transformer",
            {"num_heads": 7},
            "dim 1024 cannot be shared by num_heads 7; set dim to a multiple of it, such as 1029",
        ),
        (
            "transformer",
            {"dim": 24, "num_heads": 8},
            "dim 24 gives each of num_heads 8 3 channels, and rotary positions need an even number; set dim to a "
            "multiple of twice num_heads",
        ),
        (
            "qformer",
            {"mode": "global", "window": 15},
            "window 15 has no effect in mode global; remove it, or set mode: windowed",
        ),
        (
            "qformer",
            {"num_queries": 4},
            "window 15 is not a multiple of num_queries 4, so an embedding would stand for a fraction of a frame; set "
            "window to a multiple, such as 16",
        ),
        (
            "qformer",
            {"window": 3, "num_queries": 5},
            "window 3 is not a multiple of num_queries 5, so an embedding would stand for a fraction of a frame; set "
            "window to a multiple, such as 5",
        ),
        (
            "qformer",
            {"num_layers": 2, "cross_attention_every": 3},
            "cross_attention_every 3 is more than num_layers 2; lower it, or add layers",
        ),
        (
            "conv",
            {"strides": [2, 2], "kernel_sizes": [3]},
            "kernel_sizes has 1 and strides 2; each convolution needs one of both, so give as many, or leave "
            "kernel_sizes out",
        ),
        (
            "moe",
            {"strides": [2, 4], "kernel_sizes": [3, 3]},
            "a kernel of 3 at stride 4 would skip frames; set kernel_sizes to at least the strides",
        ),
        ("conv", {"strides": []}, "should have at least 1 item"),
        ("moe", {"num_experts": 1}, "should be greater than or equal to 2"),
        ("qformer", {"num_layers": 10**9}, "should be less than or equal to 100"),
        ("transformer", {"dropout": 1.0}, "should be less than 1"),
    ],
)
def test_contradictions(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        configured(name, **fields)


def test_a_recipe_without_a_head_is_refused(document: Any, write_recipe: Callable[..., Path]) -> None:
    document["projector"] = "ctc_compress"
    message = "projector.ctc_compress: "
    with pytest.raises(UserError, match=re.escape(message)):
        load_recipe(write_recipe(document))
    assert load_recipe(write_recipe({**document, "ctc": {}})).projector == configured("ctc_compress")


def test_a_recipe_says_lists_and_modes(document: Any, write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(document)
    assert load_recipe(path, ["projector=conv", "projector.strides=[2,2]"]).projector == configured(
        "conv", strides=[2, 2]
    )
    assert load_recipe(path, ["projector=qformer", "projector.mode=global"]).projector.min_frames() == 1
    message = "projector.qformer: dim 1024 cannot be shared by num_heads 3; set dim to a multiple of it, such as 1026"
    with pytest.raises(UserError, match=re.escape(message)):
        load_recipe(path, ["projector=qformer", "projector.num_heads=3"])


# --- what the public checks refuse


class Wrapped(Projector):
    """A projector as it should be, for mistakes to be put in."""

    def __init__(self, inner: Projector) -> None:
        super().__init__()
        self.inner = inner

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        return self.inner.max_embeddings(num_frames)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings: tuple[Tensor, Tensor] = self.inner(frames)
        return embeddings


class CoarseInHalf(Wrapped):
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings, lengths = super().forward(frames)
        if torch.is_autocast_enabled("cpu"):
            embeddings = (64 * embeddings).round() / 64
        return embeddings, lengths


class OverflowsInHalf(Wrapped):
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings, lengths = super().forward(frames)
        return embeddings / (not torch.is_autocast_enabled("cpu")), lengths


class HasItsOwnDevice(Wrapped):
    def __init__(self, inner: Projector) -> None:
        super().__init__(inner)
        self.register_buffer("window", torch.ones(5, device="cpu"))


class CountsOnTheDevice(Wrapped):
    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        device = next(self.parameters()).device
        return super().max_embeddings(num_frames.to(device))


@pytest.mark.parametrize(
    ("mistake", "check", "message"),
    [
        (
            CoarseInHalf,
            "autocast",
            r"embeddings of frames in torch\.float32 under bf16 autocast are \d+\.\d% of their RMS away from those in "
            r"fp32, and 5% is allowed; norms and sums belong in the precision of the weights",
        ),
        (
            OverflowsInHalf,
            "autocast",
            r"embeddings of frames in torch\.float32 under bf16 autocast: \d+ values are not ",
        ),
        (HasItsOwnDevice, "meta_device", r"built on the meta device, window lies on cpu"),
        (
            CountsOnTheDevice,
            "meta_device",
            r"built on the meta device, max_embeddings of 1 and 100 frames is .*; it must need no weights",
        ),
    ],
)
def test_the_kit_refuses(mistake: type[Wrapped], check: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = PROJECTORS.entry("swiglu")

    def build(config: Any, context: Any) -> Projector:
        return mistake(entry.build(config, context))

    monkeypatch.setitem(PROJECTORS._entries, "swiglu", Entry(entry.name, entry.config, build))
    checks: dict[str, Callable[..., None]] = {check.__name__: check for check in PROJECTOR_CHECKS}
    with pytest.raises(AssertionError, match=f"^swiglu: {message}"):
        checks[f"check_{check}"](entry.config.tiny())  # type: ignore[attr-defined]
