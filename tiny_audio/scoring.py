"""From references and hypotheses to error rates: normalisation, WER and CER, intervals, paired tests.

A rate means little without its normaliser and its scorer, so both are in every :class:`Score`, with their versions.
All rates and shares are fractions: 0.05 is 5 %. Words are aligned by jiwer with costs 1/1/1; sclite weighs 4/3/3,
and so counts ``a b c d e`` against ``d e x y z`` as 6 errors, where this counts 5.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from itertools import zip_longest
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tiny_audio.config import Config, UserError

NormalizerName = Literal["none", "lower", "basic", "whisper_english"]

LOOP_REPEATS = 4
"""So many times in a row must an n-gram of words come for a text to count as looping."""

MIN_BOOTSTRAP = 100
"""The fewest resamples from which the ends of a 95 % interval are worth reading."""

_CHUNK = 1 << 22  # resampled indices held at a time, about 32 MB
_BRACKETED = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+\)")


@dataclass(frozen=True)
class Normalizer:
    """Text -> the text that is scored: words with single spaces between them, none at the ends."""

    name: NormalizerName
    version: str
    """The package and its version, or, for the rules of this file, the version of the rule."""
    rule: Callable[[str], str] = field(repr=False, compare=False)

    def __call__(self, text: str) -> str:
        """The text to score, of raw text."""
        return " ".join(self.rule(text).split())


# A set is normalised several times over (words, characters, paired tests, the report), at up to 0.3 ms a text.
_memoized = lru_cache(maxsize=1 << 17)


@cache
def normalizer(name: NormalizerName) -> Normalizer:
    """The normaliser called ``name``.

    All of them fold whitespace: each run of it becomes one space, and the ends are stripped.

    - ``none``: nothing else.
    - ``lower``: lower case, nothing else.
    - ``basic``: Whisper's multilingual rules: lower case, no remarks in brackets, symbols and punctuation as spaces.
      It replaces combining marks too, which are vowels in many scripts.
    - ``whisper_english``: Whisper's English rules (arXiv 2212.04356, appendix C): contractions written out, fillers
      removed, American spelling, numbers in digits. It glues spoken digits ("one two three" -> "123"; see
      :func:`glues_words`) and is not idempotent ("oh one" -> "01" -> "one"): give it raw text, and once.

    Raises:
        UserError: there is no such normaliser.
    """
    if name == "none":
        return Normalizer(name, "1", str)
    if name == "lower":
        return Normalizer(name, "1", str.lower)
    if name not in get_args(NormalizerName):
        allowed = ", ".join(get_args(NormalizerName))
        raise UserError(f"unknown normalizer {name!r}; allowed: {allowed}; choose one of these")
    version = f"whisper-normalizer {importlib.metadata.version('whisper-normalizer')}"
    if name == "basic":
        from whisper_normalizer.basic import BasicTextNormalizer

        return Normalizer(name, version, _memoized(BasicTextNormalizer()))
    from whisper_normalizer.english import EnglishTextNormalizer

    english = EnglishTextNormalizer()
    # Python reads no integer of over 4,300 digits, and the rules read every one: a hypothesis may loop that long.
    return Normalizer(name, version, _memoized(lambda text: english(re.sub(r"(\d{1000})(?=\d)", r"\1 ", text))))


def glues_words(reference: str, normalizer: Normalizer) -> bool:
    """Whether ``normalizer`` makes one word out of several of this reference's words, at its numbers.

    Then a single wrong digit costs the whole string ("one two three four" -> "1234"), and WER counts fewer words than
    were said. Word by word the same rules cannot glue, so that fewer words in one piece means that they were glued;
    fillers and contractions do not count.
    """
    glued = normalizer(reference).split()
    if not any(map(_has_digit, glued)):
        return False  # the rule for nearly every text, and it saves normalising each word
    # Remarks in brackets are removed, not glued, and would be cut up word by word.
    apart = [word for said in _BRACKETED.sub(" ", reference).split() for word in normalizer(said).split()]
    return len(glued) < len(apart) and _numbers(glued) != _numbers(apart)


def _has_digit(word: str) -> bool:
    return any(map(str.isdigit, word))


def _numbers(words: Sequence[str]) -> Counter[str]:
    # Whisper's rules write a lone 1 as a word, "for readability".
    return Counter(word for word in words if _has_digit(word) or word in ("one", "ones"))


@dataclass(frozen=True)
class Alignment:
    """One utterance, word by word: (reference word, hypothesis word), ``None`` where the other side has none."""

    pairs: tuple[tuple[str | None, str | None], ...]

    @property
    def hits(self) -> int:
        """Words that are right."""
        return sum(reference == hypothesis for reference, hypothesis in self.pairs)

    @property
    def deletions(self) -> int:
        """Reference words that the hypothesis lacks."""
        return sum(hypothesis is None for _, hypothesis in self.pairs)

    @property
    def insertions(self) -> int:
        """Hypothesis words that the reference lacks."""
        return sum(reference is None for reference, _ in self.pairs)

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return len(self.pairs) - self.hits

    @property
    def substitutions(self) -> int:
        """Reference words that the hypothesis has another word for."""
        return self.errors - self.deletions - self.insertions

    @property
    def num_reference_words(self) -> int:
        """Hits, substitutions and deletions."""
        return len(self.pairs) - self.insertions


def align(references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer) -> list[Alignment]:
    """Normalise, then align word by word with the fewest edits.

    An empty reference is legitimate: all of its hypothesis is insertions.

    Raises:
        UserError: not as many hypotheses as references.
    """
    import jiwer

    _check_lengths(references, hypotheses=hypotheses)
    if not references:
        return []
    output = jiwer.process_words(list(map(normalizer, references)), list(map(normalizer, hypotheses)))
    alignments = []
    for said, heard, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        pairs: list[tuple[str | None, str | None]] = []
        for chunk in chunks:
            # One of the sides is empty in an insertion or deletion; otherwise they are equally long.
            pairs += zip_longest(
                said[chunk.ref_start_idx : chunk.ref_end_idx], heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
            )
        alignments.append(Alignment(tuple(pairs)))
    return alignments


def loops(text: str) -> bool:
    """Whether some n-gram of words, of any length, comes ``LOOP_REPEATS`` times or more in a row.

    Case and punctuation do not count. This looks at raw text, since a normaliser hides loops of digits by gluing them.
    """
    words = re.findall(r"[\w']+", text.lower())
    for n in range(1, len(words) // LOOP_REPEATS + 1):
        run = 0
        for word, later in zip(words, words[n:], strict=False):
            run = run + 1 if word == later else 0
            if run == n * (LOOP_REPEATS - 1):
                return True
    return False


class Score(Config):
    """Error rates of one set, pooled: errors of all utterances over reference words of all utterances."""

    wer: float
    """Word error rate; above 1 where insertions abound."""
    cer: float
    """Character error rate, of normalised text; a space is a character."""
    wer_interval: tuple[float, float]
    """95 % percentile bootstrap interval of ``wer``."""
    num_utterances: int
    num_groups: int | None = None
    """The groups (speakers, as a rule) that were resampled for the interval; ``None``: utterances were."""
    num_reference_words: int
    substitutions: int
    insertions: int
    deletions: int
    normalizer: NormalizerName
    normalizer_version: str
    scorer: str = "jiwer"
    scorer_version: str
    empty_hypotheses: int
    """Utterances without a word, after normalisation, where the reference has one."""
    looping_hypotheses: int
    """Utterances that loop (see :func:`loops`) where the reference does not."""


class PairedDifference(Config):
    """Two hypotheses of the same utterances, ``a`` and ``b``: which is better, and could that be chance."""

    wer_a: float
    wer_b: float
    difference: float
    """``wer_a - wer_b``: positive where b is better."""
    interval: tuple[float, float]
    """95 % paired percentile bootstrap interval of ``difference``; without 0 in it, the difference is significant."""
    probability_b_better: float
    """Share of the resamples in which b has fewer errors, ties counted half: 0.5 says nothing, below 0.025 or above
    0.975 is what the interval calls significant."""
    num_utterances: int
    num_groups: int | None = None
    """As in :class:`Score`."""


class Confusions(Config):
    """The most common errors of each kind, most common first, ties in alphabetical order."""

    substitutions: tuple[tuple[str, str, int], ...]
    """(reference word, hypothesis word, count)"""
    deletions: tuple[tuple[str, int], ...]
    """(reference word, count)"""
    insertions: tuple[tuple[str, int], ...]
    """(hypothesis word, count)"""


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalizer: Normalizer,
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
    groups: Sequence[str | None] | None = None,
) -> Score:
    """Score one set.

    Args:
        references: raw text, one per utterance; may be empty strings, but not all of them.
        hypotheses: raw text, in the order of ``references``.
        normalizer: applied to both.
        num_bootstrap: resamples for the interval.
        seed: decides the resamples, and so the interval, exactly.
        groups: one label per utterance, such as the speaker. Utterances of a group are resampled together, since they
            fail together: without groups the interval is too narrow. ``None`` in it is a group of its own.

    Raises:
        UserError: no utterance, no reference word, lengths that differ, or too few resamples.
    """
    import jiwer

    alignments = _alignments(references, normalizer, num_bootstrap, groups, hypotheses=hypotheses)
    words = np.array([alignment.num_reference_words for alignment in alignments])
    errors = np.array([alignment.errors for alignment in alignments])
    samples = resample(np.stack([errors, words]), groups, num_bootstrap, seed)  # [2, num_bootstrap]
    said, heard = list(map(normalizer, references)), list(map(normalizer, hypotheses))
    return Score(
        wer=float(errors.sum() / words.sum()),
        cer=float(jiwer.process_characters(said, heard).cer),
        wer_interval=percentile_interval(samples[0] / samples[1]),
        num_utterances=len(references),
        num_groups=_num_groups(groups),
        num_reference_words=int(words.sum()),
        substitutions=sum(alignment.substitutions for alignment in alignments),
        insertions=sum(alignment.insertions for alignment in alignments),
        deletions=sum(alignment.deletions for alignment in alignments),
        normalizer=normalizer.name,
        normalizer_version=normalizer.version,
        scorer_version=importlib.metadata.version("jiwer"),
        empty_hypotheses=sum(bool(a) and not b for a, b in zip(said, heard, strict=True)),
        looping_hypotheses=sum(loops(b) and not loops(a) for a, b in zip(references, hypotheses, strict=True)),
    )


def paired_difference(
    references: Sequence[str],
    hypotheses_a: Sequence[str],
    hypotheses_b: Sequence[str],
    normalizer: Normalizer,
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
    groups: Sequence[str | None] | None = None,
) -> PairedDifference:
    """WER of a minus WER of b on the same utterances, by the paired bootstrap (Bisani and Ney, ICASSP 2004).

    Each resample draws the same utterances, or groups, for both, so that what is hard for both cancels. Arguments and
    errors as in :func:`score`.
    """
    a = _alignments(references, normalizer, num_bootstrap, groups, hypotheses_a=hypotheses_a)
    b = _alignments(references, normalizer, num_bootstrap, groups, hypotheses_b=hypotheses_b)
    words = np.array([alignment.num_reference_words for alignment in a])
    errors_a, errors_b = (np.array([alignment.errors for alignment in side]) for side in (a, b))
    samples = resample(np.stack([errors_a - errors_b, words]), groups, num_bootstrap, seed)  # [2, num_bootstrap]
    wins, ties = float((samples[0] > 0).mean()), float((samples[0] == 0).mean())
    return PairedDifference(
        wer_a=float(errors_a.sum() / words.sum()),
        wer_b=float(errors_b.sum() / words.sum()),
        difference=float((errors_a - errors_b).sum() / words.sum()),
        interval=percentile_interval(samples[0] / samples[1]),
        probability_b_better=wins + ties / 2,
        num_utterances=len(references),
        num_groups=_num_groups(groups),
    )


def score_set(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalizer: Normalizer,
    *,
    ctc_hypotheses: Sequence[str] | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
    groups: Sequence[str | None] | None = None,
) -> dict[str, Any]:
    """One set's entry in ``report.json``: the keys of :class:`Score`, and nested, where they apply,

    - ``unnormalized``: the score in lower case only, where ``normalizer`` glues the words of some reference;
    - ``ctc``: the score of ``ctc_hypotheses``;
    - ``difference``: the :class:`PairedDifference` of ``hypotheses`` (a) and ``ctc_hypotheses`` (b): negative where
      the decoder is better than the CTC head.

    Arguments and errors as in :func:`score`.
    """
    rate = partial(score, num_bootstrap=num_bootstrap, seed=seed, groups=groups)
    entry = rate(references, hypotheses, normalizer).model_dump(mode="json")
    if any(glues_words(reference, normalizer) for reference in references):
        entry["unnormalized"] = rate(references, hypotheses, _normalizer("lower")).model_dump(mode="json")
    if ctc_hypotheses is not None:
        entry["ctc"] = rate(references, ctc_hypotheses, normalizer).model_dump(mode="json")
        difference = paired_difference(
            references, hypotheses, ctc_hypotheses, normalizer, num_bootstrap=num_bootstrap, seed=seed, groups=groups
        )
        entry["difference"] = difference.model_dump(mode="json")
    return entry


def confusions(alignments: Sequence[Alignment], *, limit: int = 20) -> Confusions:
    """The most common errors among ``alignments``, at most ``limit`` of each kind."""
    pairs = Counter(pair for alignment in alignments for pair in alignment.pairs if pair[0] != pair[1])
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or ""))
    return Confusions(
        substitutions=tuple((a, b, count) for (a, b), count in ranked if a is not None and b is not None)[:limit],
        deletions=tuple((a, count) for (a, b), count in ranked if a is not None and b is None)[:limit],
        insertions=tuple((b, count) for (a, b), count in ranked if a is None and b is not None)[:limit],
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of comparisons, adjusted so that those below 0.05 hold a mistake in 5 % of families at most.

    Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979), in the order of ``p_values``: as strict
    as Bonferroni for the least of them, less so for the others. It asks nothing of how they depend on each other.
    """
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = floor
    return adjusted


_normalizer = normalizer  # for functions with an argument of that name


def _check_lengths(references: Sequence[str], **others: Sequence[object]) -> None:
    for name, values in others.items():
        if len(values) != len(references):
            raise UserError(
                f"{len(references)} references, but {len(values)} {name}; they must come in the same order, "
                "one for each utterance"
            )


def _alignments(
    references: Sequence[str],
    normalizer: Normalizer,
    num_bootstrap: int,
    groups: Sequence[str | None] | None,
    **hypotheses: Sequence[str],
) -> list[Alignment]:
    """Check what all rates need, then align; the keyword of ``hypotheses`` is its name in messages."""
    if num_bootstrap < MIN_BOOTSTRAP:
        raise UserError(f"num_bootstrap is {num_bootstrap}; an interval takes at least {MIN_BOOTSTRAP} resamples")
    if not references:
        raise UserError("no utterance to score: an error rate needs at least one; check that the set is not empty")
    ((name, texts),) = hypotheses.items()
    _check_lengths(references, **{name: texts}, **({} if groups is None else {"groups": groups}))
    alignments = align(references, texts, normalizer)
    if not any(alignment.num_reference_words for alignment in alignments):
        raise UserError(
            f"the {len(references)} references have no word after the normalizer {normalizer.name!r}; an error rate "
            "needs at least one; check the text column, or choose another normalizer"
        )
    return alignments


def group_numbers(groups: Sequence[str | None]) -> NDArray[np.int64]:
    """Group numbers from 0, in order of appearance; each ``None`` has one to itself."""
    seen: dict[str | int, int] = {}
    return np.array([seen.setdefault(i if group is None else group, len(seen)) for i, group in enumerate(groups)])


def pool(counts: NDArray[np.int64], groups: Sequence[str | None] | None) -> NDArray[np.int64]:
    """Sums of ``counts`` [C, U] within groups -> [C, G]; without groups, each utterance is its own."""
    if groups is None:
        return counts
    units = group_numbers(groups)
    pooled = np.zeros((len(counts), units.max() + 1), dtype=np.int64)
    for row, values in zip(pooled, counts, strict=True):
        np.add.at(row, units, values)
    return pooled


def _num_groups(groups: Sequence[str | None] | None) -> int | None:
    return None if groups is None else int(group_numbers(groups).max()) + 1


def resample(
    counts: NDArray[np.int64], groups: Sequence[str | None] | None, num_bootstrap: int, seed: int
) -> NDArray[np.int64]:
    """Sums of ``counts`` [C, U] over resampled utterances or groups, the same draws for every row.

    The last row holds reference words. Resamples without one have no rate and are left out: at most about one in e.

    Returns:
        ``[C, R]``, R ≤ ``num_bootstrap``.
    """
    counts = pool(counts, groups)
    rng = np.random.default_rng(seed)
    size = counts.shape[1]
    rows = max(1, _CHUNK // size)
    sums = []
    for start in range(0, num_bootstrap, rows):
        drawn = rng.integers(size, size=(min(rows, num_bootstrap - start), size))  # [rows, units]
        sums.append(np.stack([row[drawn].sum(axis=1) for row in counts]))
    samples = np.concatenate(sums, axis=1)
    return samples[:, samples[-1] > 0]


def percentile_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of ``values`` ``[R]``."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
