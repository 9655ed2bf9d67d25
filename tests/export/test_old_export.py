"""The current version can load an export of an earlier version, and gives the same texts as the earlier version.

The exported model has Whisper and SmolLM3 parts with adapters, and a CTC head. It was trained on the four short clips
of ``waveforms``. The export also contains the code of the earlier version. ``old_export.json`` has the expected texts.
Only the text of the long recording with ``--no-filters`` is not from the earlier version, which left out its pauses.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.support.remote_code import offline, run_here
from tiny_audio.cli import main
from tiny_audio.export.load import load_model

EXPECTED = json.loads(Path(__file__).with_name("old_export.json").read_text())

PIPELINE = """
import json, sys
import numpy as np
from transformers import pipeline

recognizer = pipeline("automatic-speech-recognition", model=sys.argv[1], trust_remote_code=True)
waveforms = np.load(sys.argv[2])
assert type(recognizer.model).__module__.startswith("transformers_modules.")
assert "tiny_audio" not in sys.modules
print(json.dumps({name: recognizer(waveforms[name])["text"] for name in waveforms.files}))
"""


def syllables(seed: int) -> np.ndarray[Any, Any]:
    """Return ten short sounds of tones and noise, separated by silence. Each sound has its own volume and pitches."""
    generator = np.random.default_rng(seed)
    parts = []
    for _ in range(10):
        size = int(generator.integers(1_000, 2_500))
        time = np.arange(size) / 16_000
        tones = sum(np.sin(2 * np.pi * hz * time) for hz in generator.uniform(150, 5_000, size=3))
        fade = np.sin(np.pi * np.arange(size) / size)
        parts += [generator.uniform(0.05, 0.2) * fade * (tones + generator.normal(0, 0.3, size)), np.zeros(400)]
    return np.concatenate(parts).astype(np.float32)


@cache
def waveforms() -> dict[str, np.ndarray[Any, Any]]:
    clips = [syllables(seed) for seed in range(4)]
    pause = np.zeros(16_000, np.float32)
    long = np.concatenate([part for _ in range(4) for one in clips for part in (one, pause)])
    return dict(zip(("first", "second", "third", "fourth"), clips, strict=True)) | {"long": long, "silence": pause}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("old_export")
    shutil.unpack_archive(Path(__file__).with_name("old_export.zip"), place)
    return place


def test_the_export_can_be_loaded(folder: Path) -> None:
    model, tokenizer = load_model(folder)
    for name in ("first", "second", "third", "fourth"):
        waveform = torch.from_numpy(waveforms()[name])
        (transcript,) = model.transcribe(waveform[None], torch.tensor([len(waveform)]), tokenizer)
        assert transcript.text == transcript.ctc_text == EXPECTED["pipeline"][name]


@pytest.mark.usefixtures("pauses_by_loudness")
@pytest.mark.parametrize("flags", [[], ["--no-filters"]], ids=["filtered", "unfiltered"])
def test_the_export_can_transcribe(
    folder: Path, flags: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for name, waveform in waveforms().items():
        paths.append(str(tmp_path / f"{name}.wav"))
        soundfile.write(paths[-1], waveform, 16_000, subtype="FLOAT")
    assert main(["transcribe", str(folder), *paths, "--format", "json", *flags]) == 0
    rows = dict(zip(waveforms(), json.loads(capsys.readouterr().out), strict=True))
    if flags:
        assert {name: row["text"] for name, row in rows.items()} == EXPECTED["transcribe --no-filters"]
    else:
        segments = {name: [[one["text"], one["suppressed"]] for one in row["segments"]] for name, row in rows.items()}
        assert segments == EXPECTED["transcribe"]


def test_a_pipeline_can_use_the_code_of_the_export(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "waveforms.npz", **waveforms())
    arguments = (folder, tmp_path / "waveforms.npz")
    assert run_here(PIPELINE, *arguments, cwd=tmp_path, **offline(tmp_path)) == EXPECTED["pipeline"]
