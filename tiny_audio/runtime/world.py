"""The processes of a distributed run, and their collectives (operations in which all processes take part)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tiny_audio.config import Failure, RunFailed, TinyAudioError, UserError, first_line
from tiny_audio.runtime.launch import Launch
from tiny_audio.runtime.mailbox import Mailbox

ValueT = TypeVar("ValueT")
ErrorT = TypeVar("ErrorT", bound=TinyAudioError)

_TIMEOUT = timedelta(hours=2)
"""Timeout of a collective. It is long, because the other processes wait while the main process indexes a corpus or
scores an evaluation set. If a process ends, the others notice this at once, without waiting for the timeout."""
_JOIN_TIMEOUT = timedelta(minutes=2)
"""Time in which all processes must connect. It is short, because launchers start them at about the same time."""
_NOTE_AFTER_S, _POLL_S = 5.0, 0.05
_PRESENT = "tiny_audio/present"
"""A key in the key-value store that all processes share. The value is the number of processes that have connected."""
_ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}
"""Environment variable of `accelerate launch` -> the engine for sharded training that the variable turns on.
These engines are rejected, because training uses ``execution.parallel`` instead, and inference needs no engine."""


@dataclass(frozen=True)
class World:
    """The number of processes of a run, and the rank of this process.

    Methods are collectives unless their docstrings say otherwise. All processes must call collectives in the same
    order. With a single process, a collective returns the values of this process.
    """

    rank: int = 0
    local_rank: int = 0
    """Rank among the processes of this machine."""
    size: int = 1
    _mailbox: Mailbox | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the main process. Only the main process writes results and progress."""
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
        """Whether ``happened`` is true in any process."""
        return self.sum([float(happened)])[0] > 0

    def gather(self, value: ValueT) -> list[ValueT]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast_from_main(self, work: Callable[[], ValueT]) -> ValueT:
        """Call ``work`` in the main process only, and return its result in all processes.

        Raises:
            Exception: the error that ``work`` raised. The other processes raise a copy (see :class:`Failure`).
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

    def collective(self, work: Callable[[], ValueT], meanwhile: Callable[[], None] | None = None) -> ValueT:
        """Call ``work`` in every process. If it fails in any process, all processes raise an error.

        Args:
            meanwhile: function that is called repeatedly while this process waits for the others, and once more at the
                end. Signal handlers run between these calls. Without ``meanwhile``, they run only after the wait. The
                function is not called if there is only one process.

        Raises:
            Exception: the error that ``work`` raised in the failed process with the lowest rank. The other processes
                raise a copy (see :class:`Failure`).
        """
        if self.size == 1:
            return work()
        outcome: list[ValueT] = []
        error: Exception | None = None
        try:
            outcome.append(work())
        except Exception as raised:
            error = raised
        if meanwhile is not None:
            self._wait(meanwhile)
        failures = self.gather(self._failure(error))
        first = next((failure for failure in failures if failure is not None), None)
        if first is None:
            return outcome[0]
        if error is not None and first.origin == self.name:
            raise error
        raise first.to_error()

    def _wait(self, meanwhile: Callable[[], None]) -> None:
        """Wait until all processes have called this method. Call ``meanwhile`` repeatedly.

        Raises:
            RunFailed: a process has ended.
        """
        try:
            arrival: Any = dist.barrier(async_op=True)
            pauses = _pauses()
            while not arrival.is_completed():
                meanwhile()
                time.sleep(next(pauses))
            arrival.wait()
        except RuntimeError as error:
            raise RunFailed("another process ended too early; see the error message of that process") from error
        meanwhile()

    def send_to_main(self, value: object) -> None:
        """Send a value to the main process. This is not a collective."""
        assert self._mailbox is not None
        self._mailbox.send(value)

    def received(self) -> Iterator[Any]:
        """Yield the values that other processes have sent, if this is the main process. This is not a collective."""
        return self._mailbox.received() if self._mailbox is not None and self.is_main else iter(())

    def main_first(self, work: Callable[[], ValueT]) -> ValueT:
        """Call ``work`` in the first process of each machine, and then in the other processes.

        Thus, only the first process downloads files or fills the cache. Errors are raised as in :meth:`collective`.
        """
        done = self.collective(lambda: [work()] if self.local_rank == 0 else [])
        return self.collective(lambda: done[0] if done else work())

    def broadcast_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the main process's tensors in every process, one by one. The tensors must be on the CPU.

        The other processes ignore their own ``tensors``.
        """
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
        """Mark an error that every process raises, so that only the main process prints it.

        This is not a collective.
        """
        if not self.is_main:
            error.origin = _name(0)
        return error

    def _failure(self, error: Exception | None) -> Failure | None:
        return None if error is None else Failure.of(error, self.name)


def _pauses() -> Iterator[float]:
    """Yield pauses in seconds, for a loop that waits. The first pauses are short, so that a short wait ends soon."""
    pause = 0.001
    while True:
        yield pause
        pause = min(2 * pause, _POLL_S)


def _name(rank: int) -> str:
    return f"process {rank}"


@contextmanager
def joined(
    device: torch.device, note: Callable[[str], None] = lambda text: None, timeout: timedelta = _TIMEOUT
) -> Iterator[World]:
    """Join the processes that torchrun or `accelerate launch` started.

    Args:
        device: the device on which this process computes.
        note: receives messages for the user.
        timeout: the longest time that a process waits for the others in a collective.

    Raises:
        UserError: the launcher's environment variables are invalid, it uses an engine for sharded training, there are
            not enough GPUs for the processes, or not all processes join.
    """
    launch = Launch.read()
    if launch.note is not None:
        note(launch.note)
    if launch.size == 1:
        yield World()
        return
    for name, engine in _ENGINES.items():
        if os.environ.get(name, "false").lower() == "true":
            raise UserError(
                f"accelerate launch was configured to use {engine}; turn {engine} off in its options or config file. "
                "For sharded training, set execution.parallel: fsdp in the recipe"
            )
    if device.type == "mps":
        raise UserError(
            "an Apple GPU serves one process only; start without a launcher, or set execution.device: cpu in the recipe"
        )
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        if launch.local_rank >= gpus:
            raise UserError(
                f"process {launch.local_rank} of this machine has no GPU of its own (number of GPUs: {gpus}); "
                "start at most one process per GPU"
            )
        torch.cuda.set_device(launch.local_rank)
    # The collectives of World use the CPU, so that they do not wait for a GPU.
    backends = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = _store_of_launch(launch, note)
    dist.init_process_group(backends, store=store, rank=launch.rank, world_size=launch.size, timeout=timeout)
    try:
        yield World(launch.rank, launch.local_rank, launch.size, Mailbox(store, launch.rank, launch.size))
    finally:
        dist.destroy_process_group()


def _store_of_launch(launch: Launch, note: Callable[[str], None]) -> Any:
    """Return the key-value store that all processes share, after all of them have connected to it.

    Raises:
        UserError: some processes do not connect in time, because they were not started or cannot be reached.
    """
    address = os.environ["MASTER_ADDR"]
    # The main process runs the store, unless torchrun already runs it in its own process.
    serves = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    present, started, was_noted, pauses = 0, time.monotonic(), False, _pauses()
    try:
        store: Any = dist.TCPStore(  # type: ignore[attr-defined]  # exported by the compiled module
            address, launch.port, is_master=serves, timeout=_JOIN_TIMEOUT, multi_tenant=True, wait_for_workers=False
        )
        store.add(_PRESENT, 1)
        while (present := store.add(_PRESENT, 0)) < launch.size:
            waited_s = time.monotonic() - started
            if waited_s > _JOIN_TIMEOUT.total_seconds():
                raise dist.DistStoreError(f"waited {waited_s:.0f} s")
            if launch.rank == 0 and waited_s > _NOTE_AFTER_S and not was_noted:
                note(f"waiting for the other processes: {present} of {launch.size} are connected")
                was_noted = True
            time.sleep(next(pauses))
    except dist.DistError as error:
        connected = f"only {present} of {launch.size} processes connected to"
        found = connected if present else "the main process could not be reached at"
        raise UserError(
            f"WORLD_SIZE is {launch.size}, but {found} {address}:{launch.port} within "
            f"{_JOIN_TIMEOUT.total_seconds():.0f} s ({first_line(error)}); start all processes with torchrun or "
            "accelerate launch, or unset WORLD_SIZE to run in one process"
        ) from error
    return store
