"""Padded training batches of a planned epoch.

Loader processes make the batches. They load and augment the clips, and encode the transcripts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, get_worker_info

from tiny_audio.audio.errors import AudioError
from tiny_audio.data.augmentation import AugmentationConfig, augment_waveform, clip_seed
from tiny_audio.data.clips import Clip, Clips
from tiny_audio.data.contexts import TrainingContexts
from tiny_audio.data.order import EpochPlan
from tiny_audio.data.shared_batches import SUPPORTED, SharedBatches
from tiny_audio.data.target_encoder import Target, TargetEncoder, TargetError
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.sources import Dropped


@dataclass(frozen=True)
class Batch:
    """One padded batch.

    B: number of clips. S: number of samples of the longest clip.
    """

    waveforms: Tensor
    """``[B, S]`` float32 at 16 kHz, padded with zeros."""
    lengths: Tensor
    """``[B]`` int64: number of samples of each clip, without padding."""
    targets: list[Tensor]
    """For each clip, the token ids to predict. The last id is the end token."""
    ctc_targets: list[list[int]] | None
    """For each clip, the CTC labels to predict. None if there is no CTC head."""
    seeds: list[int]
    """For each clip, the seed of its augmentation."""
    contexts: list[tuple[int, ...]] | None = None
    """For each clip, the token ids of its context (see :class:`tiny_audio.data.contexts.TrainingContexts`). None if the
    recipe has no contexts."""
    dropped: list[Dropped] = field(default_factory=list)
    """Planned clips of this batch that could not be used."""

    def __getstate__(self) -> dict[str, Any]:
        # Send short tensors as lists. Otherwise, each tensor would get its own shared memory, which takes longer.
        targets, lengths = [row.tolist() for row in self.targets], self.lengths.tolist()
        return {**self.__dict__, "targets": targets, "lengths": lengths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        targets, lengths = map(torch.tensor, state["targets"]), torch.tensor(state["lengths"], dtype=torch.long)
        self.__dict__.update({**state, "targets": list(targets), "lengths": lengths})

    @property
    def audio_s(self) -> float:
        """Seconds of audio, without padding."""
        return int(self.lengths.sum()) / SAMPLE_RATE

    @property
    def padded_s(self) -> float:
        """Seconds of audio, padding included."""
        return self.waveforms.numel() / SAMPLE_RATE

    def pin_memory(self) -> Batch:
        """Return a page-locked copy, for asynchronous transfers to a GPU. The DataLoader calls this method."""
        return replace(
            self,
            waveforms=self.waveforms.pin_memory(),
            lengths=self.lengths.pin_memory(),
            targets=[row.pin_memory() for row in self.targets],
        )

    def to(self, device: torch.device) -> Batch:
        """Return a copy on another device."""
        return replace(
            self,
            waveforms=self.waveforms.to(device, non_blocking=True),
            lengths=self.lengths.to(device, non_blocking=True),
            targets=[row.to(device, non_blocking=True) for row in self.targets],
        )


class PlannedBatches(Dataset[Batch]):
    """The batches of one planned epoch. Batch k does not depend on the number of loader processes.

    Each training process takes a slice of every planned batch: the clips with the indices ``rank``,
    ``rank + world_size``, and so on. The clips of a batch are sorted by duration, so all slices take about the same
    time. If a batch has fewer clips than there are processes, some slices are empty.
    """

    def __init__(
        self,
        clips: Clips,
        plan: EpochPlan,
        target_encoder: TargetEncoder,
        augmentation: AugmentationConfig,
        max_duration_s: float,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        contexts: TrainingContexts | None = None,
    ) -> None:
        self.clips = clips
        self.plan = plan
        self.target_encoder = target_encoder
        self.augmentation = augmentation
        self.max_duration_s = max_duration_s
        self.seed = seed
        self.epoch = epoch
        self.contexts = contexts
        self.part = slice(rank, None, world_size)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, k: int) -> Batch:
        with _one_thread():
            return self._batch(k)

    def _batch(self, k: int) -> Batch:
        waveforms: list[Tensor] = []
        targets: list[Target] = []
        seeds: list[int] = []
        contexts: list[tuple[int, ...]] = []
        dropped: list[Dropped] = []
        for index, repeat in zip(self.plan[k][self.part], self.plan.repeats_of(k)[self.part], strict=True):
            clip = self.clips[int(index)]
            seed = clip_seed(self.seed, self.epoch, clip.id, int(repeat))
            try:
                waveform, target = self._example(clip, seed)
            except (AudioError, TargetError) as error:
                dropped.append(Dropped(clip.id, error.reason, str(error)))
                continue
            waveforms.append(waveform)
            targets.append(target)
            seeds.append(seed)
            if self.contexts is not None:
                contexts.append(self.contexts.ids(self.clips, int(index), seed))
        return Batch(
            waveforms=_padded(waveforms),
            lengths=torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.long),
            targets=[torch.tensor(target.ids) for target in targets],
            ctc_targets=None if self.target_encoder.ctc is None else [target.ctc_labels or [] for target in targets],
            seeds=seeds,
            contexts=None if self.contexts is None else contexts,
            dropped=dropped,
        )

    def _example(self, clip: Clip, seed: int) -> tuple[Tensor, Target]:
        """Return an augmented waveform ``[S]`` and its target.

        Raises:
            AudioError, TargetError: the clip cannot be used.
        """
        text, encode = clip.utterance.text, self.target_encoder.encode
        recorded = clip.load(self.max_duration_s)
        waveform = augment_waveform(self.augmentation, recorded, seed, self.max_duration_s)
        try:
            return waveform, encode(text, len(waveform))
        except TargetError:
            if len(waveform) >= len(recorded):
                raise
        # A higher speed made the clip shorter, perhaps too short for its text. Use the recorded speed instead.
        as_recorded = self.augmentation.model_copy(update={"speed": None})
        waveform = augment_waveform(as_recorded, recorded, seed, self.max_duration_s)
        return waveform, encode(text, len(waveform))


def _padded(waveforms: list[Tensor]) -> Tensor:
    """Pad the waveforms with zeros to a tensor ``[B, S]``.

    Loader processes return :class:`SharedBatches` instead. The training process unpickles it and gets the tensor.
    """
    if not waveforms:
        return torch.zeros(0, 0)
    if SUPPORTED and get_worker_info() is not None:
        return cast(Tensor, SharedBatches(waveforms))
    return pad_sequence(waveforms, batch_first=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, as in loader processes. The number of threads changes the last bits of resampled audio."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
