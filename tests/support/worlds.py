"""Several training processes, forked from the test and connected by gloo. A world is a group of such processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from tiny_audio.runtime.world import World, joined

PATIENCE_S = 300.0


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def place(rank: int, size: int, port: int) -> dict[str, str]:
    """Return the environment variables that torchrun would set."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}


def in_world(size: int, work: Callable[[World], Any]) -> list[Any]:
    """Run ``work`` in each of ``size`` processes that form a :class:`World`, and return the results by rank.

    Raises:
        Exception: the error of the failed process with the lowest rank.
    """

    def joining(rank: int) -> Any:
        with joined(torch.device("cpu")) as world:
            return work(world)

    found = in_processes(size, joining)
    for value in found:
        if isinstance(value, Exception):
            raise value
    return found


def in_processes(size: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work`` in ``size`` processes that can connect to each other. Return the results or errors by rank."""
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
            found.append(pickle.loads(end.recv_bytes()))
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()
    return found


def _member(rank: int, size: int, port: int, work: Callable[[int], Any], end: Connection) -> None:
    os.environ.update(place(rank, size, port))
    torch.set_num_threads(1)
    try:
        found = work(rank)
    except Exception as error:
        found = error
        error.add_note(traceback.format_exc())
    try:
        # `end.send` would put tensors into shared memory, which is lost when this process ends.
        end.send_bytes(pickle.dumps(found))
    finally:
        end.close()
        os._exit(0)
