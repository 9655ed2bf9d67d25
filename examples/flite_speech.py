"""Synthesize sentences with the voices of Flite, and write a manifest for training.

    sudo apt-get install flite      # Debian and Ubuntu
    python examples/flite_speech.py sentences.txt --first 0 --number 2500 --output-dir flite
    tiny-audio run open_vocabulary data.train.flite='{name: manifest, path: flite/manifest.jsonl}' …

Flite adds variety to the voices of espeak-ng: three of Flite's voices (awb, rms, slt) are statistical models of
real speakers of the CMU Arctic corpus. Speaking rate, pitch, formants, level and noise are random. Flite and its voices
may be used and redistributed freely (licenses in /usr/share/doc/flite).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import sys
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
VOICES = ("kal16", "awb", "rms", "slt")


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
    """Flite's shared library with its voices."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
        for name in ("cmulex", "usenglish"):
            ctypes.CDLL(f"libflite_{name}.so.1", mode=ctypes.RTLD_GLOBAL)
        self._library.flite_init()
        self._library.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        self._library.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
        self._library.flite_feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
        self._library.delete_wave.argtypes = [ctypes.c_void_p]
        self._voices = {name: self._load(name) for name in VOICES}

    def _load(self, name: str) -> ctypes._Pointer[_Voice]:
        register = getattr(ctypes.CDLL(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
        register.argtypes, register.restype = [ctypes.c_char_p], ctypes.POINTER(_Voice)
        found: ctypes._Pointer[_Voice] = register(None)
        return found

    def say(self, text: str, voice: str, stretch: float) -> np.ndarray:
        """Return the waveform ``[S]`` at 16 kHz. A larger ``stretch`` gives slower speech."""
        pointer = self._voices[voice]
        self._library.flite_feat_set_float(pointer.contents.features, b"duration_stretch", stretch)
        wave = self._library.flite_text_to_wave(text.encode(), ctypes.cast(pointer, ctypes.c_void_p))
        found = wave.contents
        assert found.sample_rate == RATE
        samples = np.ctypeslib.as_array(found.samples, (found.num_samples,)) / 32_768
        self._library.delete_wave(wave)
        return samples


def varied(audio: np.ndarray, index: int, rng: random.Random) -> np.ndarray:
    """Change the pitch, the formants and the level of a clip, and add noise with a color between white and pink."""
    factor, noise_rng = rng.uniform(0.9, 1.12), np.random.default_rng([7, index])
    audio = np.interp(np.arange(int(len(audio) / factor)) * factor, np.arange(len(audio)), audio)
    spectrum = np.fft.rfft(noise_rng.standard_normal(len(audio)))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** (-rng.random() / 2)
    noise = np.fft.irfft(spectrum, n=len(audio))
    audio = audio + noise * np.sqrt(np.mean(audio**2) / np.mean(noise**2) / 10 ** (rng.uniform(10, 40) / 10))
    return np.asarray(audio * 10 ** (rng.uniform(-20, -1) / 20) / np.abs(audio).max())


def main() -> int:
    """Write the clips and the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path, help="text file with one sentence per line")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0, help="index of the first sentence")
    parser.add_argument("--number", type=int, default=2500, help="number of sentences")
    options = parser.parse_args()
    lines = options.sentences.read_text(encoding="utf-8").splitlines()[options.first :][: options.number]
    flite, rows = Flite(), []
    for index, text in enumerate(lines):
        rng = random.Random(f"f{index}")
        voice = rng.choice(VOICES)
        audio = varied(flite.say(text, voice, rng.uniform(0.75, 1.25)), index, rng)
        path = Path(f"{index // 1000:03d}") / f"{index:06d}.flac"
        (options.output_dir / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(options.output_dir / path, audio.astype(np.float32), RATE)
        duration_s = len(audio) / RATE
        rows.append({"audio_filepath": str(path), "duration": duration_s, "text": text, "speaker": f"flite-{voice}"})
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (options.output_dir / "manifest.jsonl").write_text(text, encoding="utf-8")
    print(f"{len(rows):,} clips, {sum(row['duration'] for row in rows) / 3600:.2f} hours")
    return 0


if __name__ == "__main__":
    sys.exit(main())
