"""The Source contract, check by check."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

from tiny_audio.audio.load import load_audio
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.sources import SOURCES, SourceConfig, SourceContext
from tiny_audio.testing._checks import expect

MAX_CLIPS = 20
"""Of how many clips the audio is read."""


def check_index(config: SourceConfig, context: SourceContext) -> None:
    """Clips with ids of their own, lengths and words; the same again from a source that is built anew."""
    source = SOURCES.build(config, context)
    index = source.index()
    expect(bool(index.utterances), config, "the index has no utterance")
    ids = [utterance.id for utterance in index.utterances]
    expect(len(set(ids)) == len(ids), config, "two utterances have the same id")
    for utterance in index.utterances:
        seconds = utterance.duration_s
        expect(bool(utterance.id), config, "an utterance has an empty id")
        expect(math.isfinite(seconds) and seconds > 0, config, f"{utterance.id} lasts {seconds} s")
        expect(bool(utterance.text.strip()), config, f"{utterance.id} has no text; it belongs to what is dropped")
        expect(utterance.text == utterance.text.strip(), config, f"{utterance.id} has blanks around its text")
        plain = all(isinstance(item, str) for pair in utterance.metadata.items() for item in pair)
        expect(plain, config, f"{utterance.id} has metadata that are not strings")
    for drop in index.dropped:
        expect(bool(drop.id and drop.reason and drop.detail), config, f"{drop} does not say what is wrong")
    expect(bool(index.fingerprint), config, "the fingerprint is empty")
    for what, again in (("asked again", source.index()), ("built anew", SOURCES.build(config, context).index())):
        same = (list(again.utterances), list(again.dropped), again.fingerprint) == (
            list(index.utterances),
            list(index.dropped),
            index.fingerprint,
        )
        expect(same, config, f"{what}, it has another index")


def check_audio(config: SourceConfig, context: SourceContext) -> None:
    """Every clip decodes and lasts what its index says, also in a loader process, to which the source is pickled."""
    source = SOURCES.build(config, context)
    utterances = source.index().utterances
    traveled = pickle.loads(pickle.dumps(source))
    for utterance in utterances[:MAX_CLIPS]:
        encoded = source.encoded(utterance)
        expect(isinstance(encoded, Path | bytes), config, f"{utterance.id}: encoded gave a {type(encoded).__name__}")
        waveform = load_audio(encoded, max_duration_s=utterance.duration_s + 1, name=utterance.id)
        seconds = len(waveform) / SAMPLE_RATE
        close = abs(seconds - utterance.duration_s) <= 0.1
        expect(close, config, f"{utterance.id} lasts {seconds:.2f} s, and its index says {utterance.duration_s:.2f} s")
        same = traveled.encoded(pickle.loads(pickle.dumps(utterance))) == encoded
        expect(same, config, f"{utterance.id}: pickled and back, the source gives another clip")


CHECKS = (check_index, check_audio)
