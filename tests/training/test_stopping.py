"""A signal stops training at any time without losing a step. After a second signal, a message names the lost steps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.hub_server import LOQUACIOUS_CARD, LOQUACIOUS_NAME, Fault, Hub, Repo, point_to_hub, running_hub
from tests.support.parquet_shards import loquacious_shard
from tests.support.processes import Process, begin
from tests.support.training import (
    ActingCallback,
    exported,
    make_trainer,
    run,
    steps_kept,
)
from tiny_audio.config import Stopped, UserError
from tiny_audio.decoders import load_tokenizer
from tiny_audio.training.metrics import read_metrics
from tiny_audio.training.signals import StopAsked, StopSignal

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 8
PATIENCE_S = 300.0


@pytest.fixture
def document(tmp_path: Path) -> Document:
    write_clips(tmp_path / "data", 12)
    settings = {"training__steps": STEPS, "batching__max_clips": 3, "execution__log_every": 1}
    return changed(tiny_recipe(tmp_path / "data"), data__evaluation={}, execution__checkpoint_every=100, **settings)


def send(*numbers: signal.Signals) -> Callable[[], None]:
    def signaled() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return signaled


# --- one signal, two signals


def test_a_signal_while_a_library_reads_a_file_is_not_a_file_error(tmp_path: Path) -> None:
    def load(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE_S)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.AutoTokenizer.from_pretrained", load)
        with pytest.raises(Stopped, match="SIGTERM"), StopSignal():
            load_tokenizer(str(tmp_path), None)


def test_an_error_in_a_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer"), StopSignal():
        load_tokenizer(str(tmp_path), None)


def test_two_signals_at_once_count_as_one(document: Document, tmp_path: Path) -> None:
    """On Ctrl-C, all processes get the signal, and torchrun sends them a second signal."""
    document = changed(document, training__steps=4)
    run(document, tmp_path / "undisturbed")
    with pytest.raises(Stopped) as stopped:
        run(document, tmp_path / "run", ActingCallback(3, send(signal.SIGINT, signal.SIGTERM)))
    assert "step 3 is saved" in str(stopped.value)
    assert steps_kept(tmp_path / "run") == [3]
    run(document, tmp_path / "run")
    assert exported(tmp_path / "run") == exported(tmp_path / "undisturbed")


def test_a_rejected_recipe_does_not_replace_that_of_a_stopped_run(document: Document, tmp_path: Path) -> None:
    folder, other = tmp_path / "run", write_clips(tmp_path / "other", 3)
    with pytest.raises(Stopped):
        run(document, folder, ActingCallback(1, send(signal.SIGINT)))
    written = (folder / "recipe.yaml").read_text()
    with pytest.raises(UserError, match="was started with a different set of training clips"):
        run(changed(document, data__train__clips__path=str(other)), folder)
    assert (folder / "recipe.yaml").read_text() == written
    moved = shutil.copytree(tmp_path / "data", tmp_path / "moved") / "manifest.jsonl"
    run(changed(document, data__train__clips__path=str(moved)), folder)
    assert str(moved) in (folder / "recipe.yaml").read_text()


def test_a_log_line_covers_all_steps_since_the_last_line(document: Document, tmp_path: Path) -> None:
    """The first log line after a stop also covers the steps before the stop that have no line. Columns that depend on
    the machine are not compared."""
    document = changed(document, execution__log_every=4, execution__log_clips=True, ctc={"weight": 0.5})
    make_trainer(document, tmp_path / "undisturbed").run()
    folder, seen = tmp_path / "run", []
    trainer = make_trainer(document, folder)
    # Request a stop after the second step, which has no log line.
    trainer.bare_model.projector.register_forward_hook(
        lambda *_: seen.append(1) if len(seen) < 1 else trainer.stop.ask()
    )
    with pytest.raises(Stopped):
        trainer.run()
    assert steps_kept(folder) == [2]
    make_trainer(document, folder).run()
    ours, theirs = (read_metrics(path / "metrics.jsonl") for path in (folder, tmp_path / "undisturbed"))
    for name in ("step", "loss", "decoder_loss", "ctc_loss", "audio_hours", "padding_share"):
        assert [row[name] for row in ours] == [row[name] for row in theirs], name


def test_a_checkpoint_of_an_older_version_can_be_continued(document: Document, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_trainer(changed(document, training__steps=3), folder).run()
    path = folder / "checkpoints" / "step-000000003"
    known = json.loads((path / "progress.json").read_text())
    content = json.dumps({name: value for name, value in known.items() if not name.startswith(("window_", "logged"))})
    assert len(content) < len(json.dumps(known))
    (path / "progress.json").write_text(content)
    sums = json.loads((path / "checksums.json").read_text())
    sums["progress.json"] = [len(content), zlib.crc32(content.encode())]
    (path / "checksums.json").write_text(json.dumps(sums))
    assert make_trainer(document, folder).run().step == STEPS


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("every", "kept", "loss"),
    [
        (2, [2], "everything after step 2 is lost; the same command continues from there"),
        (100, [], "no step is saved; the same command starts from the beginning"),
    ],
)
def test_the_message_after_a_second_signal_names_the_lost_steps(
    document: Document, tmp_path: Path, every: int, kept: list[int], loss: str
) -> None:
    clock = Clock()

    def twice() -> None:
        send(signal.SIGTERM)()
        clock.now += 10
        send(signal.SIGINT)()

    with StopSignal(clock) as stop:
        document = changed(document, execution__checkpoint_every=every)
        trainer = make_trainer(document, tmp_path / "run", stop=stop, callback=ActingCallback(3, twice))
        with pytest.raises(Stopped) as stopped:
            trainer.run()
    assert "SIGINT" in str(stopped.value)
    assert loss in str(stopped.value)
    assert steps_kept(tmp_path / "run") == kept


def test_a_signal_before_training_stops_at_once() -> None:
    with StopSignal(), pytest.raises(Stopped) as stopped:
        send(signal.SIGTERM)()
    assert "SIGTERM" in str(stopped.value)


def test_a_signal_ends_a_wait() -> None:
    reached = []

    def wait(stop: StopSignal, meanwhile: Callable[[], None]) -> None:
        with stop.waiting():
            meanwhile()
            reached.append(True)

    def work() -> None:
        with StopSignal() as stop, stop.deferred(lambda: "nothing"):
            for meanwhile in (send(signal.SIGTERM), lambda: None):  # the second wait begins after the stop request
                with pytest.raises(StopAsked):
                    wait(stop, meanwhile)

    with pytest.raises(Stopped) as stopped:
        work()
    assert "signal" in str(stopped.value)
    assert not reached


# --- signals during a wait for a stalling hub


class Stalling:
    """Makes a hub stall after a run has logged ``step`` steps. Counts the requests that wait."""

    def __init__(self, log: Path, step: int) -> None:
        self.log, self.step = log, step
        self.waits = 0

    def __call__(self, number: int, path: str) -> Fault | None:
        if not self.log.exists() or len(read_metrics(self.log)) < self.step or not path.startswith("/places/"):
            return None
        self.waits += 1
        return "stall"


@pytest.fixture
def hub() -> Iterator[Hub]:
    shards = {f"small/train-{n:05d}-of-00003.parquet": loquacious_shard(8 * n, 8, row_group=2) for n in range(3)}
    with running_hub() as hub:
        hub.repos = {LOQUACIOUS_NAME: Repo(shards, LOQUACIOUS_CARD)}
        yield hub


def until(process: Process, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("num_workers", "step"),
    [pytest.param(0, 2, marks=pytest.mark.slow), pytest.param(2, 0, marks=pytest.mark.slow), (2, 2)],
)
def test_a_signal_stops_a_run_while_the_hub_stalls(
    document: Document, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int, step: int
) -> None:
    """Without the signal, the hub's client would retry for nine minutes."""
    source = {"name": "loquacious", "config": "small"}
    settings = {"data__train": {"loquacious": source}, "batching__shuffle_clips": 2, "data__target_text": "lower"}
    settings |= {"execution__num_workers": num_workers, "training__steps": 4000}
    path, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    log = folder / "metrics.jsonl"
    path.write_text(json.dumps(changed(document, **settings)))
    hub.fault = fault = Stalling(log, step)
    point_to_hub(monkeypatch, hub.endpoint)
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    process = begin("run", path, "--output-dir", folder)
    try:
        until(process, lambda: fault.waits > 0)
        steps = -1
        while steps < (steps := len(read_metrics(log))):
            time.sleep(0.4)  # so that training first uses all clips that were already fetched
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 3, err
    where = f"step {steps} is saved" if steps else "nothing is trained yet"
    assert err == f"stopped by a signal; {where}; the same command continues\n"
    assert steps_kept(folder) == ([steps] if steps else [])
