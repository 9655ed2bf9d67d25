"""Variables of launchers in the environment: whole sets, and what notebooks and clusters leave behind."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from tests.conftest import Document
from tests.support.training import RecordingCallback, parse
from tests.support.worlds import free_port, in_processes, place
from tiny_audio.commands.run import Run
from tiny_audio.config import UserError
from tiny_audio.training import world as worlds
from tiny_audio.training.launch import Launch, check_alone
from tiny_audio.training.world import World, joined

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LEFT = [
    {"LOCAL_RANK": "0"},
    {"LOCAL_RANK": "3", "WORLD_SIZE": ""},
    {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    {"RANK": "7", "LOCAL_RANK": "notebook"},
    {"RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
    {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"},
]
SILENT = [
    {},
    {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
    {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "77"},
    {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "bf16"},
    place(0, 1, 29500),
]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name in NAMES or name.startswith(("SLURM_", "OMPI_", "ACCELERATE_")):
            monkeypatch.delenv(name)


def variables(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("values", LEFT, ids=str)
def test_what_was_left_behind_is_a_single_process(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    variables(monkeypatch, values)
    launch = Launch.read()
    assert (launch.rank, launch.size) == (0, 1)
    assert launch.note is not None
    notes: list[str] = []
    with joined(CPU, notes.append) as world:
        assert world == World()
    assert notes == [launch.note]
    check_alone("sweep")


@pytest.mark.parametrize("values", SILENT, ids=str)
def test_nothing_is_said_about_what_describes_one_process(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str]
) -> None:
    variables(monkeypatch, values)
    assert Launch.read() == Launch()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE"),
        ({"RANK": "2"}, "RANK"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"RANK": "", "LOCAL_RANK": ""}, "RANK, LOCAL_RANK"),
    ],
)
def test_an_unusable_world_is_refused(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], name: str) -> None:
    variables(monkeypatch, place(0, 2, 29500) | changes)
    with pytest.raises(UserError, match=rf"\b{name}\b.*torchrun"):
        Launch.read()


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    port = free_port()
    variables(monkeypatch, place(rank, 2, port))
    monkeypatch.setattr(worlds, "_JOIN_TIMEOUT", timedelta(seconds=0.5))
    monkeypatch.setattr(worlds, "_NOTE_AFTER_S", 0.1)
    notes: list[str] = []
    with pytest.raises(UserError, match=rf"WORLD_SIZE is 2.*127\.0\.0\.1:{port}.*torchrun"), joined(CPU, notes.append):
        raise AssertionError("there is no other process")
    assert len(notes) == (rank == 0)


def test_a_world_of_three_meets() -> None:
    def size(rank: int) -> tuple[int, float]:
        with joined(CPU) as world:
            return world.size, world.sum([rank])[0]

    assert in_processes(3, size) == [(3, 3.0)] * 3


def test_a_run_goes_on_and_says_it_once(
    document: Document, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables(monkeypatch, {"LOCAL_RANK": "1"})
    document["training"] |= {"steps": 1, "warmup_steps": 0}
    document["data"]["evaluation"] = {}
    callback = RecordingCallback()
    Run(parse(document), "run", tmp_path / "run", callback).complete()
    assert len([note for note in callback.notes if "LOCAL_RANK" in note]) == 1
