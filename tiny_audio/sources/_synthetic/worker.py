"""Synthesize speech in a worker process.

``python -m tiny_audio.sources._synthetic.worker`` reads a job from stdin and writes FLAC files. The license of
espeak-ng is GPL-3, so espeak-ng runs in a separate process. This process does not load torch or the caller's modules.
Unlike with multiprocessing, the caller's script needs no ``if __name__ == "__main__"``. When the parent process ends,
stdin is closed, and this process ends too.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from tiny_audio.sources._synthetic import grammar
from tiny_audio.sources._synthetic.espeak import RATE_HZ, Delivery, Espeak
from tiny_audio.sources._synthetic.voices import ACCENTS

SAMPLE_RATE = 16_000
GROUP = 20
"""Number of utterances in a group. espeak-ng is loaded anew for each group. Loading it for every utterance would double
the time."""
_FILES_PER_FOLDER = 1_000
_KEEP_SILENCE_S = 0.1
"""Seconds of silence to keep before and after the speech."""
_SILENCE = 10 ** (-45 / 20)
"""Maximum amplitude of silence, relative to the peak of the utterance (-45 dB)."""
_ROLL_OFF_HZ = 7_200
"""Frequency at which the response of the anti-aliasing filter starts to fall. The response reaches zero at 8 kHz."""
_FAST_SIZES = sorted(2**a * 3**b * 5**c for a in range(20) for b in range(3) for c in range(3))


@dataclass(frozen=True, slots=True)
class Job:
    """The work of one worker process: every ``num_workers``-th group of utterances, starting with group ``worker``."""

    folder: str
    worker: int
    num_workers: int
    num_utterances: int
    seed: int
    grammars: list[str]
    accents: list[str]
    voices: list[str]
    sentences: str
    """Which sentences of the grammars to use: ``train``, ``held_out`` or ``all``."""
    sentence_file: str | None
    """File in ``folder`` with sentences to use instead of the grammars. Each line has a transcript, a tab, and the text
    for espeak-ng."""
    split_file: str | None
    """File in ``folder`` that :func:`grammar.save_split` wrote. None if all sentences are used or ``sentence_file`` is
    set."""
    rate_wpm: tuple[int, int]
    pitch: tuple[int, int]
    pitch_range: tuple[int, int]
    word_gap_ms: tuple[int, int]
    peak_dbfs: tuple[float, float]
    noise_snr_db: tuple[float, float] | None


class SentenceFile:
    """The sentences of a file. Each sentence is spoken once before any sentence is repeated.

    Args:
        path: the file, see ``Job.sentence_file``.
        seed: determines the order of the sentences.
    """

    def __init__(self, path: Path, seed: int) -> None:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        self._pairs = [line.split("\t") for line in lines]
        self._seed, self._round, self._order = seed, -1, list(range(len(lines)))

    def pair(self, index: int) -> tuple[str, str]:
        """Return the transcript of utterance ``index`` and its text for espeak-ng."""
        number, position = divmod(index, len(self._pairs))
        if number != self._round:
            self._round, self._order = number, list(range(len(self._pairs)))
            random.Random(f"{self._seed}: round {number} of the sentences").shuffle(self._order)
        label, text = self._pairs[self._order[position]]
        return label, text


def make(
    job: Job, index: int, espeak: Espeak, sentences: SentenceFile | None = None
) -> tuple[npt.NDArray[np.float32], dict[str, object]]:
    """Return the audio at 16 kHz and the manifest row of utterance ``index``.

    For given settings, the text and the delivery depend only on the seed and the index.
    """
    rng = random.Random(f"{job.seed}:{index}")
    if sentences is None:
        line = _line(job, rng)
        label, text = grammar.written(line), grammar.spoken(line)
    else:
        label, text = sentences.pair(index)
    accent, voice = rng.choice(job.accents), rng.choice(job.voices)
    delivery = Delivery(
        voice=f"{ACCENTS[accent]}+{voice}",
        rate_wpm=rng.randint(*job.rate_wpm),
        pitch=rng.randint(*job.pitch),
        pitch_range=rng.randint(*job.pitch_range),
        word_gap_ms=rng.randint(*job.word_gap_ms),
    )
    audio = _trimmed(_resampled(espeak.say(text, delivery)))
    if job.noise_snr_db is not None:
        noise_rng = np.random.default_rng([job.seed, index])
        audio = audio + _noise(audio, rng.uniform(*job.noise_snr_db), rng.uniform(0.0, 1.0), noise_rng)
    audio *= 10 ** (rng.uniform(*job.peak_dbfs) / 20) / np.abs(audio).max()
    row: dict[str, object] = {
        "audio_filepath": f"{index // _FILES_PER_FOLDER:04d}/{index:07d}.flac",
        "duration": len(audio) / SAMPLE_RATE,
        "text": label,
        "speaker": f"{accent}+{voice}",
        "accent": accent,
        "voice": voice,
    }
    return audio.astype(np.float32), row


def _line(job: Job, rng: random.Random) -> str:
    make_line = grammar.GRAMMARS[rng.choice(job.grammars)]
    # For each grammar, at least 5 % of the lines are on each side, so 10,000 draws find a line of the requested side.
    for _ in range(10_000):
        line = make_line(rng)
        if job.sentences == "all" or grammar.is_held_out(grammar.written(line)) == (job.sentences == "held_out"):
            return line
    raise AssertionError(f"no sentence of {job.grammars} is on the requested side of the split")


def _resampled(audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Resample from 22,050 to 16,000 Hz in the frequency domain. Frequencies above ``_ROLL_OFF_HZ`` are attenuated.

    torchaudio is not used, because importing torch would take seconds.
    """
    # 22,050 / 16,000 = 441 / 320, so a block of 441 samples becomes 320 samples. The transform is fast if the number of
    # blocks has no large prime factors.
    blocks = next(size for size in _FAST_SIZES if size * 441 > len(audio))
    spectrum = np.fft.rfft(audio, n=blocks * 441)[: blocks * 160 + 1]
    frequencies = np.linspace(0, SAMPLE_RATE / 2, len(spectrum))
    fall = np.clip((frequencies - _ROLL_OFF_HZ) / (SAMPLE_RATE / 2 - _ROLL_OFF_HZ), 0, 1)
    spectrum *= 0.5 * (1 + np.cos(np.pi * fall)) * (SAMPLE_RATE / RATE_HZ)
    return np.fft.irfft(spectrum, n=blocks * 320)


def _trimmed(audio: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    loud = np.flatnonzero(np.abs(audio) > _SILENCE * np.abs(audio).max())
    assert len(loud), "espeak-ng gave silence"
    keep = int(_KEEP_SILENCE_S * SAMPLE_RATE)
    return audio[max(0, loud[0] - keep) : loud[-1] + 1 + keep]


def _noise(
    audio: npt.NDArray[np.float64], snr_db: float, slope: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return stationary noise whose mean power is ``snr_db`` below that of the speech.

    Args:
        slope: the kind of noise, from 0 (white) to 1 (pink).
    """
    spectrum = np.fft.rfft(rng.standard_normal(len(audio)))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** (-slope / 2)
    noise = np.fft.irfft(spectrum, n=len(audio))
    power = np.mean(audio**2) / np.mean(noise**2)
    return np.asarray(noise * np.sqrt(power / 10 ** (snr_db / 10)))


def run(job: Job) -> None:
    """Write the job's FLAC files, and their rows as ``rows-<worker>.jsonl``."""
    folder = Path(job.folder)
    sentences = SentenceFile(folder / job.sentence_file, job.seed) if job.sentence_file else None
    if job.split_file:
        grammar.load_split(folder / job.split_file)
    with (folder / f"rows-{job.worker}.jsonl").open("w", encoding="utf-8") as rows:
        for first in range(job.worker * GROUP, job.num_utterances, job.num_workers * GROUP):
            with Espeak() as espeak:
                for index in range(first, min(first + GROUP, job.num_utterances)):
                    audio, row = make(job, index, espeak, sentences)
                    path = folder / str(row["audio_filepath"])
                    path.parent.mkdir(exist_ok=True)
                    soundfile.write(path, np.round(audio * 32_767).astype(np.int16), SAMPLE_RATE, subtype="PCM_16")
                    rows.write(json.dumps(row) + "\n")


def _end_with_parent() -> None:
    # `os.read` returns when the parent process ends. `sys.stdin.read` is not used, because it would hold the lock of
    # sys.stdin. If a thread holds this lock when the interpreter exits, the interpreter crashes.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    # Ctrl-C sends SIGINT to the whole process group. The parent process handles it and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run(job)
