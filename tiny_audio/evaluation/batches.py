"""Load the clips of a set in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tiny_audio.audio.errors import AudioError
from tiny_audio.data.clips import Clip

_SHORTEST_S = 0.1
"""When batches are formed, shorter clips are treated as if they had this duration. This limits the number of clips in a
batch."""


@dataclass
class LoadedBatch:
    """The loaded clips of a batch, and the clips that could not be loaded."""

    clips: list[Clip] = field(default_factory=list)
    waveforms: list[Tensor] = field(default_factory=list)
    """Waveform ``[S]`` of each clip, on the CPU."""
    unread: list[tuple[Clip, AudioError]] = field(default_factory=list)


def batched(clips: Sequence[Clip], max_padded_s: float) -> Iterator[list[Clip]]:
    """Yield batches of at most ``max_padded_s`` seconds, including padding. A longer clip gets its own batch.

    The longest clips come first, so that a lack of memory is noticed immediately.
    """
    waiting = sorted(clips, key=lambda clip: (-clip.utterance.duration_s, clip.id))
    while waiting:
        size = max(1, int(max_padded_s / max(_SHORTEST_S, waiting[0].utterance.duration_s)))
        yield waiting[:size]
        waiting = waiting[size:]


def loaded_batches(clips: Sequence[Clip], *, max_duration_s: float, max_padded_s: float) -> Iterator[LoadedBatch]:
    """Load clips in the batches that :func:`batched` yields. A clip longer than ``max_duration_s`` is not loaded."""
    for batch in batched(clips, max_padded_s):
        loaded = LoadedBatch()
        for clip in batch:
            try:
                if clip.utterance.duration_s > max_duration_s:
                    seconds = f"lasts {clip.utterance.duration_s:g} s; at most {max_duration_s:g} s are allowed"
                    raise AudioError("too_long", f"{clip.id} {seconds}")
                loaded.waveforms.append(clip.load(max_duration_s))
                loaded.clips.append(clip)
            except AudioError as error:
                loaded.unread.append((clip, error))
        yield loaded
