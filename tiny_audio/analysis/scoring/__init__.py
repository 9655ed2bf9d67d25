"""From references and hypotheses to error rates: normalization, WER and CER, intervals, paired tests.

A rate means little without its normalizer and its scorer, so both are in every :class:`Score`, with their versions.
All rates and shares are fractions: 0.05 is 5 %.

    ``WER = (S + D + I) / N``, with N the words of all references, and S, D and I the words substituted, deleted and
    inserted in the alignment of least cost, summed over all utterances: pooled, no mean of rates.
    ``CER`` is the same of characters, a space being one, and always at unit cost.

Which alignment is the least depends on what an edit costs: see :data:`Cost`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from tiny_audio import __version__
from tiny_audio.analysis.scoring._alignment import (
    Alignment,
    Confusions,
    align,
    check_cost,
    check_lengths,
    confusions,
    loops,
)
from tiny_audio.analysis.scoring._costs import Cost
from tiny_audio.analysis.scoring._normalizers import Normalizer, NormalizerName, glues_words, normalizer
from tiny_audio.analysis.significance import (
    Groups,
    difference_draws,
    mean_wer,
    num_groups,
    percentile_interval,
    wer_interval,
)
from tiny_audio.config import Config, UserError

__all__ = [
    "Alignment",
    "Confusions",
    "Cost",
    "Normalizer",
    "NormalizerName",
    "PairedDifference",
    "Score",
    "align",
    "check_cost",
    "confusions",
    "difference_of",
    "glues_words",
    "loops",
    "normalizer",
    "paired_difference",
    "score",
    "score_set",
    "scorer",
]

MIN_BOOTSTRAP = 100
"""The fewest resamples from which the ends of a 95 % interval are worth reading."""


class Score(Config):
    """Error rates of one set, pooled: errors of all utterances over reference words of all utterances."""

    wer: float
    """Word error rate; above 1 where insertions abound."""
    cer: float
    """Character error rate, of normalized text; a space is a character."""
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
    cost: Cost = "unit"
    """Of an edit, in the alignment of words."""
    scorer: str = "jiwer"
    """What aligned the words: jiwer at unit cost, ``tiny-audio`` at sclite's."""
    scorer_version: str
    empty_hypotheses: int
    """Utterances without a word, after normalization, where the reference has one."""
    looping_hypotheses: int
    """Utterances that loop (see :func:`loops`) where the reference does not."""


class PairedDifference(Config):
    """Two hypotheses of the same utterances, a baseline's and another: which is better, and could it be chance."""

    wer_baseline: float
    wer_other: float
    difference: float
    """``wer_other - wer_baseline``: negative where the other is better."""
    interval: tuple[float, float]
    """95 % interval of ``difference`` by the paired bootstrap; without 0 in it, the difference is significant."""
    probability_better: float
    """Share of the resamples in which the other has fewer errors, ties counted half: 0.5 says nothing, below 0.025 or
    above 0.975 is what the interval calls significant."""
    num_utterances: int
    num_groups: int | None = None
    """As in :class:`Score`."""


def scorer(cost: Cost) -> tuple[str, str]:
    """What aligns words at this cost, and its version."""
    if cost == "unit":
        return "jiwer", importlib.metadata.version("jiwer")
    return "tiny-audio", __version__


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalizer: Normalizer,
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
    groups: Groups = None,
    cost: Cost = "unit",
    alignments: Sequence[Alignment] | None = None,
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
        cost: of an edit.
        alignments: what :func:`align` gave for the same texts, normalizer and cost, where that is at hand.

    Raises:
        UserError: no utterance, no reference word, lengths that differ, a cost that there is not, or too few resamples.
    """
    import jiwer

    alignments = _alignments(
        references, normalizer, num_bootstrap, groups, cost, alignments=alignments, hypotheses=hypotheses
    )
    words = np.array([alignment.num_reference_words for alignment in alignments])
    errors = np.array([alignment.errors for alignment in alignments])
    said, heard = list(map(normalizer, references)), list(map(normalizer, hypotheses))
    name, version = scorer(cost)
    return Score(
        wer=float(errors.sum() / words.sum()),
        cer=float(jiwer.process_characters(said, heard).cer),
        wer_interval=wer_interval(errors[None], words, groups=groups, num_draws=num_bootstrap, seed=seed),
        num_utterances=len(references),
        num_groups=num_groups(groups),
        num_reference_words=int(words.sum()),
        substitutions=sum(alignment.substitutions for alignment in alignments),
        insertions=sum(alignment.insertions for alignment in alignments),
        deletions=sum(alignment.deletions for alignment in alignments),
        normalizer=normalizer.name,
        normalizer_version=normalizer.version,
        cost=cost,
        scorer=name,
        scorer_version=version,
        empty_hypotheses=sum(bool(a) and not b for a, b in zip(said, heard, strict=True)),
        looping_hypotheses=sum(loops(b) and not loops(a) for a, b in zip(references, hypotheses, strict=True)),
    )


def paired_difference(
    references: Sequence[str],
    baseline: Sequence[str],
    other: Sequence[str],
    normalizer: Normalizer,
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
    groups: Groups = None,
    cost: Cost = "unit",
) -> PairedDifference:
    """WER of the other less WER of the baseline (see :mod:`tiny_audio.analysis.significance`); below 0, the other is
    better.

    ``baseline`` and ``other`` are raw hypotheses of the same utterances. Arguments and errors as in :func:`score`.
    """
    before = _alignments(references, normalizer, num_bootstrap, groups, cost, baseline=baseline)
    after = _alignments(references, normalizer, num_bootstrap, groups, cost, other=other)
    return difference_of(before, after, num_bootstrap=num_bootstrap, seed=seed, groups=groups)


def difference_of(
    baseline: Sequence[Alignment],
    other: Sequence[Alignment],
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
    groups: Groups = None,
) -> PairedDifference:
    """:func:`paired_difference` of what is aligned already, with a word in some reference."""
    words = np.array([alignment.num_reference_words for alignment in baseline])
    first, second = (np.array([[alignment.errors for alignment in side]]) for side in (baseline, other))
    draws = difference_draws(first, second, words, groups=groups, num_draws=num_bootstrap, seed=seed)
    return PairedDifference(
        wer_baseline=mean_wer(first, words),
        wer_other=mean_wer(second, words),
        difference=mean_wer(second, words) - mean_wer(first, words),
        interval=percentile_interval(draws),
        probability_better=float((draws < 0).mean() + (draws == 0).mean() / 2),
        num_utterances=len(baseline),
        num_groups=num_groups(groups),
    )


def score_set(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalizer: Normalizer,
    *,
    ctc_hypotheses: Sequence[str] | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
    groups: Groups = None,
    cost: Cost = "unit",
) -> dict[str, Any]:
    """One set's entry in ``report.json``: the keys of :class:`Score`, and nested, where they apply,

    - ``unnormalized``: the score in lower case only, where ``normalizer`` glues the words of some reference;
    - ``ctc``: the score of ``ctc_hypotheses``;
    - ``difference``: the :class:`PairedDifference` of ``hypotheses`` from ``ctc_hypotheses``, the baseline: negative
      where the decoder is better than the CTC head.

    Arguments and errors as in :func:`score`.
    """
    rate = partial(score, num_bootstrap=num_bootstrap, seed=seed, groups=groups, cost=cost)
    entry = rate(references, hypotheses, normalizer).model_dump(mode="json")
    if any(glues_words(reference, normalizer) for reference in references):
        entry["unnormalized"] = rate(references, hypotheses, _normalizer("lower")).model_dump(mode="json")
    if ctc_hypotheses is not None:
        entry["ctc"] = rate(references, ctc_hypotheses, normalizer).model_dump(mode="json")
        difference = paired_difference(
            references,
            ctc_hypotheses,
            hypotheses,
            normalizer,
            num_bootstrap=num_bootstrap,
            seed=seed,
            groups=groups,
            cost=cost,
        )
        entry["difference"] = difference.model_dump(mode="json")
    return entry


_normalizer = normalizer  # for functions with an argument of that name


def _alignments(
    references: Sequence[str],
    normalizer: Normalizer,
    num_bootstrap: int,
    groups: Groups,
    cost: Cost,
    *,
    alignments: Sequence[Alignment] | None = None,
    **hypotheses: Sequence[str],
) -> Sequence[Alignment]:
    """Check what all rates need, then align; the keyword of ``hypotheses`` is its name in messages."""
    if num_bootstrap < MIN_BOOTSTRAP:
        raise UserError(f"num_bootstrap is {num_bootstrap}; an interval takes at least {MIN_BOOTSTRAP} resamples")
    if not references:
        raise UserError("no utterance to score: an error rate needs at least one; check that the set is not empty")
    ((name, texts),) = hypotheses.items()
    check_lengths(references, **{name: texts}, **({} if groups is None else {"groups": groups}))
    if alignments is None:
        alignments = align(references, texts, normalizer, cost=cost)
    assert len(alignments) == len(references), "of the same texts"
    if not any(alignment.num_reference_words for alignment in alignments):
        raise UserError(
            f"the {len(references)} references have no word after the normalizer {normalizer.name!r}; an error rate "
            "needs at least one; check the text column, or choose another normalizer"
        )
    return alignments
