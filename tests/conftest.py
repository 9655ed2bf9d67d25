"""Shared fixtures: recipes of tiny parts, clips and manifests.

The main process of pytest-xdist imports this file before it starts the workers. The main process does not need PyTorch,
so this file imports PyTorch only inside functions.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

# fsync protects files against power failures. Tests do not need fsync, which would take a tenth of the time of a run.
os.fsync = lambda descriptor: None

Document = dict[str, Any]
SAMPLE_RATE = 16_000
TEXTS = ("yes", "no", "stop now", "go on", "left", "turn right")


def pytest_collection() -> None:
    """Turn off garbage collection while tests are collected."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exclude all existing objects from garbage collection. Otherwise, each collection during the tests takes 0.7 s."""
    gc.freeze()
    gc.enable()


def tiny_recipe(folder: Path) -> Document:
    """Return a valid recipe of tiny parts as plain YAML values. Its data is ``manifest.jsonl`` in ``folder``."""
    from tiny_audio.decoders import DECODERS
    from tiny_audio.encoders import ENCODERS
    from tiny_audio.projectors import PROJECTORS

    encoder = ENCODERS.entry("whisper").config.tiny()
    projector = PROJECTORS.entry("swiglu").config.tiny()
    decoder = DECODERS.entry("smollm3").config.tiny()
    source = {"name": "manifest", "path": str(folder / "manifest.jsonl")}
    return {
        "encoder": {"name": "whisper", **encoder.model_dump(mode="json", exclude_unset=True)},
        "projector": {"name": "swiglu", **projector.model_dump(mode="json", exclude_unset=True)},
        "decoder": {"name": "smollm3", **decoder.model_dump(mode="json", exclude_unset=True)},
        "data": {"train": {"clips": source}, "evaluation": {"held_out": dict(source)}, "max_duration_s": 10.0},
        "batching": {"max_clips": 4},
        "training": {"steps": 20, "learning_rate": 1e-3, "warmup_steps": 2},
        "generation": {"max_new_tokens": 12},  # an untrained model does not stop by generating an end token
        "evaluation": {"encoder_system_clips": 0},
        "execution": {"device": "cpu", "log_every": 5},
    }


@pytest.fixture(scope="session", autouse=True)
def given_flops() -> Iterator[None]:
    """Give every run the same FLOPs, instead of counting them.

    Counting needs dry runs of the model, which take longer than training a tiny model. Only the runs in
    tests/training/test_ledger.py count their FLOPs.
    """
    with pytest.MonkeyPatch.context() as patch:
        # Do not import the module here, because that takes seconds.
        if train := sys.modules.get("tiny_audio.commands.run.train"):
            work = sys.modules["tiny_audio.plan.work"].Work((1e5, 1e7, 1e4), (1e5, 1e2, 1e4), 4, 10.0)
            patch.setattr(train, "work_of", lambda recipe, device: work)
        yield


@pytest.fixture(scope="session", autouse=True)
def folder_of_remote_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let transformers copy the code of exports to a folder of this process, and not to the user's cache.

    All tests of a process share the folder, because Python imports the package ``transformers_modules`` only once.
    """
    folder = str(tmp_path_factory.mktemp("remote_code"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", folder)
        if loaded := sys.modules.get("transformers.dynamic_module_utils"):
            patch.setattr(loaded, "HF_MODULES_CACHE", folder)
        yield


@pytest.fixture(scope="module")
def pauses_by_loudness() -> Iterator[None]:
    """Find pauses by loudness. The sounds of many tests are noise, which silero-vad does not classify as speech."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiny_audio.inference.chunking.silero", lambda: None)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread. Two threads are not faster on such small models, and much slower on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def document(tmp_path: Path) -> Document:
    return tiny_recipe(tmp_path)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    def write(content: Document | str | bytes, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        if isinstance(content, dict):
            content = json.dumps(content)  # JSON is valid YAML; PyYAML would write the string "1e-4" unquoted
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def write_clips(folder: Path, count: int, name: str = "manifest.jsonl") -> Path:
    """Write ``count`` clips and their manifest, and return the path of the manifest.

    The durations alternate between about 1.1 s and 0.6 s. Each word of the text is a tone, and each word has its own
    pitch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    rows = []
    for number in range(count):
        text = TEXTS[number % len(TEXTS)]
        samples = int(SAMPLE_RATE * (0.6 if number % 2 else 1.1)) + 160 * (number % 7)
        pitches = [200 + 37 * (sum(map(ord, word)) % 61) for word in text.split()]
        hz = np.repeat(pitches, -(-samples // len(pitches)))[:samples]
        waveform = 0.3 * np.sin(2 * np.pi * hz * np.arange(samples) / SAMPLE_RATE)
        path = folder / f"clip{number:03d}.{'flac' if number % 3 else 'wav'}"
        soundfile.write(path, waveform + 0.01 * rng.standard_normal(samples), SAMPLE_RATE)
        rows.append(manifest_row(path, text, samples / SAMPLE_RATE, speaker=f"s{number % 3}"))
    manifest = folder / name
    manifest.write_text("".join(rows))
    return manifest


def manifest_row(path: Path, text: str, duration_s: float, **metadata: str) -> str:
    row = {"audio_filepath": path.name, "duration": duration_s, "text": text, **metadata}
    return json.dumps(row) + "\n"


UNUSABLE = {
    "empty.wav": "empty",
    "one_sample.wav": "too_short",
    "nan.wav": "non_finite",
    "cut_off.flac": "truncated",
    "text.wav": "undecodable",
    "forged.wav": "truncated",
}
"""Unusable files of :func:`write_odd_clips`, each with the reason for which it is dropped."""
UNUSUAL = ("stereo.wav", "8khz.wav", "48khz.wav", "10_channels.wav")
"""Usable files of :func:`write_odd_clips`."""


def write_odd_clips(folder: Path) -> None:
    """Write a file for each name in UNUSABLE and UNUSUAL. The usable files have 1 s of audio."""
    folder.mkdir(parents=True, exist_ok=True)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "one_sample.wav", tone[:1], SAMPLE_RATE)
    soundfile.write(folder / "nan.wav", np.where(np.arange(SAMPLE_RATE) == 99, np.nan, tone), SAMPLE_RATE, "FLOAT")
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE)
    soundfile.write(folder / "cut_off.flac", noise, SAMPLE_RATE)
    whole = (folder / "cut_off.flac").read_bytes()
    (folder / "cut_off.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "text.wav").write_text("this is no audio at all\n" * 50)
    soundfile.write(folder / "forged.wav", tone, SAMPLE_RATE)
    forged = bytearray((folder / "forged.wav").read_bytes())
    forged[40:44] = (200_000_000).to_bytes(4, "little")  # the length of the data chunk
    (folder / "forged.wav").write_bytes(forged)
    soundfile.write(folder / "stereo.wav", np.stack([tone, tone], axis=1), SAMPLE_RATE)
    soundfile.write(folder / "8khz.wav", tone[::2], SAMPLE_RATE // 2)
    soundfile.write(folder / "48khz.wav", np.repeat(tone, 3), SAMPLE_RATE * 3)
    soundfile.write(folder / "10_channels.wav", np.stack([tone] * 10, axis=1), SAMPLE_RATE)


def changed(document: Document, **changes: Any) -> Document:
    """Return the recipe with some fields replaced. Two underscores stand for a dot: ``training__steps=3``."""
    document = copy.deepcopy(document)
    for place, value in changes.items():
        *sections, field = place.split("__")
        here = document
        for section in sections:
            here = here.setdefault(section, {})
        here[field] = value
    return document
