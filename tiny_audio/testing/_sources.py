"""Checks of the Source contract."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

from tiny_audio.audio.load import load_audio
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.sources import SOURCES, SourceConfig, SourceContext
from tiny_audio.testing._checks import expect

MAX_CLIPS = 20
"""Maximum number of clips whose audio is read."""


def check_index(config: SourceConfig, context: SourceContext) -> None:
    """Check that each clip has a unique id and a duration, and that a rebuilt source has the same index.

    ``Index.without_text`` must be true for clips with an empty text, and false for all other clips.
    """
    source = SOURCES.build(config, context)
    index = source.index()
    expect(bool(index.utterances), config, "the index has no utterance")
    ids = [utterance.id for utterance in index.utterances]
    expect(len(set(ids)) == len(ids), config, "two utterances have the same id")
    for utterance, is_empty in zip(index.utterances, index.without_text(), strict=True):
        seconds = utterance.duration_s
        expect(bool(utterance.id), config, "an utterance has an empty id")
        expect(math.isfinite(seconds) and seconds > 0, config, f"{utterance.id} has a duration of {seconds} s")
        if utterance.text.strip():
            expect(not is_empty, config, f"{utterance.id} has a text, but Index.without_text() is true for it")
        else:
            advice = "it must be listed as dropped, or Index.without_text() must be true for it"
            expect(is_empty, config, f"{utterance.id} has no text; {advice}")
        expect(utterance.text == utterance.text.strip(), config, f"{utterance.id} has whitespace around its text")
        plain = all(isinstance(item, str) for pair in utterance.metadata.items() for item in pair)
        expect(plain, config, f"{utterance.id} has metadata that are not strings")
    for drop in index.dropped:
        expect(bool(drop.id and drop.reason and drop.detail), config, f"{drop} needs an id, a reason and a detail")
    expect(bool(index.fingerprint), config, "the fingerprint is empty")
    for what, again in (("called again", source.index()), ("rebuilt", SOURCES.build(config, context).index())):
        same = (list(again.utterances), list(again.dropped), again.fingerprint) == (
            list(index.utterances),
            list(index.dropped),
            index.fingerprint,
        )
        expect(same, config, f"{what}, the source has a different index")


def check_audio(config: SourceConfig, context: SourceContext) -> None:
    """Check that clips can be decoded and have their indexed durations.

    An unpickled copy of the source must return the same audio.
    """
    source = SOURCES.build(config, context)
    utterances = source.index().utterances
    unpickled = pickle.loads(pickle.dumps(source))
    for utterance in utterances[:MAX_CLIPS]:
        encoded = source.encoded(utterance)
        expect(isinstance(encoded, Path | bytes), config, f"{utterance.id}: encoded gave a {type(encoded).__name__}")
        waveform = load_audio(encoded, max_duration_s=utterance.duration_s + 1, name=utterance.id)
        seconds = len(waveform) / SAMPLE_RATE
        close = abs(seconds - utterance.duration_s) <= 0.1
        expect(close, config, f"{utterance.id} has {seconds:.2f} s, but the index says {utterance.duration_s:.2f} s")
        same = unpickled.encoded(pickle.loads(pickle.dumps(utterance))) == encoded
        expect(same, config, f"{utterance.id}: an unpickled copy of the source returns different audio")


CHECKS = (check_index, check_audio)
