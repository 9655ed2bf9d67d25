"""What keeps a recognizer from writing what nobody said: sounds that are no speech, loops, what the CTC head denies.

Bounds lie between what was measured on speech (synthetic voices, and people reading and spelling, also in white noise
as loud as they) and on noises and tones, see ``benchmarks/transcription.py``.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tiny_audio.frames import SAMPLE_RATE

Reason = Literal["silence", "noise", "tones", "ctc_silent", "ctc_disagrees", "loop"]
"""Why a text is not, or not all of it, what the decoder wrote:

- ``silence``, ``noise``, ``tones``: the sound is no speech, and nothing was decoded;
- ``ctc_silent``: the CTC head hears no character in it;
- ``ctc_disagrees``: the CTC head finds the text much less likely than what it hears itself;
- ``loop``: words came again and again, and are written once.
"""

_SILENT_PEAK = 1e-4
"""Three steps of 16-bit audio: no speech has ever been that soft."""
_QUIET_PEAK = 0.02
_USUAL_PEAK = 0.25

_STRETCH = 4 * SAMPLE_RATE
"""Samples that are judged together."""
_WINDOW, _LONG_WINDOW, _HOP = 512, 1024, 160
_STEADY_SHAPE_DB = 4.5
"""Noise keeps the shape of its spectrum: 3.6 dB of change in a band at most; speech in noise as loud as it, 6.1."""
_TONAL_FLATNESS_DB = -27.0
"""Of nine frames in ten at most: pure tones -32, speech -23 and above."""
_STEADY_LAG = 8
_HALF = 12
"""Bins to either side over which the spectrum is averaged, to see what is fine in it."""
_STEADY_FRAME, _STEADY_SHARE, _STEADY_MEAN = 0.8, 0.22, 0.55
"""Share of frames whose fine spectrum is that of 80 ms before, and the mean correlation: tones 0.31 and 0.60 or more,
speech 0.14 and 0.50 or less."""

_REPEATS = 4
MAX_CHARACTERS_PER_S = 30.0
"""Nobody speaks so fast."""
_MAX_DISAGREEMENT = 8.0
"""Nats per character of the text; at most 5.9 where the head hears an accent that it never heard."""
_MAX_OF_LONGER = 3.0
"""The same of a text that is much longer than the head's."""

Array = NDArray[np.float64]


def leveled(waveform: Tensor) -> Tensor:
    """Very soft audio (peaks below 2 % of full scale) louder, by a power of two: models never heard it so soft, and
    those that measure loudness would lose it. All other audio as it is."""
    peak = float(waveform.abs().max()) if len(waveform) else 0.0
    if not _SILENT_PEAK <= peak < _QUIET_PEAK:
        return waveform
    louder: Tensor = waveform * 2.0 ** float(np.ceil(np.log2(_USUAL_PEAK / peak)))
    return louder


def unlike_speech(waveform: Tensor) -> Literal["silence", "noise", "tones"] | None:
    """What a sound is, where it is certainly no speech; None otherwise.

    It looks for what even speech in loud noise has: a spectrum that changes its shape, and is not made of steady tones.
    A word in a long noise would not show in the whole, so stretches of some seconds are judged one by one.

    Args:
        waveform: ``[S]``.
    """
    samples = waveform.detach().double().cpu().numpy()
    last = max(0, len(samples) - _STRETCH)
    reasons = set[Literal["silence", "noise", "tones"]]()
    for start in [*range(0, last, _STRETCH // 2), last]:
        reason = _unlike_speech(samples[start : start + _STRETCH])
        if reason is None:
            return None
        reasons.add(reason)
    return "noise" if "noise" in reasons else "tones" if "tones" in reasons else "silence"


def _unlike_speech(samples: Array) -> Literal["silence", "noise", "tones"] | None:
    if float(np.abs(samples).max(initial=0.0)) < _SILENT_PEAK:
        return "silence"
    sharpened = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])
    short = _spectra(sharpened, _WINDOW)
    loud = _loud(short, 25.0)
    if _shape_range_db(short, loud) < _STEADY_SHAPE_DB:
        return "noise"
    if np.percentile(_flatness_db(short[loud]), 90) < _TONAL_FLATNESS_DB:
        return "tones"
    similar = _similarity(_spectra(sharpened, _LONG_WINDOW))
    if len(similar) and (similar > _STEADY_FRAME).mean() > _STEADY_SHARE and similar.mean() > _STEADY_MEAN:
        return "tones"
    return None


def _spectra(samples: Array, window: int) -> Array:
    """Power ``[frames, bins]``."""
    samples = np.pad(samples, (0, max(0, window + _STEADY_LAG * _HOP - len(samples))))
    framed = np.lib.stride_tricks.sliding_window_view(samples, window)[::_HOP]
    return np.asarray(np.abs(np.fft.rfft(framed * np.hanning(window))) ** 2 + 1e-14)


def _loud(spectra: Array, range_db: float) -> NDArray[np.bool_]:
    """Frames at most so much below the loudest ones."""
    levels = 10 * np.log10(spectra.mean(1))
    return np.asarray(levels > np.percentile(levels, 95) - range_db)


def _bins(window: int, low_hz: float, high_hz: float) -> slice:
    return slice(round(low_hz * window / SAMPLE_RATE), round(high_hz * window / SAMPLE_RATE))


def _shape_range_db(spectra: Array, loud: NDArray[np.bool_]) -> float:
    """How far the share of one of nine bands goes up and down, over 70 ms, in loud frames."""
    used = spectra[:, _bins(_WINDOW, 190, 6940)]
    bands = used[:, : used.shape[1] // 9 * 9].reshape(len(used), 9, -1).sum(2)
    size = min(7, len(bands))
    sums = np.cumsum(np.pad(bands, ((1, 0), (0, 0))), 0)
    smooth = sums[size:] - sums[:-size]
    shape = 10 * np.log10(np.maximum(smooth / smooth.sum(1, keepdims=True), 1e-12))
    middle = loud[size // 2 :][: len(shape)]
    chosen = shape[middle] if middle.any() else shape
    low, high = np.percentile(chosen, [5, 95], axis=0)
    return float((high - low).max())


def _flatness_db(spectra: Array) -> Array:
    """Geometric over arithmetic mean of the power in each frame."""
    used = spectra[:, _bins(_WINDOW, 190, 7000)]
    return np.asarray(10 * np.log10(np.exp(np.log(used).mean(1)) / used.mean(1)))


def _similarity(spectra: Array) -> Array:
    """Correlation of the fine structure of loud frames with that of 80 ms before."""
    used = spectra[:, _bins(_LONG_WINDOW, 190, 5000)]
    logs = np.log(used + 1e-4 * used.max(1, keepdims=True))
    # Beyond the edges the last values go on: zeros would put a step of the same kind into every frame.
    sums = np.cumsum(np.pad(logs, ((0, 0), (_HALF + 1, _HALF)), mode="edge"), 1)
    size = 2 * _HALF + 1
    fine = logs - (sums[:, size:] - sums[:, :-size]) / size
    fine /= np.linalg.norm(fine, axis=1, keepdims=True) + 1e-9
    loud = _loud(spectra, 20.0)
    both = loud[_STEADY_LAG:] & loud[:-_STEADY_LAG]
    return np.asarray((fine[_STEADY_LAG:] * fine[:-_STEADY_LAG]).sum(1)[both])


def unlooped(text: str) -> str:
    """The text with words that come four times or more in a row, alone or as a group, written once.

    The longest such run comes first, until none is left. Case and punctuation do not make words different.
    """
    words = text.split()
    while (found := _loop(words)) is not None:
        begin, size, end = found
        words[begin:end] = words[begin : begin + size]
    return " ".join(words)


def _loop(words: list[str]) -> tuple[int, int, int] | None:
    """First word, group size and end of the longest run of repeats."""
    plain = [re.sub(r"[^\w']", "", word.lower()) for word in words]
    best: tuple[int, int, int] | None = None
    for size in range(1, len(plain) // _REPEATS + 1):
        run = 0
        for index in range(size, len(plain) + 1):
            if index < len(plain) and plain[index] == plain[index - size]:
                run += 1
                continue
            if run >= size * (_REPEATS - 1):
                begin = index - size - run
                if best is None or run + size > best[2] - best[0]:
                    best = (begin, size, index)
            run = 0
    return best


def loop_without_head(text: str, *, truncated: bool, duration_s: float) -> str | None:
    """The text without its loop, where there is one and it shows by itself that nobody said so: no end came, or it is
    faster than anybody speaks. People do say the same word four times, so the loop alone proves nothing."""
    if not truncated and len(text) <= MAX_CHARACTERS_PER_S * duration_s:
        return None
    shorter = unlooped(text)
    return shorter if len(shorter.split()) < len(text.split()) else None


def contradicts(head_score: float, text_score: float, num_head_characters: int, num_characters: int) -> bool:
    """Whether the CTC head finds a text so much less likely than its own that both cannot have heard the same.

    Args:
        head_score, text_score: log-likelihoods of the head's greedy text and of the decoder's, over all alignments.
        num_head_characters, num_characters: of the two texts.
    """
    longer = num_characters > 1.5 * num_head_characters + 8
    return head_score - text_score > (_MAX_OF_LONGER if longer else _MAX_DISAGREEMENT) * max(1, num_characters)
