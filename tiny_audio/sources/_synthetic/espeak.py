"""Call the library espeak-ng through ctypes.

Only worker processes import this module. The license of espeak-ng is GPL-3, so espeak-ng is kept out of the process of
the user's program.

espeak-ng keeps state between utterances, even across ``espeak_Terminate``. The audio of a sentence therefore depends on
the sentences before it. To make the audio reproducible, each instance of :class:`Espeak` loads the library anew. Each
instance also sets the random seed, because ``espeak_Initialize`` takes the seed from the clock.
"""

from __future__ import annotations

import _ctypes
import ctypes
import sys
from dataclasses import dataclass
from typing import Self

import espeakng_loader
import numpy as np
import numpy.typing as npt

RATE_HZ = 22_050
"""Sampling rate of espeak-ng's output."""

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_UTF8, _PHONEMES_IN_BRACKETS = 1, 0x100
_RATE, _VOLUME, _PITCH, _RANGE, _WORDGAP = 1, 2, 3, 4, 7
# The maximum volume is 200. At the default of 100, the louder voice variants clip inside espeak-ng. At 20, the quietest
# variant still uses 11 of 16 bits.
_SAFE_VOLUME = 20

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Delivery:
    """The voice of an utterance and the settings of the voice."""

    voice: str
    """espeak-ng's name of the accent and the voice variant, such as ``gmw/en-US+f3``."""
    rate_wpm: int
    pitch: int
    """0 to 99. 50 is the variant's own pitch."""
    pitch_range: int
    """0 (monotone) to 99. 50 is the variant's own range."""
    word_gap_ms: int


class Espeak:
    """A freshly loaded espeak-ng.

    The audio of an utterance also depends on earlier utterances of the same instance. A process can have one instance
    at a time. When the ``with`` block ends, the library is unloaded.
    """

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._callback = _Callback(self._collect)  # this reference keeps the callback alive; ctypes does not
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        rate = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _INITIALIZE_DONT_EXIT
        )
        assert rate == RATE_HZ, f"espeak-ng could not start (espeak_Initialize gave {rate})"
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._library.espeak_SetSynthCallback(self._callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.espeak_Terminate()
        if sys.platform == "win32":
            _ctypes.FreeLibrary(self._library._handle)
        else:
            _ctypes.dlclose(self._library._handle)

    def say(self, spoken: str, delivery: Delivery) -> npt.NDArray[np.float32]:
        """Return the speech for a text: mono audio ``[S]`` in [-1, 1] at :data:`RATE_HZ`.

        Args:
            spoken: the text. It may contain phonemes in double brackets, such as ``[['eI]]``.
        """
        self._blocks.clear()
        status = self._library.espeak_SetVoiceByName(delivery.voice.encode())
        assert status == 0, f"espeak-ng has no voice {delivery.voice!r}"
        for parameter, value in (
            (_RATE, delivery.rate_wpm),
            (_PITCH, delivery.pitch),
            (_RANGE, delivery.pitch_range),
            (_WORDGAP, delivery.word_gap_ms // 10),
            (_VOLUME, _SAFE_VOLUME),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        text = spoken.encode()
        status = self._library.espeak_Synth(
            text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8 | _PHONEMES_IN_BRACKETS, None, None
        )
        assert status == 0, f"espeak-ng rejected {spoken!r} with status {status}"
        return np.frombuffer(b"".join(self._blocks), dtype="<i2").astype(np.float32) / np.float32(32_768)

    def _collect(self, samples: int | None, count: int, _events: object) -> int:
        if samples and count > 0:
            self._blocks.append(ctypes.string_at(samples, 2 * count))
        return 0
