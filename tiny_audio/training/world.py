"""The processes that train one model, and their collectives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tiny_audio.config import Failure, TinyAudioError, UserError

ValueT = TypeVar("ValueT")
ErrorT = TypeVar("ErrorT", bound=TinyAudioError)

_TIMEOUT = timedelta(hours=2)
"""Timeout of a collective. The main process may index a corpus or score a set while the others wait. A dead process
is detected at once, without this timeout."""
_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}
"""Engines that `accelerate launch` can switch on; a run has its own."""


@dataclass(frozen=True)
class World:
    """The number of processes, and which of them this is. A single process returns its own values at once.

    Methods are collectives unless they say otherwise: all processes call them, in the same order.
    """

    rank: int = 0
    local_rank: int = 0
    """Rank among the processes of this machine."""
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which alone writes files and prints."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """Name of this process in error messages."""
        return _name(self.rank)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up each value over the processes, in float64, so that counts stay exact."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def any(self, happened: bool) -> bool:
        """Whether it happened in any process."""
        return self.sum([float(happened)])[0] > 0

    def gather(self, value: ValueT) -> list[ValueT]:
        """Give every process the values of all, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast_from_main(self, work: Callable[[], ValueT]) -> ValueT:
        """Do ``work`` in the main process alone and return its result in all.

        Raises:
            Exception: what ``work`` raised; in the other processes as :class:`Failure` translates it.
        """
        if self.size == 1:
            return work()
        value: Any = None
        error: Exception | None = None
        if self.is_main:
            try:
                value = work()
            except Exception as raised:
                error = raised
        outcome: list[Any] = [self._failure(error) or value]
        dist.broadcast_object_list(outcome, src=0)
        if error is not None:
            raise error
        if isinstance(outcome[0], Failure):
            raise outcome[0].to_error()
        result: ValueT = outcome[0]
        return result

    def collective(self, work: Callable[[], ValueT]) -> ValueT:
        """Do ``work`` in every process. If it fails in one, all raise.

        Raises:
            Exception: what ``work`` raised in the failed process of lowest rank; in the other processes as
                :class:`Failure` translates it.
        """
        if self.size == 1:
            return work()
        outcome: list[ValueT] = []
        error: Exception | None = None
        try:
            outcome.append(work())
        except Exception as raised:
            error = raised
        failures = self.gather(self._failure(error))
        first = next((failure for failure in failures if failure is not None), None)
        if first is None:
            return outcome[0]
        if error is not None and first.origin == self.name:
            raise error
        raise first.to_error()

    def main_first(self, work: Callable[[], ValueT]) -> ValueT:
        """As :meth:`collective`, but the main process of each machine goes first and fills the cache for the others."""
        done = self.collective(lambda: [work()] if self.local_rank == 0 else [])
        return self.collective(lambda: done[0] if done else work())

    def broadcast_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the main process's tensors one by one, on the CPU. The other processes' argument is not read."""
        if self.size == 1:
            yield from tensors.items()
            return
        layout = self.broadcast_from_main(
            lambda: [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]
        )
        for name, shape, dtype in layout:
            tensor = tensors[name].contiguous() if self.is_main else torch.empty(shape, dtype=dtype)
            dist.broadcast(tensor, src=0)
            yield name, tensor

    def printed_by_main(self, error: ErrorT) -> ErrorT:
        """Mark an error that every process raises alike, so that the main process alone prints it. Not a collective."""
        if not self.is_main:
            error.origin = _name(0)
        return error

    def _failure(self, error: Exception | None) -> Failure | None:
        return None if error is None else Failure.of(error, self.name)


def _name(rank: int) -> str:
    return f"process {rank}"


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun or `accelerate launch` started.

    Raises:
        UserError: a variable of the launcher is missing, or there are more processes than GPUs.
    """
    size = world_size()
    if size == 1:
        yield World()
        return
    missing = [name for name in _LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} are not set; start with torchrun or accelerate launch, or "
            "unset WORLD_SIZE"
        )
    for name, engine in _ENGINES.items():
        if os.environ.get(name, "false").lower() == "true":
            raise UserError(
                f"accelerate launch switches on {engine}; remove that, and set execution.parallel to ddp or fsdp"
            )
    if device.type == "mps":
        raise UserError(
            "an Apple GPU trains in one process only; start without a launcher, or set execution.device: cpu"
        )
    if device.type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise UserError(
                f"process {local} of this machine has no GPU of its own: there are {gpus}; start at most one process "
                "per GPU"
            )
        torch.cuda.set_device(local)
    # Collectives of this class use the CPU, so that they do not wait for a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield World(dist.get_rank(), int(os.environ["LOCAL_RANK"]), size)
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_first() -> bool:
    """Whether this is the main process, or the only one."""
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def check_alone(command: str) -> None:
    """Reject a launch of several processes.

    Raises:
        UserError: this is one of several.
    """
    if world_size() > 1:
        raise UserError(
            f"tiny-audio {command} runs in one process, but WORLD_SIZE is {world_size()}; start it without torchrun or "
            "accelerate launch"
        )
