"""Metrics in TensorBoard and in Weights & Biases. Errors of these services never stop a run."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

from tests.conftest import Document, changed
from tests.support.training import RecordingCallback, make_trainer
from tests.support.wandb_stub import Service, install
from tiny_audio.config import UserError
from tiny_audio.training.metrics import MetricsLog, read_metrics
from tiny_audio.training.trackers import TensorBoard, WeightsAndBiases

HAS_WANDB = importlib.util.find_spec("wandb") is not None


def numbers(folder: Path) -> list[dict[str, float]]:
    return [
        {"step": row["step"]}
        | {f"{row['kind']}/{key}": value for key, value in row.items() if isinstance(value, int | float)}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def without_the_step(points: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in point.items() if not key.endswith("/step")} for point in points]


@pytest.mark.parametrize("online", [True, False])
def test_the_log_is_sent(document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: bool) -> None:
    service, callback = Service(online), RecordingCallback()
    install(monkeypatch, service)
    document = changed(document, execution__wandb_project="speech", training__steps=2)
    make_trainer(document, tmp_path / "run", callback=callback).run()
    assert len(service.points) == 2
    assert service.points == without_the_step(numbers(tmp_path / "run"))
    assert service.finished == 1
    (opened,) = service.opened
    assert (opened["project"], opened["name"], opened["mode"]) == ("speech", "run", None if online else "offline")
    assert opened["config"]["training"]["steps"] == 2
    notes = [note for note in callback.notes if "Weights & Biases" in note]
    assert len(notes) == (not online)
    assert all("(no network)" in note and str(tmp_path / "run" / "wandb") in note for note in notes)


def test_a_failure_of_the_service_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, notes = Service(fails_after=1), []  # type: ignore[var-annotated]
    install(monkeypatch, service)
    for start in (0, 2):  # the second start continues the curves of the first
        log = MetricsLog(tmp_path, start, [WeightsAndBiases("speech", tmp_path, {}, notes.append)])
        for step in (start + 1, start + 2):
            log.write("train", step, loss=0.5)
        log.close()
    assert service.points == [{"step": 1, "train/loss": 0.5}]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert len(notes) == 2
    assert all("the process is gone" in note for note in notes)
    first, second = (opened["id"] for opened in service.opened)
    assert first == second


@pytest.mark.skipif(HAS_WANDB, reason="wandb is installed")
def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"execution\.wandb_project .*tiny-audio\[wandb\]"):
        WeightsAndBiases("speech", tmp_path, {}, print)


@pytest.mark.skipif(not HAS_WANDB, reason="wandb is not installed")
@pytest.mark.filterwarnings("default")  # the package itself causes warnings
@pytest.mark.parametrize(
    ("environment", "starts"),
    [
        pytest.param({"WANDB_MODE": "offline"}, [0], id="offline"),
        pytest.param({"WANDB_MODE": "offline"}, [0, 2], id="offline-twice", marks=pytest.mark.slow),
        pytest.param(
            {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40},
            [0, 2],
            id="unreachable",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_real_package_works_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], starts: list[int]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tiny_audio.training.trackers._TIMEOUT_S", 3.0)
    importlib.import_module("wandb").teardown()  # so that wandb reads its environment variables again
    notes: list[str] = []
    for start in starts:
        log = MetricsLog(tmp_path, start, [WeightsAndBiases("speech", tmp_path, {"a": {"b": 1}}, notes.append)])
        log.write("train", start + 1, loss=0.5, set="x")
        log.close()
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert files  # if both starts are in the same second, both write to one folder
    assert all(file.stat().st_size for file in files)
    assert len(notes) == (2 if "WANDB_API_KEY" in environment else 0)
    assert all("cannot be used now" in note for note in notes)


def test_tensorboard_hides_repeated_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # TensorBoard numbers its event files. It sorts files of the same second by their numbers as text, so file 10 would
    # come before file 9. Therefore, start with 0.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    for start in (0, 2):
        log = MetricsLog(tmp_path, start, [TensorBoard(tmp_path, start)])
        for step in range(start + 1, start + 4):
            log.write("train", step, loss=float(start), set="x")
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        *((1, 0.0), (2, 0.0), (3, 2.0), (4, 2.0), (5, 2.0)),
    ]
