"""Small projectors, frames with noise in the padding, and comparisons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.equality import assert_close
from tiny_audio.frames import Frames, length_mask
from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig, ProjectorContext

CONTEXT = ProjectorContext(in_dim=24, out_dim=20, frame_rate=50.0, embedding_rms=0.03)
CARD = ProjectorContext(in_dim=1280, out_dim=2048, frame_rate=50.0, embedding_rms=0.03)
SMALL = {"dim": 16, "num_heads": 4, "feedforward_dim": 32}
ENTRIES = PROJECTORS.entries()
CONTENT_DECIDES = {"ctc_compress"}
"""Projectors whose number of embeddings depends on the content. Their ``max_embeddings`` is an upper bound."""


def configured(name: str, **fields: Any) -> ProjectorConfig:
    return PROJECTORS.parse({"name": name, **fields})


def built(name: str, context: ProjectorContext = CONTEXT, **fields: Any) -> Any:
    torch.manual_seed(0)
    return PROJECTORS.build(configured(name, **fields), context).eval()


def shaken(module: nn.Module) -> Any:
    """Add noise to all weights, because the initial ones in norms and zeros in biases would hide errors."""
    numbers = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=numbers))
    return module.eval()


def noise(*lengths: int, logits: Tensor | None = None, dim: int = CONTEXT.in_dim) -> Frames:
    """Return random frames, with large values in the padding."""
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
    """Return the input of the output norm, and check that the norm is the last step."""
    taken: list[Tensor] = []
    with projector.output_norm.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0])):
        embeddings, _ = projector(frames)
    (values,) = taken
    gain = projector.output_norm.weight
    assert_close(embeddings, gain * values * values.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt())
    return values


def carry_over(source: nn.Module, target: nn.Module, names: Sequence[tuple[str, str]]) -> None:
    """Load the tensors of ``source`` into ``target``, with names changed by regular expressions.

    ``source`` must have every tensor of ``target`` except the weight of the output norm, and no other tensor.
    """
    own, state = target.state_dict(), {}
    for name, tensor in source.state_dict().items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor.reshape(own[name].shape)  # the source may have an extra dimension of 1 for the batch
    assert own.keys() - state.keys() == {"output_norm.weight"}
    target.load_state_dict(own | state)
