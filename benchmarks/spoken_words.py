"""Synthesize sentences, and record the start time of each word.

    python benchmarks/spoken_words.py FOLDER NUMBER SEED

``transcription.py`` runs this script in a separate process, because espeak-ng is GPL-3. The script writes NUMBER clips
at espeak-ng's own sample rate, and ``words.jsonl`` with the fields ``audio_filepath``, ``text`` and ``starts_s``.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
from pathlib import Path

import numpy as np
import soundfile

from tiny_audio.sources._synthetic import grammar
from tiny_audio.sources._synthetic.espeak import RATE_HZ, Delivery, Espeak
from tiny_audio.sources._synthetic.voices import ACCENTS, HELD_OUT_VOICES

WORD = 1
GRAMMARS = ("digits", "numbers", "home", "phone")
SPOKEN_ACCENTS = ("en-us", "en-us-nyc", "en-gb", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")


class Event(ctypes.Structure):
    """The structure ``espeak_EVENT`` in espeak-ng's ``speak_lib.h``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


class EspeakWithWordEvents(Espeak):
    """An espeak-ng that stores where each word starts.

    ``words`` maps the index of a word's first character, counted from 1, to the index of its first sample.
    """

    def __init__(self) -> None:
        self.words: dict[int, int] = {}
        super().__init__()

    def _collect(self, samples: int | None, count: int, events: object) -> int:
        address = int(events or 0)  # type: ignore[call-overload]
        while address and (event := Event.from_address(address)).type:
            if event.type == WORD:
                self.words.setdefault(event.text_position, event.sample)
            address += ctypes.sizeof(Event)
        return super()._collect(samples, count, events)


def main(folder: Path, number: int, seed: int) -> None:
    rng = random.Random(seed)
    rows = []
    while len(rows) < number:
        line = grammar.GRAMMARS[rng.choice(GRAMMARS)](rng)
        text = grammar.written(line)
        # Skip sentences for which espeak-ng gets phonemes, because its character indices would not match the text.
        if grammar.spoken(line) != text or not grammar.is_held_out(text):
            continue
        voice = f"{ACCENTS[rng.choice(SPOKEN_ACCENTS)]}+{rng.choice(HELD_OUT_VOICES)}"
        delivery = Delivery(voice, rng.randint(150, 210), rng.randint(40, 60), rng.randint(40, 60), rng.randint(0, 20))
        with EspeakWithWordEvents() as espeak:
            audio = espeak.say(text, delivery)
            words = dict(espeak.words)
        begins = [
            index + 1 for index in range(len(text)) if text[index] != " " and (index == 0 or text[index - 1] == " ")
        ]
        if not set(begins) <= words.keys():  # espeak-ng treats some pairs of words as one word
            continue
        path = folder / f"{len(rows):04d}.flac"
        soundfile.write(path, 0.4 * audio / np.abs(audio).max(), RATE_HZ)
        rows.append({"audio_filepath": path.name, "text": text, "starts_s": [words[at] / RATE_HZ for at in begins]})
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
