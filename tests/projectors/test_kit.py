"""The public checks of ``tiny_audio.testing`` reject projectors with faults."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.support.registered_parts import named, rebuilt_by
from tiny_audio.frames import Frames
from tiny_audio.projectors import PROJECTORS, Projector
from tiny_audio.testing import PROJECTOR_CHECKS, check_projector

pytestmark = pytest.mark.usefixtures("one_thread")


class Wrapped(Projector):
    """A correct projector. Its subclasses below have faults."""

    def __init__(self, inner: Projector) -> None:
        super().__init__()
        self.inner = inner

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        return self.inner.max_embeddings(num_frames)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings: tuple[Tensor, Tensor] = self.inner(frames)
        return embeddings


class ReadsPadding(Wrapped):
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings, lengths = super().forward(frames)
        return embeddings + frames.values.mean(), lengths


class UsesTheLongestLength(Wrapped):
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        return super().forward(replace(frames, lengths=frames.lengths.max().expand(len(frames.lengths))))


class TooLoud(Wrapped):
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings, lengths = super().forward(frames)
        return 1.05 * embeddings, lengths


class Noisy(Wrapped):
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings, lengths = super().forward(frames)
        return nn.functional.dropout(embeddings, 0.1, self.training), lengths


class Unused(Wrapped):
    def __init__(self, inner: Projector) -> None:
        super().__init__(inner)
        self.spare = nn.Linear(2, 2)


class Frozen(Wrapped):
    def __init__(self, inner: Projector) -> None:
        super().__init__(inner)
        self.spare = nn.Parameter(torch.zeros(2), requires_grad=False)


class NotSaved(Wrapped):
    def __init__(self, inner: Projector) -> None:
        super().__init__(inner)
        self.register_buffer("shift", 1e-3 * torch.randn(1), persistent=False)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings, lengths = super().forward(frames)
        return embeddings + self.get_buffer("shift"), lengths


class UnderstatesItsLength(Wrapped):
    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        return self.inner.max_embeddings(num_frames) - 1


class OneEmbeddingTooFew(Wrapped):
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings, lengths = super().forward(frames)
        return embeddings, lengths - 1


class FailsOnSilence(Wrapped):
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings, lengths = super().forward(frames)
        return embeddings / frames.values.abs().amax(dim=(1, 2), keepdim=True).clamp(max=1), lengths


class CutsTheGradient(Wrapped):
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        return super().forward(replace(frames, values=frames.values.detach() + 0 * frames.values))


class FloatLengths(Wrapped):
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        embeddings, lengths = super().forward(frames)
        return embeddings, lengths.float()


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
    ("mistake", "message"),
    [
        (ReadsPadding, r"in a batch with longer and shorter clips: values differ by up to"),
        (
            UsesTheLongestLength,
            r"a clip of 1 frames .* has 20 embeddings, but 1 alone|1 frames gave 20 embeddings, but max_",
        ),
        (TooLoud, r"RMS 0\.03\d+ .*RMS 0\.1, .* 0\.03 "),
        (Noisy, r"training mode changes the embeddings"),
        (Unused, r"training: no gradient reaches spare\.weight"),
        (Frozen, r"trainable"),
        (NotSaved, r"after saving and loading, .*embeddings"),
        (UnderstatesItsLength, r"1 frames gave 1 embeddings, but max_embeddings says 0"),
        (OneEmbeddingTooFew, r"1 frames gave no embedding; a clip has at least one"),
        (FailsOnSilence, r"embeddings of frames × 0 in torch\.float32: \d+ values are not finite"),
        (CutsTheGradient, r"no gradient reaches the frames, so the encoder could not train"),
        (FloatLengths, r"lengths must be int64, but are torch\.float32"),
    ],
)
def test_errors_of_projectors_are_found(mistake: type[Wrapped], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = rebuilt_by(PROJECTORS, "swiglu", lambda part, config: mistake(part), monkeypatch)
    with pytest.raises(AssertionError, match=rf"^swiglu: .*({message})"):
        check_projector(config)


def test_a_correct_projector_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    check_projector(rebuilt_by(PROJECTORS, "swiglu", lambda part, config: Wrapped(part), monkeypatch))


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
            r"built on the meta device, max_embeddings of 1 and 100 frames is .*; the result must be at least 1",
        ),
    ],
)
def test_a_check_finds_its_errors(
    mistake: type[Wrapped], check: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = rebuilt_by(PROJECTORS, "swiglu", lambda part, config: mistake(part), monkeypatch)
    with pytest.raises(AssertionError, match=f"^swiglu: {message}"):
        named(PROJECTOR_CHECKS, check)(config)
