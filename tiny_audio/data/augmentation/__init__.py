"""Augment training clips.

Results do not depend on the number of loader processes or on restarts.

To add an augmentation, write one file here with a subclass of ``WaveformAugmentation`` or ``FeatureAugmentation`` (see
``section.py``), and add a field to :class:`AugmentationConfig`. Fields of the same kind are applied in the order in
which they are defined.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence

from pydantic import PositiveFloat, field_validator
from torch import Tensor

from tiny_audio.config import Config, UserError
from tiny_audio.data.augmentation.noise import NoiseConfig, WhiteNoiseConfig
from tiny_audio.data.augmentation.reverberation import ReverberationConfig, SimulatedReverberationConfig
from tiny_audio.data.augmentation.section import Draw, FeatureAugmentation, WaveformAugmentation, rms
from tiny_audio.data.augmentation.silence import SilenceConfig
from tiny_audio.data.augmentation.spec_augment import SpecAugmentConfig
from tiny_audio.data.sounds import sounds_in
from tiny_audio.encoders import FeatureTransform
from tiny_audio.frames import Frames


class AugmentationConfig(Config):
    """Augmentation of training clips. It is off by default.

    Speed is changed first. Then the other sections that change waveforms are applied, in the order of the fields.
    Sections that change features, such as SpecAugment, are applied last.
    """

    spec_augment: SpecAugmentConfig | None = None
    speed: tuple[PositiveFloat, ...] | None = None
    """Speed factors, such as ``[0.9, 1.0, 1.1]``. One of them is drawn for each clip. Pitch changes with speed (Ko et
    al. 2015)."""
    silence: SilenceConfig | None = None
    reverberation: ReverberationConfig | None = None
    simulated_reverberation: SimulatedReverberationConfig | None = None
    noise: NoiseConfig | None = None
    white_noise: WhiteNoiseConfig | None = None

    @field_validator("speed")
    @classmethod
    def _check_speed(cls, speed: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if speed is not None and (not speed or min(speed) < 0.5 or max(speed) > 2):
            raise ValueError(f"needs factors between 0.5 and 2, such as [0.9, 1.0, 1.1], not {list(speed)}")
        return speed

    def longest_s(self, duration_s: float, max_duration_s: float) -> float:
        """Return the maximum duration that a clip of ``duration_s`` can have after augmentation.

        Only a change of speed can make a clip longer than ``max_duration_s``.
        """
        slowed = duration_s / min(*self.speeds(), 1.0)
        added = sum(section.max_added_s() for section in self.sections())
        return max(slowed, min(slowed + added, max_duration_s))

    def shortest_s(self, duration_s: float) -> float:
        """Return the minimum duration that a clip of ``duration_s`` can have after augmentation."""
        return duration_s / max(*self.speeds(), 1.0)

    @property
    def changes_durations(self) -> bool:
        """Whether the duration of a clip can change."""
        return self.speed is not None or any(section.max_added_s() for section in self.sections())

    def duration_s(self, duration_s: float, seed: int, max_duration_s: float) -> float:
        """Return the duration of a clip after :func:`augment_waveform` with the same seed. The audio is not needed.

        Only the sections that make clips longer draw their random numbers here. They are applied before all other
        sections, so they draw the same numbers as in :func:`augment_waveform`.
        """
        rng = random.Random(seed)
        duration_s /= self.drawn_speed(rng)
        for section in self.sections():
            if rng.random() < section.probability:
                duration_s += section.added_s(duration_s, rng, max_duration_s)
        return duration_s

    def speeds(self) -> tuple[float, ...]:
        """Return the speed factors, rounded to 0.01, or (1.0,) if there are none. Rounding keeps resampling fast."""
        return tuple(round(factor * 100) / 100 for factor in self.speed or (1.0,))

    def drawn_speed(self, rng: random.Random) -> float:
        """Draw a speed factor."""
        return rng.choice(self.speeds()) if self.speed else 1.0

    def folders(self) -> dict[str, str]:
        """Return the folders of sounds, by name of the section that uses the folder."""
        sections = {name: section for name, section in self if isinstance(section, WaveformAugmentation)}
        folders = {name: section.sounds_folder() for name, section in sections.items()}
        return {name: folder for name, folder in folders.items() if folder is not None}

    def sections(self) -> list[WaveformAugmentation]:
        """Return the sections that change waveforms after the change of speed, in the order of application."""
        return [section for _, section in self if isinstance(section, WaveformAugmentation)]

    def of_features(self, seeds: Sequence[int]) -> FeatureTransform | None:
        """Return a function that changes the features of a batch of clips, or None if no section does this.

        Args:
            seeds: the seed of each clip, see :func:`clip_seed`.
        """
        sections = [section for _, section in self if isinstance(section, FeatureAugmentation)]

        def transform(features: Frames) -> Frames:
            for section in sections:
                features = section.apply(features, seeds)
            return features

        return transform if sections else None


def sounds_fingerprint(config: AugmentationConfig) -> str | None:
    """Return a hash of all sounds that augmentation uses, or None if it uses no sounds.

    Raises:
        UserError: a folder or a file in it cannot be used. The message names the section.
    """
    fingerprints = {}
    for section, folder in config.folders().items():
        try:
            sounds = sounds_in(folder)
            sounds.check()
        except UserError as error:
            raise UserError(f"augmentation.{section}.folder: {error}") from error
        fingerprints[section] = sounds.fingerprint
    return hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest() if fingerprints else None


def clip_seed(seed: int, epoch: int, clip_id: str, repeat: int = 0) -> int:
    """Return the seed of a clip in an epoch. Unlike Python's ``hash``, it is the same on every machine.

    Args:
        repeat: number of the clip's occurrence in this epoch, counted from 0.
    """
    again = f"/{repeat}" if repeat else ""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{clip_id}{again}".encode()).digest()[:8], "big")


def augment_waveform(
    config: AugmentationConfig, waveform: Tensor, seed: int, max_duration_s: float = math.inf
) -> Tensor:
    """Augment one clip ``[S]``.

    For a given config, the result depends only on the clip, its seed, and the names and content of the sounds.

    Args:
        max_duration_s: maximum duration of a clip with added silence.
    """
    rng = random.Random(seed)
    factor = config.drawn_speed(rng)
    if factor != 1.0:
        import torchaudio

        # Resampling changes the speed.
        waveform = torchaudio.functional.resample(waveform, round(factor * 100), 100)
    draw = Draw(rng, seed, rms(waveform), max_duration_s)
    for section in config.sections():
        if rng.random() < section.probability:
            waveform = section.apply(waveform, draw)
    return waveform
