"""espeak-ng through ctypes. Used in the synthesis worker only: the library is GPL-3 and never enters the main process.

espeak-ng keeps state between utterances (flutter phase, wave phase, noise, echo), also over ``espeak_Terminate``:
the same sentence sounds different after another one. So each utterance gets a freshly loaded library, which costs
under half a millisecond, and a fixed random seed (``espeak_Initialize`` seeds by the clock).
"""

from __future__ import annotations

import _ctypes
import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import espeakng_loader
import numpy as np
import numpy.typing as npt

RATE_HZ = 22_050
"""What espeak-ng synthesises at."""

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_UTF8, _PHONEMES_IN_BRACKETS = 1, 0x100
_RATE, _VOLUME, _PITCH, _RANGE, _WORDGAP = 1, 2, 3, 4, 7
# Full volume makes the louder variants clip inside espeak-ng.
_SAFE_VOLUME = 50

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Who says it, and how."""

    voice: str
    """espeak-ng's identifier with its variant, such as ``gmw/en-US+f3``."""
    rate_wpm: int
    pitch: int
    """0 to 99; 50 is the variant's own."""
    pitch_range: int
    """0 (monotone) to 99; 50 is the variant's own."""
    word_gap_ms: int


def synthesise(spoken: str, delivery: Delivery) -> npt.NDArray[np.float32]:
    """``spoken`` (may hold ``[[phonemes]]``) as mono audio in [-1, 1] at :data:`RATE_HZ`; the same on every call."""
    blocks: list[bytes] = []

    def collect(samples: int | None, count: int, _events: object) -> int:
        if samples and count > 0:
            blocks.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _Callback(collect)  # referenced until the synthesis is over
    with _fresh_library() as library:
        library.espeak_SetSynthCallback(callback)
        status = library.espeak_SetVoiceByName(delivery.voice.encode())
        assert status == 0, f"espeak-ng has no voice {delivery.voice!r}"
        for parameter, value in (
            (_RATE, delivery.rate_wpm),
            (_PITCH, delivery.pitch),
            (_RANGE, delivery.pitch_range),
            (_WORDGAP, delivery.word_gap_ms // 10),
            (_VOLUME, _SAFE_VOLUME),
        ):
            library.espeak_SetParameter(parameter, value, 0)
        text = spoken.encode()
        status = library.espeak_Synth(
            text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8 | _PHONEMES_IN_BRACKETS, None, None
        )
        assert status == 0, f"espeak-ng refused {spoken!r} with status {status}"
    return np.frombuffer(b"".join(blocks), dtype="<i2").astype(np.float32) / 32_768


@contextmanager
def _fresh_library() -> Iterator[ctypes.CDLL]:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(
        _AUDIO_OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _INITIALIZE_DONT_EXIT
    )
    assert rate == RATE_HZ, f"espeak-ng could not start (espeak_Initialize gave {rate})"
    try:
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        yield library
    finally:
        library.espeak_Terminate()
        if sys.platform == "win32":
            _ctypes.FreeLibrary(library._handle)
        else:
            _ctypes.dlclose(library._handle)
