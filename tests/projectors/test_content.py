"""Projectors whose output depends on the content: mixture of experts, CTC compression, attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.equality import assert_close
from tests.support.projectors import (
    CONTENT_DECIDES,
    CONTEXT,
    ENTRIES,
    SMALL,
    before_output_norm,
    built,
    configured,
    embed,
    noise,
    shaken,
)
from tiny_audio.frames import Frames

pytestmark = pytest.mark.usefixtures("one_thread")


def test_moe_is_the_weighted_sum_of_its_experts() -> None:
    projector = built("moe", num_experts=3, hidden_dim=16)
    frames = noise(20)
    values = projector.convs(frames).values
    with torch.no_grad():
        shares = torch.softmax(values @ projector.router.weight.T + projector.router.bias, dim=-1)
        outputs = torch.stack([expert(values) for expert in projector.experts], dim=-1)  # [B, N, H, experts]
        wanted = (outputs @ shares[..., None])[..., 0]
    assert_close(before_output_norm(projector, frames), wanted)
    # If the router strongly prefers one expert, only this expert is used.
    with torch.no_grad():
        projector.router.bias.copy_(torch.tensor([0.0, 100.0, 0.0]))
    assert_close(before_output_norm(projector, frames), outputs[..., 1])


def test_moe_trains_router_and_all_experts() -> None:
    projector = built("moe", num_experts=3, hidden_dim=16).train()
    embeddings, _ = projector(noise(20, 13))
    (embeddings * torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for index in range(3):
        assert projector.router.weight.grad[index].any(), f"the router gets no gradient for expert {index}"
        assert projector.experts[index].up.weight.grad.any()
    # The softmax weights of the experts always sum to one, so the gradients of the router's biases sum to zero.
    scale = projector.router.bias.grad.abs().max()
    assert projector.router.bias.grad.sum().abs() <= 1e-5 * scale


def test_moe_sends_different_frames_to_different_experts() -> None:
    """After training on two kinds of frames with opposite targets, the router weights experts differently for them."""
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


def logits_of(*labels: Sequence[int]) -> Tensor:
    """Return logits ``[B, T, 4]`` in which each frame clearly has the given label. In padding, 3 and 1 alternate."""
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
"""For each clip of ``LABELS``, the range of frames of each embedding, determined by hand: ``MERGED`` with
``blanks: merge``, and ``DROPPED`` with ``blanks: drop``. Label 0 is the blank. The second clip has only blanks."""


@pytest.mark.parametrize(("blanks", "runs"), [("merge", MERGED), ("drop", DROPPED)])
def test_ctc_compress_averages_runs_of_equal_labels(blanks: str, runs: Sequence[Sequence[tuple[int, int]]]) -> None:
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
            assert_close(found[clip, : len(row)], projector.feedforward(averages))


def test_ctc_compress_divides_the_gradient_among_a_run() -> None:
    projector = built("ctc_compress", hidden_dim=16)
    frames = noise(8, 3, logits=logits_of(*LABELS[:2]))
    values = frames.values.clone().requires_grad_()
    embeddings, _ = projector(replace(frames, values=values))
    embeddings[0, 3].sum().backward()  # this embedding is the average of frames 5 to 7
    assert values.grad is not None
    assert not values.grad[0, :5].any()
    assert not values.grad[1].any()
    assert values.grad[0, 5].any()
    assert torch.equal(values.grad[0, 5], values.grad[0, 7])


def test_ctc_compress_has_at_most_as_many_embeddings_as_frames() -> None:
    projector = built("ctc_compress", hidden_dim=16)
    sizes = torch.tensor([1, 7, 1500])
    assert projector.max_embeddings(sizes).tolist() == [1, 7, 1500]
    changing = logits_of([1, 2, 3, 1, 2, 3, 1])
    assert embed(projector, noise(7, logits=changing))[1] == [7]
    assert configured("ctc_compress").min_frames() == 1


def test_only_ctc_compress_needs_a_head() -> None:
    assert {entry.name for entry in ENTRIES if entry.config.needs_ctc} == CONTENT_DECIDES


def test_transformer_depends_on_order_and_distance() -> None:
    from tiny_audio.projectors._attention import rotated

    projector = shaken(built("transformer", **SMALL))
    frames = noise(40)
    straight, _ = embed(projector, frames)
    turned = frames.values.unflatten(1, (-1, 5)).flip(1).flatten(1, 2)
    back, _ = embed(projector, replace(frames, values=turned))
    assert (straight - back.flip(1)).abs().max() > 1e-3 * straight.abs().max()
    # The score of a query and a key depends only on their distance.
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    queries, keys = (rotated(vector.expand(1, 1, 300, 8))[0, 0] for vector in (query, key))
    scores = queries @ keys.T
    torch.testing.assert_close(scores[3, 1], scores[299, 297], rtol=1e-3, atol=1e-4)
    assert (scores[3, 1] - scores[3, 2]).abs() > 1e-2
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(300))


def test_transformer_attends_to_the_whole_clip_but_not_to_padding() -> None:
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
def test_dropout_is_only_used_in_training(name: str) -> None:
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
