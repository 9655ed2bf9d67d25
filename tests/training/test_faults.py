"""Faults during training: the message is clear, saved steps are not lost, and the same command continues the run."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.hub_server import LOQUACIOUS_CARD, LOQUACIOUS_NAME, Hub, Repo, Stalls, forget, running_hub, use_hub
from tests.support.parquet_shards import loquacious_shard
from tests.support.processes import begin
from tests.support.training import (
    ActingCallback,
    RecordingCallback,
    exported,
    run,
    steps_kept,
)
from tiny_audio.config import RunFailed, UserError
from tiny_audio.projectors.swiglu import SwigluProjector
from tiny_audio.sources._hub import ranges as hub_ranges
from tiny_audio.training import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder, 12)
    return folder


@pytest.fixture
def document(data: Path) -> Document:
    return eight_steps(data)


def eight_steps(data: Path) -> Document:
    settings = {"training__steps": STEPS, "batching__max_clips": 3, "execution__log_every": 1}
    return changed(tiny_recipe(data), data__evaluation={}, execution__checkpoint_every=2, **settings)


@pytest.fixture(scope="module")
def finished(one_thread: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(eight_steps(data), folder)
    return folder


@pytest.fixture
def undisturbed(finished: Path, tmp_path: Path) -> bytes:
    """Return the weights of a run without faults, and copy the run's folder to ``tmp_path / "undisturbed"``."""
    shutil.copytree(finished, tmp_path / "undisturbed")
    return exported(finished)


# --- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a separate file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system needs root privileges")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Fill the file system completely."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(b"0" * size):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def test_a_run_continues_after_the_disk_was_full(document: Document, small_disk: Path, undisturbed: bytes) -> None:
    folder, filler = small_disk / "run", small_disk / "filler"
    with pytest.raises(UserError) as refusal:
        run(document, folder, ActingCallback(5, lambda: fill(filler)))
    message = str(refusal.value)
    assert "No space left on device" in message
    assert "step-000000004" in message
    assert steps_kept(folder) == [2, 4]
    filler.unlink()
    callback = run(document, folder)
    assert "continuing from step 4 (step-000000004)" in callback.notes
    assert exported(folder) == undisturbed


def test_a_run_continues_after_a_log_could_not_be_written(
    document: Document, undisturbed: bytes, tmp_path: Path
) -> None:
    """Step 4 cannot be logged, but it is saved."""
    document, log = changed(document, execution__log_clips=True), tmp_path / "run" / "clips.jsonl"

    def harm() -> None:
        log.rename(tmp_path / "moved")
        log.mkdir()

    with pytest.raises(UserError) as refusal:
        run(document, tmp_path / "run", ActingCallback(3, harm))
    assert str(tmp_path / "run") in str(refusal.value)
    assert f"Is a directory: '{log}'" in str(refusal.value)
    assert steps_kept(tmp_path / "run") == [2, 4]
    log.rmdir()
    run(document, tmp_path / "run")
    assert exported(tmp_path / "run") == undisturbed


def test_a_checkpoint_above_a_file_size_limit_is_an_error(document: Document, tmp_path: Path) -> None:
    """The limit acts like a disk quota. It is set in a separate process, because a process cannot raise it again."""

    def limited(end: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            run(document, tmp_path)
        except UserError as error:
            end.send(str(error))
        os._exit(0)

    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=limited, args=(theirs,))
    process.start()
    message = ours.recv()
    process.join()
    assert "step 2" in message
    assert str(tmp_path / "checkpoints") in message
    assert "File too large" in message
    assert not list((tmp_path / "checkpoints").iterdir())


# --- checkpoints that a disk damaged


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "name", "problem"),
    [
        pytest.param(
            cut, "model.safetensors", r"model\.safetensors has [\d,]+ of [\d,]+ bytes", marks=pytest.mark.slow
        ),
        (flip, "optimizer.pt", r"optimizer\.pt .+"),
        (Path.unlink, "checksums.json", r"checksums\.json .+"),
        pytest.param(Path.unlink, "progress.json", r"progress\.json .+", marks=pytest.mark.slow),
        pytest.param(cut, "checksums.json", r"checksums\.json .+", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_skipped(
    document: Document, undisturbed: bytes, tmp_path: Path, harm: Callable[[Path], None], name: str, problem: str
) -> None:
    folder = tmp_path / "undisturbed"
    harm(folder / "checkpoints" / "step-000000008" / name)
    (folder / "model").rename(folder / "gone")
    callback = run(document, folder)
    first, second = (note for note in callback.notes if "step-" in note)
    assert re.fullmatch(rf"step-000000008 .*\(.*{problem}\).* damaged-step-000000008", first)
    assert second == "continuing from step 6 (step-000000006)"
    assert exported(folder) == undisturbed
    assert steps_kept(folder) == [6, 8]


def test_a_run_cannot_continue_if_all_checkpoints_are_damaged(
    document: Document, undisturbed: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "undisturbed"
    for step in (6, 8):
        cut(folder / "checkpoints" / f"step-{step:09d}" / "rng.pt")
    (folder / "model").rename(folder / "gone")
    # The first start renames the checkpoints. The second start must also fail, and not train from step 0.
    for names in (("step-000000008: rng.pt ", "step-000000006: rng.pt "), ("step-000000008", "step-000000006")):
        with pytest.raises(UserError) as refusal:
            run(document, folder)
        for value in (str(folder / "checkpoints"), "only damaged checkpoints", *names):
            assert value in str(refusal.value)


# --- hubs


@contextmanager
def loquacious_hub(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    shards = {f"small/train-{n:05d}-of-00003.parquet": loquacious_shard(8 * n, 8, row_group=2) for n in range(3)}
    with running_hub() as hub:
        hub.repos = {LOQUACIOUS_NAME: Repo(shards, LOQUACIOUS_CARD)}
        use_hub(patch, hub.endpoint)
        patch.setenv("TINY_AUDIO_CACHE", str(cache))
        yield hub


@pytest.fixture
def hub(streamed: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with loquacious_hub(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture(scope="module")
def streaming(data: Path) -> Document:
    """Return a recipe with a small shuffle window, so that most row groups are fetched during training."""
    source = {"name": "loquacious", "config": "small"}
    settings = {"data__train": {"loquacious": source}, "batching__shuffle_clips": 2, "execution__checkpoint_every": 100}
    return changed(eight_steps(data), **settings, data__target_text="lower")


@pytest.fixture(scope="module")
def streamed(one_thread: None, streaming: Document, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the weights of a run that reads from a hub without faults."""
    folder = tmp_path_factory.mktemp("streamed")
    with pytest.MonkeyPatch.context() as patch, loquacious_hub(patch, folder / "cache"):
        run(streaming, folder / "run")
    return exported(folder / "run")


@pytest.mark.parametrize("num_workers", [pytest.param(0, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("fault", ["error", pytest.param("stall", marks=pytest.mark.slow)])
def test_a_run_continues_after_the_hub_was_unavailable(
    hub: Hub,
    streaming: Document,
    streamed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int,
    fault: Any,
) -> None:
    monkeypatch.setattr(hub_ranges, "_TIMEOUT_S", 0.2)
    streaming = changed(streaming, execution__num_workers=num_workers)

    def go_away() -> None:
        hub.fault = lambda number, path: fault

    with pytest.raises(UserError) as refusal:
        run(streaming, tmp_path / "run", ActingCallback(2, go_away))
    (kept,) = steps_kept(tmp_path / "run")
    assert kept >= 2
    message = str(refusal.value)
    cause = {"error": "the hub answers HTTP 500 for speechbrain/LoquaciousSet", "stall": " cannot be reached ("}
    assert cause[fault] in message
    assert f"\nstep {kept} is saved" in message
    assert "Traceback" not in message
    hub.fault = stalls = Stalls(2)
    forget()
    callback = run(streaming, tmp_path / "run")
    assert stalls.left == 0
    assert f"continuing from step {kept} (step-{kept:09d})" in callback.notes
    assert exported(tmp_path / "run") == streamed


@pytest.mark.slow  # the test above also has a stalling hub
def test_a_stalling_hub_does_not_change_the_weights(
    hub: Hub, streaming: Document, streamed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_ranges, "_TIMEOUT_S", 0.2)
    hub.fault = stalls = Stalls(6)
    run(streaming, tmp_path / "run")
    assert stalls.left == 0
    assert exported(tmp_path / "run") == streamed
    assert not (tmp_path / "run" / "dropped.jsonl").exists()


def test_an_unavailable_hub_at_the_start_is_an_error(hub: Hub, streaming: Document, tmp_path: Path) -> None:
    class NoteCallback(RecordingCallback):
        def note(self, message: str) -> None:
            if "training clips" in message:
                shutil.rmtree(tmp_path / "cache" / "hub" / "row_groups", ignore_errors=True)
                forget()
                hub.fault = lambda number, path: "error" if "/places/" in path else None

    with pytest.raises(UserError, match=r"\nnothing is trained yet"):
        run(streaming, tmp_path / "run", NoteCallback())
    assert steps_kept(tmp_path / "run") == []


# --- memory


class OutOfMemory(ActingCallback):
    """Simulates a lack of memory in the step after ``step``.

    The error is raised in the forward pass if ``where`` is empty, and otherwise in the optimizer's update.
    """

    def __init__(self, step: int, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        super().__init__(
            step, lambda: monkeypatch.setattr(torch.optim.AdamW if where else SwigluProjector, name(where), full)
        )


def name(where: str) -> str:
    return "step" if where else "forward"


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore about it")


def test_steps_before_a_lack_of_memory_are_saved(
    document: Document, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = changed(document, execution__checkpoint_every=100)
    with monkeypatch.context() as patch, pytest.raises(UserError) as refusal:
        run(document, tmp_path / "run", OutOfMemory(3, patch, ""))
    for value in ("step 4", "3 clips", "Tried to allocate 20.00 GiB.", "step 3 is saved", "batching.max_padded_s"):
        assert value in str(refusal.value)
    assert "more about it" not in str(refusal.value)
    assert steps_kept(tmp_path / "run") == [3]
    run(document, tmp_path / "run")
    assert exported(tmp_path / "run") == undisturbed


def test_partly_updated_weights_are_not_saved(
    document: Document, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(RunFailed) as failure:
        run(document, tmp_path / "run", OutOfMemory(3, patch, "update"))
    assert "everything after step 2 is lost" in str(failure.value)
    assert steps_kept(tmp_path / "run") == [2]
    run(document, tmp_path / "run")
    assert exported(tmp_path / "run") == undisturbed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_lack_of_gpu_memory_is_reported(document: Document, tmp_path: Path) -> None:
    document = changed(document, execution__device="cuda", execution__checkpoint_every=100)

    def shrink() -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-6)

    try:
        with pytest.raises((UserError, RunFailed), match=r"^the GPU ran out of memory in step 4, "):
            run(document, tmp_path / "run", ActingCallback(3, shrink))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# --- signals


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_signal_to_all_processes_stops_a_run(document: Document, tmp_path: Path, number: signal.Signals) -> None:
    """The signal is also sent to the loader processes, as by Ctrl-C and by schedulers."""
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(changed(document, training__steps=4000, execution__num_workers=2)))
    process = begin("run", path, "--output-dir", tmp_path / "run", start_new_session=True)
    deadline = time.monotonic() + 180
    while not (tmp_path / "run" / "checkpoints" / "step-000000004").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 3, err
    saved = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert err == f"stopped by a signal; step {int(saved.name[5:])} is saved; the same command continues\n"
