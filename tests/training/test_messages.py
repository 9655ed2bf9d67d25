"""The wording of messages about training and its faults. Other tests check the values in these messages.

To regenerate ``messages.txt``: ``REGENERATE=1 pytest tests/training/test_messages.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import Document, changed
from tests.support.golden import check_golden
from tests.support.training import ActingCallback, RecordingCallback, gather, make_trainer, parse
from tiny_audio.config import RunFailed, Stopped, UserError
from tiny_audio.projectors.swiglu import SwigluProjector
from tiny_audio.runtime.launch import check_alone
from tiny_audio.runtime.world import World, joined
from tiny_audio.training.assembly import assemble
from tiny_audio.training.batches import Batches
from tiny_audio.training.checkpoint import latest
from tiny_audio.training.compilation import compile_layers
from tiny_audio.training.fused import fused_cross_entropy
from tiny_audio.training.initialize import StartingPoint
from tiny_audio.training.signals import StopSignal

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def launches(patch: pytest.MonkeyPatch) -> Iterator[Callable[[], object]]:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        patch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        patch.delenv(name, raising=False)
    yield lambda: check_alone("sweep")
    yield lambda: joined(CPU).__enter__()
    patch.setenv("MASTER_ADDR", "127.0.0.1")
    patch.setenv("MASTER_PORT", "1")
    patch.setenv("ACCELERATE_USE_FSDP", "true")
    yield lambda: joined(CPU).__enter__()
    patch.delenv("ACCELERATE_USE_FSDP")
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    yield lambda: joined(CUDA).__enter__()
    patch.undo()


def starts(document: Document, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Callable[[], object]]:
    config = parse(changed(document, training__init_from={"path": str(folder), "parts": None})).training.init_from
    assert config is not None
    yield lambda: StartingPoint(config)
    patch.setenv("CXX", "no-such-compiler")
    yield lambda: compile_layers(torch.nn.Linear(1, 1), CPU)
    patch.undo()
    yield lambda: fused_cross_entropy(CPU)
    recipe = parse(document)
    clips = gather(recipe)
    _, _, target_encoder = assemble(recipe, clips, None)
    batches = Batches(recipe, clips, target_encoder, World(), lambda dropped: None, StopSignal(), pin_memory=False)
    yield lambda: next(batches.start(0, 1, "another"))


def steps(document: Document, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Callable[[], object]]:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    def second_signal() -> object:
        with StopSignal(iter(range(0, 1000, 100)).__next__) as stop:

            def twice() -> None:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)

            return make_trainer(document, folder / "signaled", stop=stop, callback=ActingCallback(2, twice)).run()

    def any_signal() -> None:
        with StopSignal():
            os.kill(os.getpid(), signal.SIGTERM)

    diverging = changed(document, training__learning_rate=1e30, training__max_skipped_steps=1, training__steps=9)
    yield lambda: make_trainer(diverging, folder / "diverged").run()
    for part, name in ((SwigluProjector, "forward"), (torch.optim.AdamW, "step")):
        fill = ActingCallback(1, lambda part=part, name=name: patch.setattr(part, name, full))  # type: ignore[misc]
        yield lambda name=name, fill=fill: make_trainer(document, folder / name, callback=fill).run()  # type: ignore[misc]
        patch.undo()
    yield any_signal
    yield second_signal


def checkpoints(document: Document, folder: Path) -> Iterator[Callable[[], object]]:
    whole = folder / "whole"
    make_trainer(document, whole).run()
    yield lambda: make_trainer(changed(document, projector__hidden_dim=65), whole).run()
    yield lambda: make_trainer({**document, "ctc": None}, whole).run()
    (folder / "blocked").mkdir()
    (folder / "blocked" / "checkpoints").write_text("in the way")
    saved = latest(whole / "checkpoints")
    assert saved is not None
    for index, (name, harm) in enumerate(
        {"rng.pt": b"", "optimizer.pt": None, "checksums.json": b"{", "progress.json": b"x" * 10}.items()
    ):
        damaged = folder / f"damaged{index}"
        shutil.copytree(whole, damaged)
        path = damaged / "checkpoints" / saved.name / name
        path.write_bytes(path.read_bytes()[::-1] if harm is None else harm)
        yield lambda damaged=damaged: make_trainer(document, damaged).run()  # type: ignore[misc]


def test_messages(document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    for family in (
        launches(monkeypatch),
        starts(document, tmp_path, monkeypatch),
        steps(document, tmp_path, monkeypatch),
        checkpoints(document, tmp_path),
    ):
        for call in family:
            with pytest.raises((UserError, RunFailed, Stopped)) as raised:
                call()
            message = str(raised.value).replace(str(tmp_path), "<folder>")
            lines.append(f"{raised.type.__name__}: " + re.sub(r"[\d,.]+ (s|bytes)\b", r"N \1", message))
    callback = RecordingCallback()
    make_trainer(changed(document, training__steps=4), tmp_path / "whole", callback=callback).run()
    lines += [f"note: {note}" for note in callback.notes]
    check_golden(Path(__file__).with_name("messages.txt"), "\n\n".join(lines) + "\n")
