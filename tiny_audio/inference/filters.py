"""Hallucination filters: find sounds that are not speech, texts that loop, and texts that the CTC head rejects.

A sound that may be speech is not filtered. The thresholds for noise and tones lie between the values measured on speech
and the values measured on noises and tones. The speech was synthetic, read aloud, or spelled letter by letter. It was
clean, mixed with white noise of the same loudness, limited to narrow bands such as a telephone's, or encoded at low bit
rates. ``benchmarks/transcription.py`` checks the filters.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tiny_audio import ctc
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.frames import SAMPLE_RATE, Frames
from tiny_audio.inference.voice_activity import SpeechProbabilities, silero
from tiny_audio.inference.word_times import Spelling
from tiny_audio.model.decoding import Transcript

NonSpeech = Literal["silence", "noise", "tones", "no_voice"]
Reason = NonSpeech | Literal["ctc_silent", "ctc_disagrees", "loop"]
"""Why a text differs from the decoder's output:

- ``silence``, ``noise``, ``tones``, ``no_voice``: the sound is not speech, so it was not decoded
- ``ctc_silent``: the CTC head's own text (by greedy decoding) is empty
- ``ctc_disagrees``: under the CTC head, the decoder's text is much less likely than the head's own text
- ``loop``: words that were repeated many times are written once
"""

EMPTY_BECAUSE: dict[Reason, str] = {
    "silence": "the audio is silent",
    "noise": "the sound is steady, like noise or a single tone (filter: noise)",
    "tones": "the sound consists of steady tones (filter: tones)",
    "no_voice": "silero-vad finds no voice (filter: no_voice)",
    "ctc_silent": "the CTC head wrote nothing, so the decoder's text was suppressed (filter: ctc_silent)",
    "ctc_disagrees": "the CTC head rejects the decoder's text (filter: ctc_disagrees)",
    "loop": "the text only repeats itself (filter: loop)",
}
"""The reasons as phrases for messages."""

_SILENT_PEAK = 1e-4
"""A sound with a lower peak is silence. The value is about three steps of 16-bit audio."""
# Audio with a peak below the first value is amplified to a peak of at least the second value.
_QUIET_PEAK = 0.02
_USUAL_PEAK = 0.25

_SECTION = 4 * SAMPLE_RATE
"""Audio is classified in sections of this many samples (4 s)."""
_WINDOW, _LONG_WINDOW, _HOP = 512, 1024, 160
_BAND_HZ = (190.0, 500.0), (2500.0, 7000.0)
"""Ranges of the lower and the upper limit of the frequency band in which a sound is measured."""
_EMPTY_DB = 60.0
"""A part of the spectrum counts as empty if its power is this many dB below the power of the strongest part."""
# Highest frequency at which fine structure is measured. Fine structure is a spectrum minus its moving average.
_HIGHEST_FINE_HZ = 5000.0
_STEADY_SHAPE_DB = 4.5
"""A sound is noise if every band's share of the power changes by less than this value (see :func:`_shape_range_db`).
The spectrum of noise keeps its shape: bands change by at most 4.2 dB. In speech with noise of the same loudness, at
least one band changes by 6.1 dB or more."""
_TONAL_FLATNESS_DB = -40.0
"""A sound consists of tones if the 90th percentile of its frames' flatness is below this value. Pure tones have -45 dB
or less. Speech has -23 dB or more, except for -33 dB in an MP3 with 8 kbit/s."""
# Number of frames between two frames that are compared (80 ms).
_STEADY_LAG = 8
_HALF = 12
"""Half the width, in bins, of the moving average that is subtracted to get the fine structure of the spectrum."""
_STEADY_FRAME, _STEADY_SHARE, _STEADY_MEAN = 0.8, 0.25, 0.58
"""A frame is steady if the correlation between its fine structure and that of the frame 80 ms before is above the first
value. A sound also counts as tones if its share of steady frames is above the second value, and its mean correlation is
above the third value. In tones, the share is at least 0.31 and the mean at least 0.60. In speech, the share is at most
0.18 and the mean at most 0.57."""

NO_VOICE = 0.03
"""A sound has no voice if the probability of speech is below this value in every frame. The value was chosen by the
highest probability in each clip, measured on clean speech, on speech in white noise that was up to 5 dB louder, and on
speech in the bands and codecs of telephones. This probability was at least 0.40 in every clip of recorded speech (AN4
and LibriSpeech), and at least 0.035 in every clip of synthetic speech. It reaches 0.07 in white noise and 0.91 in
melodies, so the rules for noise and tones are still needed. ``benchmarks/chunking.py`` measures these values."""

# Words are a loop if they occur at least this many times in a row.
_REPEATS = 4
MAX_CHARACTERS_PER_S = 30.0
"""Maximum rate of speech. A text with more characters per second cannot have been spoken."""
_MAX_DISAGREEMENT = 8.0
"""A text is rejected if its log-likelihood is more than this many nats per character below that of the CTC head's own
text. The largest difference measured on speech is 5.9, on an accent that was not in the training data."""
_MAX_OF_LONGER = 3.0
"""This value replaces ``_MAX_DISAGREEMENT`` for a text that is much longer than the CTC head's own text."""

Array = NDArray[np.float64]


def boost_quiet(waveform: Tensor) -> Tensor:
    """Amplify audio that is very soft, but not silent, by a power of two. Return other audio unchanged.

    Very soft audio has a peak below 2 % of full scale. Some encoders' feature extractors would treat it as silence.
    """
    peak = float(waveform.abs().max()) if len(waveform) else 0.0
    if not _SILENT_PEAK <= peak < _QUIET_PEAK:
        return waveform
    louder: Tensor = waveform * 2.0 ** float(np.ceil(np.log2(_USUAL_PEAK / peak)))
    return louder


def non_speech_reason(waveform: Tensor) -> NonSpeech | None:
    """Return the class of a sound that is certainly not speech, or None if the sound may be speech.

    A single word in a long noise would hardly change the measured values. Therefore overlapping sections of 4 s are
    classified separately. If a section may be speech, silero-vad (if installed) searches the whole sound for a voice.

    Args:
        waveform: ``[S]``.
    """
    samples = waveform.detach().cpu().double().numpy()
    last = max(0, len(samples) - _SECTION)
    reasons = set[NonSpeech]()
    for start in [*range(0, last, _SECTION // 2), last]:
        reason = _non_speech_reason(samples[start : start + _SECTION])
        if reason is None:
            return "no_voice" if _has_no_voice(waveform) else None
        reasons.add(reason)
    return "noise" if "noise" in reasons else "tones" if "tones" in reasons else "silence"


def _has_no_voice(waveform: Tensor) -> bool:
    """Whether silero-vad finds no voice. False if silero-vad is not installed."""
    network = silero()
    if network is None:
        return False
    found, samples = SpeechProbabilities(network), boost_quiet(waveform)
    for start in range(0, len(samples), SAMPLE_RATE):
        # One frame with a voice decides the result, so the rest is not computed.
        if max(found.add(samples[start : start + SAMPLE_RATE]), default=0.0) >= NO_VOICE:
            return False
    return max(found.end(), default=0.0) < NO_VOICE


def _non_speech_reason(samples: Array) -> NonSpeech | None:
    if float(np.abs(samples).max(initial=0.0)) < _SILENT_PEAK:
        return "silence"
    sharpened = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])
    short = _spectra(sharpened, _WINDOW)
    loud = _loud(short, 25.0)
    low_hz, high_hz = _occupied_band(short[loud])
    if _shape_range_db(short, loud, low_hz, high_hz) < _STEADY_SHAPE_DB:
        return "noise"
    if np.percentile(_flatness_db(short[loud], low_hz, high_hz), 90) < _TONAL_FLATNESS_DB:
        return "tones"
    similar = _similarity(_spectra(sharpened, _LONG_WINDOW), low_hz, min(high_hz, _HIGHEST_FINE_HZ))
    if len(similar) and (similar > _STEADY_FRAME).mean() > _STEADY_SHARE and similar.mean() > _STEADY_MEAN:
        return "tones"
    return None


def _spectra(samples: Array, window: int) -> Array:
    """Return power spectra ``[frames, bins]``."""
    samples = np.pad(samples, (0, max(0, window + _STEADY_LAG * _HOP - len(samples))))
    framed = np.lib.stride_tricks.sliding_window_view(samples, window)[::_HOP]
    return np.asarray(np.abs(np.fft.rfft(framed * np.hanning(window))) ** 2 + 1e-14)


def _loud(spectra: Array, range_db: float) -> NDArray[np.bool_]:
    """Return a mask of the frames that are at most ``range_db`` below the loudest frames."""
    levels = 10 * np.log10(spectra.mean(1))
    return np.asarray(levels > np.percentile(levels, 95) - range_db)


def _bins(window: int, low_hz: float, high_hz: float) -> slice:
    return slice(round(low_hz * window / SAMPLE_RATE), round(high_hz * window / SAMPLE_RATE))


def _occupied_band(loud: Array) -> tuple[float, float]:
    """Return the limits in Hz of the band that is not empty. It always includes 500 to 2,500 Hz.

    Telephones, codecs and low sampling rates leave parts of the spectrum empty. Empty parts must not be measured,
    because they would look like the valleys between tones.

    Args:
        loud: power of the loud frames ``[frames, bins]``.
    """
    used = np.flatnonzero(loud.mean(0) > loud.mean(0).max() * 10 ** (-_EMPTY_DB / 10)) * SAMPLE_RATE / _WINDOW
    (lowest, most_low), (least_high, highest) = _BAND_HZ
    return float(np.clip(used[0], lowest, most_low)), float(np.clip(used[-1], least_high, highest))


def _shape_range_db(spectra: Array, loud: NDArray[np.bool_], low_hz: float, high_hz: float) -> float:
    """Split the power into nine bands, and return the largest change of a band's share over the loud frames.

    The powers are smoothed over 70 ms.
    """
    used = spectra[:, _bins(_WINDOW, low_hz, high_hz)]
    bands = used[:, : used.shape[1] // 9 * 9].reshape(len(used), 9, -1).sum(2)
    size = min(7, len(bands))
    sums = np.cumsum(np.pad(bands, ((1, 0), (0, 0))), 0)
    smooth = sums[size:] - sums[:-size]
    shape = 10 * np.log10(np.maximum(smooth / smooth.sum(1, keepdims=True), 1e-12))
    middle = loud[size // 2 :][: len(shape)]
    chosen = shape[middle] if middle.any() else shape
    low, high = np.percentile(chosen, [5, 95], axis=0)
    return float((high - low).max())


def _flatness_db(spectra: Array, low_hz: float, high_hz: float) -> Array:
    """Return each frame's spectral flatness in dB: the geometric mean of its power divided by the arithmetic mean.

    The power of empty bins is raised to a minimum, because an empty bin would make any frame look tonal.
    """
    used = spectra[:, _bins(_WINDOW, low_hz, high_hz)]
    used = np.maximum(used, used.mean(1, keepdims=True) * 10 ** (-_EMPTY_DB / 10))
    return np.asarray(10 * np.log10(np.exp(np.log(used).mean(1)) / used.mean(1)))


def _similarity(spectra: Array, low_hz: float, high_hz: float) -> Array:
    """Return the correlation between the fine structure of each loud frame and that of the frame 80 ms before."""
    used = spectra[:, _bins(_LONG_WINDOW, low_hz, high_hz)]
    logs = np.log(used + 1e-4 * used.max(1, keepdims=True))
    # Repeat the edge values. Zeros would add the same step to every frame and make all frames similar.
    sums = np.cumsum(np.pad(logs, ((0, 0), (_HALF + 1, _HALF)), mode="edge"), 1)
    size = 2 * _HALF + 1
    fine = logs - (sums[:, size:] - sums[:, :-size]) / size
    fine /= np.linalg.norm(fine, axis=1, keepdims=True) + 1e-9
    loud = _loud(spectra, 20.0)
    both = loud[_STEADY_LAG:] & loud[:-_STEADY_LAG]
    return np.asarray((fine[_STEADY_LAG:] * fine[:-_STEADY_LAG]).sum(1)[both])


def collapse_repeats(text: str) -> str:
    """Write a word or group of words once if it occurs four or more times in a row.

    The longest run is collapsed first. Case and punctuation are ignored.
    """
    words = text.split()
    while (found := _loop(words)) is not None:
        begin, size, end = found
        words[begin:end] = words[begin : begin + size]
    return " ".join(words)


def _loop(words: list[str]) -> tuple[int, int, int] | None:
    """Return the longest run of repeats (index of the first word, words in a group, index after the last word)."""
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


def collapse_impossible_repeats(text: str, *, truncated: bool, duration_s: float) -> str | None:
    """Collapse repeats if the text is truncated or too long for its clip. Return None if nothing is collapsed.

    This is for models without a CTC head. A person may say a word four times in a row, so repeats alone do not justify
    a change.
    """
    if not truncated and len(text) <= MAX_CHARACTERS_PER_S * duration_s:
        return None
    shorter = collapse_repeats(text)
    return shorter if len(shorter.split()) < len(text.split()) else None


def filter_text(
    transcript: Transcript, frames: Frames, duration_s: float, vocabulary: CtcVocabulary | None
) -> tuple[str, Reason | None]:
    """Return the filtered text, and the reason if it differs from the decoder's text.

    Args:
        transcript: the transcript of one clip.
        frames: the clip's frames, without padding.
        duration_s: duration of the clip.
        vocabulary: vocabulary of the CTC head. None if the model has no CTC head.
    """
    text = transcript.text
    if not text:
        return "", None
    if frames.ctc_logits is None or vocabulary is None:
        shorter = collapse_impossible_repeats(text, truncated=transcript.truncated, duration_s=duration_s)
        return (text, None) if shorter is None else (shorter, "loop")
    if not transcript.ctc_text:
        return "", "ctc_silent"
    if not rejected_by_ctc(text, frames, frames.ctc_logits, vocabulary):
        return text, None
    shorter = collapse_repeats(text)
    if shorter != text and not rejected_by_ctc(shorter, frames, frames.ctc_logits, vocabulary):
        return shorter, "loop"
    return "", "ctc_disagrees"


def rejected_by_ctc(text: str, frames: Frames, logits: Tensor, vocabulary: CtcVocabulary) -> bool:
    """Whether the text is so unlikely under the CTC head's ``logits [1, T, V]`` that it was probably not spoken."""
    own, spelled = ctc.greedy(logits, frames.lengths)[0], Spelling.of(text, vocabulary, read_numbers=False).labels
    num_frames = int(frames.lengths[0])
    # A text that needs more frames than the clip has cannot be aligned, so it has no likelihood. It is rejected if it
    # has more characters per second than fast speech.
    if ctc.min_frames(spelled) > num_frames:
        return len(text) > MAX_CHARACTERS_PER_S * num_frames / frames.rate
    scores = ctc.log_likelihood(logits.expand(2, -1, -1), frames.lengths.expand(2), [own, spelled])
    return is_much_less_likely(float(scores[0]), float(scores[1]), len(own), len(spelled))


def is_much_less_likely(own_score: float, text_score: float, num_own_characters: int, num_characters: int) -> bool:
    """Whether a text's log-likelihood is too far below that of the CTC head's own text.

    Args:
        own_score: log-likelihood of the CTC head's own greedy text, over all alignments.
        text_score: log-likelihood of the decoder's text.
        num_own_characters, num_characters: lengths of the CTC head's text and the decoder's text.
    """
    longer = num_characters > 1.5 * num_own_characters + 8
    return own_score - text_score > (_MAX_OF_LONGER if longer else _MAX_DISAGREEMENT) * max(1, num_characters)
