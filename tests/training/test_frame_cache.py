"""The frame cache: it returns the encoder's frames, respects its size limit, and does not change training."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Document, changed
from tests.support import part_checkpoints
from tests.support.messages import assert_names
from tests.support.processes import finish, fork
from tests.support.training import LORA, different, logged, make_trainer, parse, recipe_on, trained
from tiny_audio.config import UserError
from tiny_audio.encoders import Encoder
from tiny_audio.training.frame_cache import FrameCache

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = torch.tensor([16_000, 9_000, 12_345])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("encoder")
    part_checkpoints.whisper(folder)
    return part_checkpoints.encoder("whisper", folder)


def clips() -> Tensor:
    waveforms = torch.randn(3, 16_000, generator=torch.Generator().manual_seed(0))
    return waveforms * (torch.arange(16_000) < LENGTHS[:, None])


def test_frames_equal_the_encoders_and_are_computed_once(encoder: Encoder, tmp_path: Path) -> None:
    cache = FrameCache(encoder, 10**6, tmp_path)
    first = cache.frames(clips(), LENGTHS)
    again = cache.frames(clips()[[2, 0]], LENGTHS[[2, 0]])
    assert cache.num_encoded == 3
    wanted = encoder(clips(), LENGTHS)
    assert first.rate == wanted.rate
    assert first.lengths.tolist() == wanted.lengths.tolist()
    for row, (length, values) in enumerate(zip(first.lengths, first.values, strict=True)):
        assert torch.allclose(values[:length], wanted.values[row, :length], atol=1e-5)
    assert again.lengths.tolist() == first.lengths[[2, 0]].tolist()
    for found, row in zip(again.values, (2, 0), strict=True):
        assert torch.equal(found[: first.lengths[row]], first.values[row, : first.lengths[row]])
    assert list(tmp_path.iterdir()) == []  # the cache is a temporary file without a name


def test_half_precision_frames_are_stored_exactly(encoder: Encoder, tmp_path: Path) -> None:
    cache = FrameCache(encoder, 10**6, tmp_path / "missing")
    with torch.autocast("cpu", torch.bfloat16):
        first, again = (cache.frames(clips(), LENGTHS).values for _ in range(2))
    assert first.dtype == again.dtype
    assert torch.equal(first, again)


def test_a_full_cache_keeps_its_frames(encoder: Encoder, tmp_path: Path) -> None:
    first_bytes = cache_size(encoder, tmp_path)
    cache = FrameCache(encoder, first_bytes + 10, tmp_path)
    for _ in range(3):
        cache.frames(clips(), LENGTHS)
    assert cache.num_encoded == 3 + 2 + 2


def cache_size(encoder: Encoder, folder: Path) -> int:
    frames = FrameCache(encoder, 10**6, folder).frames(clips()[:1], LENGTHS[:1])
    return frames.values.nbytes


def test_a_full_disk_does_not_stop_training(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FrameCache(encoder, 10**6, tmp_path)

    class FullDisk:
        def seek(self, start: int) -> None: ...

        def write(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_file", FullDisk())
    first, again = (cache.frames(clips(), LENGTHS).values for _ in range(2))
    assert torch.equal(first, again)
    assert cache.num_encoded == 6


def test_a_disk_that_fills_up_keeps_its_frames(encoder: Encoder, tmp_path: Path) -> None:
    """A limit on the file size acts like a full disk. Only a part of the second clip's frames is written."""
    limit_bytes = cache_size(encoder, tmp_path) + 100

    def fill() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        cache = FrameCache(encoder, 10**6, tmp_path)
        first, second, third = (cache.frames(clips(), LENGTHS).values for _ in range(3))
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        return cache.num_encoded

    assert finish(fork(fill)) == (3 + 2 + 2, "", "")


# --- training


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """Return a recipe with eight clips in batches of four, four steps and a pretrained, frozen encoder."""
    folder = tmp_path_factory.mktemp("recipe")
    document = recipe_on(folder)
    part_checkpoints.whisper(folder / "whisper")
    settings: dict[str, Any] = {
        "encoder": {"name": "whisper", "pretrained": str(folder / "whisper")},
        "ctc": {"weight": 0.5},
        "training__steps": 4,
        "execution__checkpoint_every": 2,
    }
    return changed(document, **settings)


def test_the_cache_does_not_change_losses_and_resuming_is_exact(document: Document, tmp_path: Path) -> None:
    keeping = changed(document, execution__cache_frames_gb=0.1)
    trained(document, tmp_path / "plain")
    trainer = make_trainer(keeping, tmp_path / "kept")
    trainer.run()
    assert trainer._frame_cache is not None
    assert trainer._frame_cache.num_encoded == 8
    wanted, found = (torch.tensor(logged(tmp_path / name, "loss")) for name in ("plain", "kept"))
    assert len(wanted) == 4
    assert torch.allclose(found, wanted, atol=1e-4)
    undisturbed = {name: tensor.clone() for name, tensor in trainer.bare_model.state_dict().items()}
    stopped = make_trainer(keeping, tmp_path / "resumed")
    stopped.config = stopped.config.model_copy(update={"steps": 2})
    stopped.run()
    assert different(trained(keeping, tmp_path / "resumed"), undisturbed) == set()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"encoder__freeze": False}, "cache_frames_gb encoder.freeze"),
        ({"encoder__lora": LORA}, "cache_frames_gb lora"),
        ({"encoder__layer": "weighted"}, "cache_frames_gb encoder.freeze"),
        ({"encoder__dropout": 0.1}, "cache_frames_gb encoder.dropout 0.1"),
        ({"augmentation": {"speed": [0.9, 1.0]}}, "cache_frames_gb augmentation.speed"),
        ({"augmentation": {"spec_augment": {}}}, "cache_frames_gb augmentation.spec_augment"),
        ({"execution__parallel": "fsdp"}, "cache_frames_gb ddp"),
    ],
)
def test_frames_that_change_during_training_cannot_be_cached(
    document: Document, changes: dict[str, Any], names: str
) -> None:
    recipe = parse(changed(document, execution__cache_frames_gb=0.1))
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    with pytest.raises(UserError) as caught:
        recipe.with_(dotted)
    assert_names(caught.value, names)


def test_the_cache_is_not_part_of_the_identity(document: Document) -> None:
    assert parse(document).run_id() == parse(changed(document, execution__cache_frames_gb=0.1)).run_id()
