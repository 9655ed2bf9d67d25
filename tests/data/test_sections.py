"""All sections of the augmentation that change waveforms: the durations of the augmented clips, and folders of sounds.

The last test defines a new section.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import get_args

import pytest
import soundfile
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from tests.data.tones import RATE, tone
from tiny_audio.config import LocalPath, expand_path
from tiny_audio.data.augmentation import AugmentationConfig, augment_waveform, sounds_fingerprint
from tiny_audio.data.augmentation.section import Draw, WaveformAugmentation

SECTIONS: dict[str, type[WaveformAugmentation]] = {
    name: kind
    for name, field in AugmentationConfig.model_fields.items()
    for kind in get_args(field.annotation)
    if isinstance(kind, type) and issubclass(kind, WaveformAugmentation)
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one sound of 0.2 s to a folder. Return the folder."""
    folder = tmp_path_factory.mktemp("sounds")
    soundfile.write(folder / "tone.wav", tone(0.2).numpy(), RATE)
    return folder


def paths_of(kind: type[WaveformAugmentation]) -> list[str]:
    return [name for name, field in kind.model_fields.items() if AfterValidator(expand_path) in field.metadata]


def config_of(name: str, folder: Path) -> AugmentationConfig:
    kind = SECTIONS[name]
    fields = {**dict.fromkeys(paths_of(kind), str(folder)), "probability": 1.0}
    return AugmentationConfig(**{name: kind.model_validate(fields)})


@pytest.mark.parametrize("name", SECTIONS)
def test_the_folder_of_a_section_is_known(name: str, folder: Path) -> None:
    config, paths = config_of(name, folder), paths_of(SECTIONS[name])
    assert paths in ([], ["folder"]), "error messages call the field `folder`"
    assert config.folders() == ({name: str(folder)} if paths else {})
    assert (sounds_fingerprint(config) is not None) == bool(paths)


@pytest.mark.parametrize("max_duration_s", [0.4, 0.6, math.inf])
@pytest.mark.parametrize("name", SECTIONS)
def test_clips_become_at_most_as_long_as_planned(name: str, max_duration_s: float, folder: Path) -> None:
    config = config_of(name, folder)
    longest = max(len(augment_waveform(config, tone(0.5), seed, max_duration_s)) for seed in range(10))
    assert longest <= round(config.longest_s(0.5, max_duration_s) * RATE)


@pytest.mark.parametrize("max_duration_s", [0.4, 0.6, math.inf])
@pytest.mark.parametrize("speed", [None, (0.5, 0.906, 1.0, 1.3)])
@pytest.mark.parametrize("name", SECTIONS)
def test_the_duration_after_augmentation_is_known_before(
    name: str, speed: tuple[float, ...] | None, max_duration_s: float, folder: Path
) -> None:
    config = config_of(name, folder).model_copy(update={"speed": speed})
    for seed in range(10):
        planned_s = config.duration_s(0.5, seed, max_duration_s)
        samples = len(augment_waveform(config, tone(0.5), seed, max_duration_s))
        assert samples == pytest.approx(planned_s * RATE, abs=3)
        assert config.changes_durations or planned_s == 0.5


def test_no_section_that_draws_numbers_comes_before_one_that_adds_audio(folder: Path) -> None:
    # duration_s calls only added_s, which draws no random numbers in a section that adds no audio. augment_waveform
    # calls apply, which may draw some. Then the two would draw different numbers for a later section that adds audio.
    adds = [bool(config_of(name, folder).sections()[0].max_added_s()) for name in SECTIONS]
    assert adds == sorted(adds, reverse=True)
    assert any(adds)


class Jingle(WaveformAugmentation):
    """A sound after each clip."""

    folder: LocalPath
    probability: float = Field(default=1.0, gt=0, le=1)

    def apply(self, waveform: Tensor, draw: Draw) -> Tensor:
        sound = draw.sound(self.folder)
        assert sound is not None
        return torch.cat([waveform, sound])

    def max_added_s(self) -> float:
        return 0.2

    def added_s(self, duration_s: float, rng: random.Random, max_duration_s: float) -> float:
        return 0.2

    def sounds_folder(self) -> str:
        return self.folder


class MoreAugmentation(AugmentationConfig):
    jingle: Jingle | None = None


def test_a_new_section_needs_only_a_field(folder: Path) -> None:
    config = MoreAugmentation.model_validate({"jingle": {"folder": str(folder)}, "silence": {"max_after_s": 0.5}})
    assert config.folders() == {"jingle": str(folder)}
    assert config.longest_s(1.0, 10.0) == pytest.approx(2.0)
    assert config.changes_durations
    assert config.duration_s(1.0, 0, 10.0) * RATE == pytest.approx(len(augment_waveform(config, tone(1.0), 0)), abs=3)
    assert sounds_fingerprint(config) is not None
    assert len(augment_waveform(config, tone(1.0), seed=0)) >= 1.2 * RATE
