"""Projectors that the public checks reject."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny_audio.frames import Frames
from tiny_audio.projectors import PROJECTORS, Projector
from tiny_audio.registry import Entry
from tiny_audio.testing import PROJECTOR_CHECKS

pytestmark = pytest.mark.usefixtures("one_thread")


class Wrapped(Projector):
    """A correct projector, from which incorrect ones are derived."""

    def __init__(self, inner: Projector) -> None:
        super().__init__()
        self.inner = inner

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        return self.inner.max_embeddings(num_frames)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings: tuple[Tensor, Tensor] = self.inner(frames)
        return embeddings


class RoundsInHalf(Wrapped):
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


class ComputesLengthsOnTheDevice(Wrapped):
    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        device = next(self.parameters()).device
        return super().max_embeddings(num_frames.to(device))


@pytest.mark.parametrize(
    ("mistake", "check", "message"),
    [
        (
            RoundsInHalf,
            "autocast",
            r"embeddings of frames in torch\.float32 under bf16 autocast .*\d+\.\d% of their RMS, .* 5% is allowed",
        ),
        (
            OverflowsInHalf,
            "autocast",
            r"embeddings of frames in torch\.float32 under bf16 autocast: \d+ values are not ",
        ),
        (HasItsOwnDevice, "meta_device", r"built on the meta device, window is on cpu"),
        (
            ComputesLengthsOnTheDevice,
            "meta_device",
            r"built on the meta device, max_embeddings of 1 and 100 frames is .*; it must need no weights",
        ),
    ],
)
def test_the_checks_find_errors(
    mistake: type[Wrapped], check: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = PROJECTORS.entry("swiglu")

    def build(config: Any, context: Any) -> Projector:
        return mistake(entry.build(config, context))

    monkeypatch.setitem(PROJECTORS._entries, "swiglu", Entry(entry.name, entry.config, build))
    checks: dict[str, Callable[..., None]] = {check.__name__: check for check in PROJECTOR_CHECKS}
    with pytest.raises(AssertionError, match=f"^swiglu: {message}"):
        checks[f"check_{check}"](entry.config.tiny())  # type: ignore[attr-defined]
