"""The processes that train one model together, and what they have to agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tiny_audio.config import FollowedError, UserError

ValueT = TypeVar("ValueT")

_TIMEOUT = timedelta(hours=2)
"""Of a meeting: the first process may index a corpus or score a set while the others wait. A process that dies is
noticed at once, whatever this says."""
_PLACE = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}
"""What `accelerate launch` can switch on behind a run's back."""


@dataclass(frozen=True)
class World:
    """How many processes there are, and which of them this is; alone, all that is asked is answered at once.

    Methods are meetings where nothing else is said: all processes call them, in the same order.
    """

    rank: int = 0
    local_rank: int = 0
    """Among those of this machine."""
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, which alone writes and speaks."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value, summed over the processes; in float64, so that counts stay exact."""
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
        """Every process's value, by rank; everywhere."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[[], ValueT]) -> ValueT:
        """What ``work`` gives in the first process, which alone does it.

        Raises:
            Exception: what ``work`` raised; as :class:`FollowedError` in the other processes.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        failed = outcome[1]
        shared = [outcome[0], None if failed is None else type(failed)]
        dist.broadcast_object_list(shared, src=0)
        if failed is not None:
            raise failed
        if shared[1] is not None:
            raise FollowedError(shared[1])
        value: ValueT = shared[0]
        return value

    def failure(self, error: Exception) -> Exception:
        """What to raise where all processes fail alike: the first alone says why. No meeting."""
        return error if self.is_main else FollowedError(type(error))

    def together(self, work: Callable[[], ValueT]) -> ValueT:
        """What ``work`` gives in each process; where it fails in one, all leave.

        Raises:
            Exception: what ``work`` raised, in the first process where it did; :class:`FollowedError` in the others.
        """
        if self.size == 1:
            return work()
        outcome: list[ValueT] = []
        failed: Exception | None = None
        try:
            outcome.append(work())
        except Exception as error:
            failed = error
        failures = self.gather(None if failed is None else type(failed))
        kinds = {rank: kind for rank, kind in enumerate(failures) if kind is not None}
        if kinds:
            first = min(kinds)
            if failed is not None and first == self.rank:
                raise failed
            raise FollowedError(kinds[first])
        return outcome[0]

    def in_turn(self, work: Callable[[], ValueT]) -> ValueT:
        """As :meth:`together`; the first process of each machine goes first, and leaves what it made in the cache."""
        done = self.together(lambda: [work()] if self.local_rank == 0 else [])
        return self.together(lambda: done[0] if done else work())

    def share(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The first process's tensors, on the CPU, one by one; others' are not looked at."""
        if self.size == 1:
            yield from tensors.items()
            return
        layout = self.on_main(lambda: [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()])
        for name, shape, dtype in layout:
            tensor = tensors[name].contiguous() if self.is_main else torch.empty(shape, dtype=dtype)
            dist.broadcast(tensor, src=0)
            yield name, tensor


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun or `accelerate launch` made, while inside.

    Raises:
        UserError: the launcher did not say all that is needed, or there are more processes than GPUs.
    """
    size = world_size()
    if size == 1:
        yield World()
        return
    missing = [name for name in _PLACE if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE says that this is one of {size} processes, and {', '.join(missing)} are not set; start with "
            "torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    for name, engine in _ENGINES.items():
        if os.environ.get(name, "false").lower() == "true":
            raise UserError(
                f"accelerate launch was told to use {engine}; leave that out, and set execution.parallel to ddp or fsdp"
            )
    if device.type == "mps":
        raise UserError(
            "an Apple GPU trains in one process only; start without a launcher, or set execution.device: cpu"
        )
    if device.type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise UserError(
                f"process {local} of this machine has no GPU of its own: there are {gpus}; start as many processes "
                "as GPUs"
            )
        torch.cuda.set_device(local)
    # What is agreed on lies on the CPU, so that agreeing waits for no GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield World(dist.get_rank(), int(os.environ["LOCAL_RANK"]), size)
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_first() -> bool:
    """Whether this is the first of the processes that the launcher started, or the only one."""
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def check_alone(command: str) -> None:
    """Refuse to be one of several processes.

    Raises:
        UserError: this is.
    """
    if world_size() > 1:
        raise UserError(
            f"tiny-audio {command} works in one process, and WORLD_SIZE says that this is one of {world_size()}; start "
            "it without torchrun or accelerate launch"
        )
