"""Measure the effect of hotwords on errors in rare words and in other words, and on words that nobody spoke.

    python benchmarks/context.py runs/mine --data test.jsonl --text train.jsonl --words 100

Every clip is transcribed three times:

- no list: without hotwords
- list: with the rare words of its reference, and with words that are not in the reference
- other words: with only words that are not in the reference

A word is rare if it is not among the most frequent words of ``--text``, which should be the training data. As in Le et
al. 2021 (arXiv 2104.02194), errors on rare words are substituted and deleted rare words, and inserted words of the
list. Differences have 95 % intervals from a paired bootstrap over clips.

Silence, faint noise and loud noise are also transcribed, with and without hotwords, and with and without the
hallucination filters. Every word of these transcripts is an error.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from record import Record
from torch import Tensor

from tiny_audio.analysis.scoring import align, normalizer
from tiny_audio.data.contexts import rare_words
from tiny_audio.evaluation.batches import loaded_batches
from tiny_audio.evaluation.data import read_data
from tiny_audio.export.load import load_model
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.prompt import Context, HotwordsConfig

WAYS = ("no list", "list", "other words")
_LONGEST_S = 30.0
_SOUND_S = 4.0
_LEVELS = {"silence": 0.0, "faint noise": 0.001, "loud noise": 0.1}
"""Root mean square of white noise, relative to full scale."""


@dataclass(frozen=True)
class Case:
    """A clip, its reference, and its list of hotwords for each of :data:`WAYS`."""

    waveform: Tensor
    reference: str
    rare: frozenset[str]
    """Rare words of the reference."""
    lists: dict[str, tuple[str, ...]]

    def counts(self, hypothesis: str, way: str) -> tuple[int, ...]:
        """Return five counts for a hypothesis.

        The counts are: errors on rare words, rare words, errors on other words, other words, and wrong words of the
        hypothesis that are in the list of ``way`` but not in the reference.
        """
        (alignment,) = align([self.reference], [hypothesis], normalizer("none"))
        listed = {*self.lists["list"]}
        rare = other = inserted = 0
        for reference, found in alignment.pairs:
            wrong = reference != found
            if reference in self.rare or (reference is None and found in listed):
                rare += wrong
            else:
                other += wrong
            inserted += wrong and found in {*self.lists[way]} - self.rare
        words = [reference for reference, _ in alignment.pairs if reference is not None]
        num_rare = sum(word in self.rare for word in words)
        return rare, num_rare, other, len(words) - num_rare, inserted


def cases_of(
    data: str, pool: Sequence[str], common: frozenset[str], num_words: int, max_samples: int | None
) -> list[Case]:
    """Load the clips of a set, and draw their lists. The lists of a clip do not depend on the other clips.

    Args:
        pool: words to draw from, for the words of a list that are not in the reference.
        common: words that are not rare.
    """
    (found,) = read_data([data], max_samples)
    cases = []
    for batch in loaded_batches(found.clips, max_duration_s=_LONGEST_S, max_padded_s=60.0):
        for clip, waveform in zip(batch.clips, batch.waveforms, strict=True):
            reference = normalizer("lower")(clip.utterance.text)
            words = dict.fromkeys(reference.split())
            rare = [word for word in words if word not in common]
            rng = random.Random(clip.id)
            others = [word for word in rng.sample(pool, min(len(pool), num_words + len(words))) if word not in words]
            mixed = [*rare, *others[: max(0, num_words - len(rare))]]
            rng.shuffle(mixed)
            lists = {"no list": (), "list": tuple(mixed), "other words": tuple(others[:num_words])}
            cases.append(Case(waveform, reference, frozenset(rare), lists))
    return cases


def rate(counts: np.ndarray, errors: int, words: int) -> float:
    """Divide the sum of column ``errors`` of counts ``[clips, 5]`` by the sum of column ``words``."""
    return float(counts[:, errors].sum() / max(1, counts[:, words].sum()))


def difference(before: np.ndarray, after: np.ndarray, errors: int, words: int, seed: int = 0) -> str:
    """Format the error rate of ``after`` minus that of ``before``, with a 95 % interval, in percentage points."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, len(before), len(before)) for _ in range(1000)]
    samples = [rate(after[rows], errors, words) - rate(before[rows], errors, words) for rows in drawn]
    low, high = np.percentile(samples, [2.5, 97.5])
    return (
        f"{100 * (rate(after, errors, words) - rate(before, errors, words)):+.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    )


def transcribe(transcriber: Transcriber, cases: Sequence[Case], way: str) -> list[str]:
    """Transcribe all clips with one kind of list. Return the texts in lower case, like the references."""
    contexts = [Context.of(case.lists[way]) for case in cases]
    found = transcriber.transcribe([case.waveform for case in cases], contexts=contexts)
    return [normalizer("lower")(one.text) for one in found]


def measure_speech(record: Record, transcriber: Transcriber, name: str, cases: Sequence[Case]) -> None:
    """Compare transcription without a list, with a list, and with other words, on one set."""
    counts = {}
    for way in WAYS:
        texts = transcribe(transcriber, cases, way)
        counts[way] = np.array([case.counts(text, way) for case, text in zip(cases, texts, strict=True)])
    num_rare = int(counts["list"][:, 1].sum())
    record.say(f"## {name}")
    record.say(
        f"{len(cases)} clips, {num_rare} rare words and {int(counts['list'][:, 3].sum())} others. "
        f"{sum(bool(case.rare) for case in cases)} clips have a rare word."
    )
    rows = []
    for way in WAYS:
        own = counts[way]
        whole = (own[:, 0].sum() + own[:, 2].sum()) / (own[:, 1].sum() + own[:, 3].sum())
        rows.append([way, f"{whole:.1%}", f"{rate(own, 0, 1):.1%}", f"{rate(own, 2, 3):.1%}", int(own[:, 4].sum())])
    record.table(["hotwords", "WER", "rare words", "other words", "unspoken words of the list"], rows)
    plain = counts["no list"]
    for way in WAYS[1:]:
        record.say(
            f"{way} against no list, in percentage points: rare words {difference(plain, counts[way], 0, 1)}, "
            f"other words {difference(plain, counts[way], 2, 3)}."
        )


def measure_sounds(
    record: Record, transcribers: dict[str, Transcriber], cases: Sequence[Case], num_sounds: int
) -> None:
    """Count the words that are written for sounds without speech, without a list and with a list of other words."""
    rng = torch.Generator().manual_seed(0)
    rows = []
    for name, level in _LEVELS.items():
        sounds = [level * torch.randn(int(_SOUND_S * SAMPLE_RATE), generator=rng) for _ in range(num_sounds)]
        for filters, transcriber in transcribers.items():
            found = []
            for way in ("no list", "other words"):
                contexts = [Context.of(case.lists[way]) for case in cases[:num_sounds]]
                texts = [one.text for one in transcriber.transcribe(sounds, contexts=contexts)]
                found.append(f"{sum(map(bool, texts))} ({sum(len(text.split()) for text in texts)})")
            rows.append([f"{name}, {filters}", *found])
    record.say("## Without speech")
    record.say(
        f"Number of sounds with text, of {num_sounds} sounds of {_SOUND_S:g} s. The number of words is in brackets."
    )
    record.table(["sound", "no list", "other words"], rows)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a run or of an exported model")
    parser.add_argument("--data", nargs="+", required=True, help="sets, as in tiny-audio evaluate")
    parser.add_argument(
        "--text", nargs="+", required=True, help="sets whose transcripts determine which words are rare"
    )
    parser.add_argument(
        "--num-common",
        type=int,
        default=300,
        help="this many of the most frequent words of --text do not count as rare",
    )
    parser.add_argument("--words", type=int, default=100, help="number of words in a list")
    parser.add_argument("--max-samples", type=int, help="clips per set")
    parser.add_argument("--sounds", type=int, default=20, help="number of sounds without speech, of each kind")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Record("Context: hotwords against no list", options.output)
    texts = [clip.utterance.text.lower() for data in read_data(options.text, None) for clip in data.clips]
    every, pool = (rare_words(texts, HotwordsConfig(num_common=number)) for number in (0, options.num_common))
    common = frozenset(every) - frozenset(pool)
    model, tokenizer = load_model(options.model)
    plain = Transcriber(model, tokenizer, filter_hallucinations=False, max_padded_s=60.0)
    record.say(
        f"Lists of {options.words} words. The words of a list that are not in the reference come from {len(pool):,} "
        f"words: all words of {len(texts):,} transcripts, except the {options.num_common:,} most frequent words. The "
        "filters are off for speech."
    )
    for data in options.data:
        cases = cases_of(data, pool, common, options.words, options.max_samples)
        for warning in plain.encode_context(Context(cases[0].lists["list"])).warnings:
            record.say(f"Warning: {warning}")
        measure_speech(record, plain, Path(data).stem, cases)
    filtered = Transcriber(model, tokenizer, max_padded_s=60.0)
    measure_sounds(record, {"no filters": plain, "filters": filtered}, cases, min(options.sounds, len(cases)))
    return record.write()


if __name__ == "__main__":
    sys.exit(main())
