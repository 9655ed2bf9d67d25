"""The split of synthetic sentences. Held-out sentences never occur in training, but all of their words and word pairs
occur there."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from tests.support.fast import fast_ones
from tests.support.paths import RECIPES
from tiny_audio.recipe import load_recipe
from tiny_audio.sources._synthetic import worker
from tiny_audio.sources._synthetic.grammar import GRAMMARS, is_held_out, written
from tiny_audio.sources.synthetic import SyntheticConfig


def texts(config: SyntheticConfig) -> list[str]:
    """Return the transcripts that a source with this config would have, without synthesizing audio."""
    job = worker.Job(
        folder="",
        num_utterances=config.num_utterances,
        worker=0,
        num_workers=1,
        seed=config.seed,
        grammars=list(config.grammars),
        sentences=config.sentences,
        sentence_file=None,
        split_file=None,
        **{name: [] for name in ("accents", "voices")},
        **{name: [0, 0] for name in ("rate_wpm", "pitch", "pitch_range", "word_gap_ms", "peak_dbfs")},
        noise_snr_db=None,
    )
    rngs = (random.Random(f"{config.seed}:{index}") for index in range(config.num_utterances))
    return [written(worker._line(job, rng)) for rng in rngs]


def phrases(text: str) -> set[str]:
    words = text.split()
    return {*words, *map(" ".join, pairwise(words))}


@pytest.mark.parametrize("name", fast_ones(["quickstart", "an4_synthetic"], "quickstart"))
def test_only_whole_sentences_are_new(name: str) -> None:
    data = load_recipe(RECIPES / f"{name}.yaml", []).data
    [source] = data.train.values()
    assert isinstance(source, SyntheticConfig)
    training = texts(source)
    known = Counter(phrase for text in training for phrase in phrases(text))
    for config in data.evaluation.values():
        assert isinstance(config, SyntheticConfig)
        held_out = texts(config)
        assert len(held_out) == config.num_utterances > 0
        assert not set(held_out) & set(training)
        assert {phrase for text in held_out for phrase in phrases(text)} <= known.keys()
        # No sentence may make up more than 2 % of the held-out set. A word in at least 5 % of its sentences must be
        # at least a fifth as frequent in the training sentences.
        assert Counter(held_out).most_common(1)[0][1] <= 0.02 * len(held_out)
        words = Counter(word for text in held_out for word in set(text.split()))
        for word, count in words.items():
            if count >= 0.05 * len(held_out):
                assert known[word] >= count / len(held_out) * len(training) / 5, word


@pytest.mark.parametrize("name", GRAMMARS)
def test_both_sides_have_sentences(name: str) -> None:
    rng = random.Random(1)
    lines = [written(GRAMMARS[name](rng)) for _ in range(2_000)]
    share = sum(map(is_held_out, lines)) / len(lines)
    assert 0.05 < share < 0.5
    assert not any(is_held_out(line) for line in lines if " " not in line)
