"""Several processes of one training, forked from the test: real ones that meet over gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from tiny_audio.training.world import World, joined

PATIENCE_S = 120.0


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def place(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun would put into the environment of a process."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}


def in_world(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What ``work`` gives or raises in each of ``size`` processes, by rank; what goes wrong otherwise is raised."""
    context, port = multiprocessing.get_context("fork"), free_port()
    ends, processes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_member, args=(rank, size, port, work, theirs))
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    try:
        found = []
        for rank, end in enumerate(ends):
            assert end.poll(PATIENCE_S), f"process {rank} of {size} did not answer"
            found.append(end.recv())
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()
    return found


def _member(rank: int, size: int, port: int, work: Callable[[World], Any], end: Connection) -> None:
    os.environ.update(place(rank, size, port))
    torch.set_num_threads(1)
    try:
        with joined(torch.device("cpu")) as world:
            found = work(world)
    except Exception as error:
        found = error
        error.add_note(traceback.format_exc())
    try:
        end.send(found)
    finally:
        end.close()
        os._exit(0)
