"""Batches from loader processes: their content, and the reuse of the memory of deleted batches."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from tiny_audio.data import shared_batches
from tiny_audio.data.batches import Batch
from tiny_audio.data.shared_batches import SharedBatches

pytestmark = pytest.mark.skipif(not shared_batches.SUPPORTED, reason="this system has no anonymous memory files")


def rows(index: int) -> list[torch.Tensor]:
    """Return the waveforms of a batch. The index of the batch determines their number, lengths and values."""
    generator = torch.Generator().manual_seed(index)
    lengths = torch.randint(1, 4000, (1 + index % 4,), generator=generator)
    return [torch.randn(int(length), generator=generator) for length in lengths]


class Batches(Dataset[Batch]):
    """Forty batches, as created in a loader process."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Batch:
        waveforms = rows(index)
        lengths = torch.tensor([len(row) for row in waveforms])
        targets = [torch.tensor([index, 1]) for _ in waveforms]
        return Batch(SharedBatches(waveforms), lengths, targets, None, [0] * len(waveforms))  # type: ignore[arg-type]


def loaded(workers: int = 2) -> Iterator[Batch]:
    return iter(DataLoader(Batches(), batch_size=None, num_workers=workers))


def num_mapped() -> int:
    return len(shared_batches._MAPPED)


def test_batches_arrive_unchanged() -> None:
    for index, batch in enumerate(loaded()):
        assert batch.waveforms.dtype == torch.float32
        assert torch.equal(batch.waveforms, pad_sequence(rows(index), batch_first=True))
        assert batch.lengths.tolist() == [len(row) for row in rows(index)]
        assert [row.tolist() for row in batch.targets] == [[index, 1]] * len(rows(index))


def test_batches_in_use_do_not_change() -> None:
    kept = [batch.waveforms for batch in loaded()]
    for index, waveforms in enumerate(kept):
        assert torch.equal(waveforms, pad_sequence(rows(index), batch_first=True))
    assert num_mapped() >= len(kept)
    views = [waveforms[:1, :5] for waveforms in kept]
    del kept
    assert all(torch.equal(view, pad_sequence(rows(i), batch_first=True)[:1, :5]) for i, view in enumerate(views))


def test_memory_is_reused() -> None:
    shared_batches._MAPPED.clear()
    for batch in loaded():
        batch.waveforms.mul_(0)  # the receiver may change a batch
        del batch
    # Without reuse, 40 batches would need 40 pieces of memory. With reuse, memory is needed only for batches that a
    # loader process prepares, and for batches on their way to this process.
    assert 0 < num_mapped() <= 12


def test_memory_of_ended_loaders_is_released() -> None:
    shared_batches._MAPPED.clear()
    for _ in range(3):
        for _batch in loaded(workers=1):
            pass
        processes = {process for process, _ in shared_batches._MAPPED}
        assert len(processes) == 1
    gc.collect()
    mapped = Path("/proc/self/maps").read_text().count("memfd:batch")
    assert mapped <= num_mapped() + 1


def test_larger_batches_get_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_batches, "_LEAST_BYTES", 4096)
    test_batches_arrive_unchanged()


def test_a_fork_of_the_receiver_does_not_release_memory() -> None:
    batch = next(iter(loaded(workers=1)))
    ((_, mapped),) = [(key, value) for key, value in shared_batches._MAPPED.items() if value.memory[0]][:1]
    child = os.fork()
    if child == 0:
        del batch
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert mapped.memory[0] == 1
    assert torch.equal(batch.waveforms, pad_sequence(rows(0), batch_first=True))
