"""The contract of augmentations. Each section of ``augmentation`` in a recipe is one augmentation."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tiny_audio.config import Config
from tiny_audio.data.sounds import sounds_in
from tiny_audio.frames import Frames


@dataclass(frozen=True)
class Draw:
    """Random state and bounds for the augmentation of one clip."""

    rng: random.Random
    seed: int
    """The seed of ``rng``, for other random generators."""
    loudness: Tensor
    """Root mean square of the clip before silence is added."""
    max_duration_s: float
    """Maximum duration of a clip with added silence."""

    def sound(self, folder: str) -> Tensor | None:
        """Return a random sound ``[S]`` of a folder, or None if its file is damaged."""
        sounds = sounds_in(folder)
        return sounds.load(self.rng.randrange(len(sounds.names)))


class WaveformAugmentation(Config, ABC):
    """Base class of the sections that change the waveforms of a random share of the clips."""

    probability: float
    """Share of the clips that are changed."""

    @abstractmethod
    def apply(self, waveform: Tensor, draw: Draw) -> Tensor:
        """Return the changed waveform ``[S]`` of a clip. All random numbers come from ``draw``.

        The result must not be longer than ``draw.max_duration_s``. If the clip is longer already, its length must not
        increase.
        """

    def max_added_s(self) -> float:
        """Return the maximum duration in seconds that the section adds to a clip.

        Sections that make clips longer override this method. The result is used to estimate the needed memory.
        """
        return 0.0

    def added_s(self, duration_s: float, rng: random.Random, max_duration_s: float) -> float:
        """Return the duration in seconds that :meth:`apply` will add to a clip. The audio is not loaded yet.

        Batches are planned with this duration. Sections that make clips longer override this method.

        Args:
            duration_s: duration of the clip before this section.
            rng: a generator in the same state as ``draw.rng`` in :meth:`apply`. If an earlier section draws random
                numbers and does not override this method, the state differs, and the result is only an estimate.
            max_duration_s: see ``draw.max_duration_s``.
        """
        return 0.0

    def sounds_folder(self) -> str | None:
        """Return the folder of sounds that the section reads, or None if it reads no sounds.

        Sections with a field ``folder`` override this method.
        """
        return None


class FeatureAugmentation(Config, ABC):
    """Base class of the sections that change the encoder's features, between its front end and its layers."""

    @abstractmethod
    def apply(self, features: Frames, seeds: Sequence[int]) -> Frames:
        """Return the changed features ``[B, T, C]`` of a batch (T frames, C channels). Lengths stay the same.

        The result for a clip depends only on the clip and its seed, not on the batch or its padding.

        Args:
            seeds: the seed of each clip, see :func:`tiny_audio.data.augmentation.clip_seed`.
        """


def ascending(span: tuple[float, float]) -> tuple[float, float]:
    """Check a range in a validator, and return the range.

    Raises:
        ValueError: the first value is above the second.
    """
    if span[0] > span[1]:
        raise ValueError(f"must be a range [lowest, highest], but {span[0]} is above {span[1]}")
    return span


def rms(waveform: Tensor) -> Tensor:
    """Return the root mean square of a waveform ``[S]``."""
    return waveform.pow(2).mean().sqrt()
