"""Environment variables of launchers: complete sets, and single variables that notebooks or clusters have set."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
import torch

from tests.support.worlds import free_port, in_processes, in_world, place
from tiny_audio.config import RunFailed, UserError
from tiny_audio.runtime import mailbox
from tiny_audio.runtime import world as worlds
from tiny_audio.runtime.launch import Launch, check_alone
from tiny_audio.runtime.world import World, joined

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
def test_leftover_variables_mean_a_single_process_with_a_note(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str]
) -> None:
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
def test_variables_of_one_process_give_no_note(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
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
def test_invalid_variables_are_rejected(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], name: str) -> None:
    variables(monkeypatch, place(0, 2, 29500) | changes)
    with pytest.raises(UserError, match=rf"\b{name}\b.*torchrun"):
        Launch.read()


@pytest.mark.parametrize("rank", [0, 1])
def test_joining_times_out_if_processes_are_missing(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    port = free_port()
    variables(monkeypatch, place(rank, 2, port))
    monkeypatch.setattr(worlds, "_JOIN_TIMEOUT", timedelta(seconds=0.2))
    monkeypatch.setattr(worlds, "_NOTE_AFTER_S", 0.05)
    notes: list[str] = []
    with pytest.raises(UserError, match=rf"WORLD_SIZE is 2.*127\.0\.0\.1:{port}.*torchrun"), joined(CPU, notes.append):
        raise AssertionError("there is no other process")
    assert len(notes) == (rank == 0)


def test_three_processes_can_join() -> None:
    def size(rank: int) -> tuple[int, float]:
        with joined(CPU) as world:
            return world.size, world.sum([rank])[0]

    assert in_processes(3, size) == [(3, 3.0)] * 3


def test_values_arrive_completely_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "_PART_BYTES", 10)

    def work(world: World) -> list[object]:
        found: list[object] = []
        for number in range(3 if world.rank else 0):
            world.send_to_main((world.rank, number, "x" * 25))
        world.collective(lambda: None, lambda: found.extend(world.received()))
        return found

    first, *others = in_world(3, work)
    assert others == [[], []]
    assert sorted(first) == [(rank, number, "x" * 25) for rank in (1, 2) for number in range(3)]
    assert [number for rank, number, _ in first if rank == 2] == [0, 1, 2]


def test_a_process_that_ended_is_noticed() -> None:
    def work(rank: int) -> None:
        with joined(CPU) as world:
            if rank == 1:
                raise KeyError("a bug")
            world.collective(lambda: None, lambda: None)

    first, second = in_processes(2, work)
    assert isinstance(first, RunFailed)
    assert isinstance(second, KeyError)
