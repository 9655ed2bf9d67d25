"""Several processes of one training, forked from the test: real ones that meet over gloo."""

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
    """What torchrun would put into the environment of a process."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}


def in_world(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What ``work`` gives in each process of a world of ``size``, by rank.

    Raises:
        Exception: what the first of them raised that did.
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
    """What ``work`` gives or raises in each of ``size`` processes that could meet, by rank."""
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
        end.send_bytes(pickle.dumps(found))  # a Connection's own pickles share tensors with a process that ends here
    finally:
        end.close()
        os._exit(0)
