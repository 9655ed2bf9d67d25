"""References and hypotheses -> error rates: normalization, WER, CER and other metrics, with intervals.

Error rates depend on the normalizer and the scorer, so every :class:`Score` contains both, with their versions. All
rates and shares are fractions: 0.05 is 5 %.

    ``WER = (S + D + I) / N``, where N is the number of words in all references, and S, D and I are the numbers of
    substituted, deleted and inserted words in the alignment with the lowest cost (see :data:`Cost`). Errors are summed
    over all utterances (pooled).
    ``CER`` is the character error rate. It is computed like WER, from characters instead of words. A space counts as a
    character, and every edit costs 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import ConfigDict

from tiny_audio.analysis.normalizer_names import NormalizerName
from tiny_audio.analysis.scoring._alignment import (
    Alignment,
    align,
    check_cost,
    check_lengths,
    confusions,
    loops,
)
from tiny_audio.analysis.scoring._costs import DESCRIPTIONS, Cost
from tiny_audio.analysis.scoring._normalizers import Normalizer, glues_words, normalizer
from tiny_audio.analysis.scoring.metrics import Transcripts, measure
from tiny_audio.analysis.significance import (
    Groups,
    difference_draws,
    mean_wer,
    num_groups,
    percentile_interval,
    share_below_zero,
    wer_interval,
)
from tiny_audio.config import Config, UserError

__all__ = [
    "DESCRIPTIONS",
    "Alignment",
    "Cost",
    "Normalizer",
    "NormalizerName",
    "PairedDifference",
    "Score",
    "Transcripts",
    "align",
    "check_cost",
    "confusions",
    "glues_words",
    "loops",
    "normalizer",
    "paired_difference",
    "score",
    "score_set",
    "score_transcripts",
]

MIN_BOOTSTRAP = 100
"""Minimum number of resamples for a 95 % interval."""


class Score(Config):
    """Pooled error rates of one set: the errors of all utterances divided by the words of all references.

    A score has an attribute for every metric of :data:`tiny_audio.analysis.scoring.metrics.METRICS` that is computed
    from texts. Only fields that other code reads by name are declared below. The other metrics are extra fields.
    """

    model_config = ConfigDict(extra="allow")

    wer: float | None
    """Word error rate. Insertions can make it larger than 1. None if all references are empty."""
    cer: float | None
    """Character error rate of the normalized text."""
    wer_interval: tuple[float, float] | None
    """95 % interval of ``wer`` by the percentile bootstrap."""
    num_utterances: int
    num_groups: int | None = None
    """Number of groups, usually speakers, that were resampled for the interval. None if utterances were resampled."""
    num_reference_words: int
    substitutions: int
    insertions: int
    deletions: int
    normalizer: NormalizerName
    normalizer_version: str
    cost: Cost = "unit"
    """Costs of edits in the word alignment."""
    scorer: str = "jiwer"
    """Program that aligned the words: ``jiwer`` for the cost ``unit``, ``tiny-audio`` for ``sclite``, and
    ``kaldialign`` for ``compounds`` and ``joined``."""
    scorer_version: str
    empty_hypotheses: int
    """Number of utterances whose normalized hypothesis has no word, although the reference has one."""
    looping_hypotheses: int
    """Number of utterances whose hypothesis loops (see :func:`loops`), although the reference does not."""


class PairedDifference(Config):
    """Difference in WER between two systems on the same utterances, with its interval."""

    wer_baseline: float
    wer_other: float
    difference: float
    """``wer_other - wer_baseline``. It is negative if the other system is better."""
    interval: tuple[float, float]
    """95 % interval of ``difference`` by the paired bootstrap."""
    probability_better: float
    """Share of the resamples in which the other system has the lower WER. Ties count half."""
    num_utterances: int
    num_groups: int | None = None
    """Number of groups that were resampled. None if utterances were resampled."""


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalizer: Normalizer,
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
    groups: Groups = None,
    cost: Cost | None = None,
    durations_s: Sequence[float | None] | None = None,
) -> Score:
    """Score one set.

    Args:
        references: raw reference of each utterance. A reference is empty if nobody speaks in the utterance.
        hypotheses: raw hypothesis of each utterance, in the same order.
        normalizer: the normalizer of references and hypotheses.
        num_bootstrap: number of resamples for the interval.
        seed: seed of the resampling.
        groups: one label per utterance, such as the speaker. Utterances with the same label are resampled together,
            because their errors are correlated. If ``groups`` is None, utterances are resampled.
        cost: the costs of edits. If None, the normalizer's costs are used.
        durations_s: duration of each utterance in seconds, or None if it is unknown. Rates per hour need the durations.

    Raises:
        UserError: there is no utterance, the normalizer removes all text of the references, the numbers of texts
            differ, the cost is unknown, or there are too few resamples.
    """
    transcripts = Transcripts(references, hypotheses, normalizer, cost, durations_s)
    return score_transcripts(transcripts, num_bootstrap=num_bootstrap, seed=seed, groups=groups)


def score_transcripts(
    transcripts: Transcripts, *, num_bootstrap: int = 1000, seed: int = 0, groups: Groups = None
) -> Score:
    """Score transcripts like :func:`score`. Alignments that ``transcripts`` has already computed are used again."""
    _check(transcripts, "hypotheses", num_bootstrap, groups, needs_words=not transcripts.is_silent)
    name, version = transcripts.scorer
    words, errors = transcripts.words, transcripts.errors[None]
    return Score.model_validate(
        {
            **measure(transcripts),
            "wer_interval": wer_interval(errors, words, groups=groups, num_draws=num_bootstrap, seed=seed)
            if words.any()
            else None,
            "num_utterances": len(words),
            "num_groups": num_groups(groups),
            "num_reference_words": int(words.sum()),
            "normalizer": transcripts.normalizer.name,
            "normalizer_version": transcripts.normalizer.version,
            "cost": transcripts.applied_cost,
            "scorer": name,
            "scorer_version": version,
        }
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
    cost: Cost | None = None,
) -> PairedDifference:
    """Compute the WER of the other system minus the WER of the baseline.

    ``baseline`` and ``other`` are raw hypotheses of the same utterances. For the other arguments and the exceptions,
    see :func:`score`.
    """
    before, after = (Transcripts(references, texts, normalizer, cost) for texts in (baseline, other))
    for name, transcripts in (("baseline", before), ("other", after)):
        _check(transcripts, name, num_bootstrap, groups)
    first, second = before.errors[None], after.errors[None]
    draws = difference_draws(
        first, second, before.words, after.words, groups=groups, num_draws=num_bootstrap, seed=seed
    )
    wer_baseline, wer_other = mean_wer(first, before.words), mean_wer(second, after.words)
    return PairedDifference(
        wer_baseline=wer_baseline,
        wer_other=wer_other,
        difference=wer_other - wer_baseline,
        interval=percentile_interval(draws),
        probability_better=share_below_zero(draws),
        num_utterances=len(references),
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
    cost: Cost | None = None,
    durations_s: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """Compute the entry of a set in ``report.json``: the keys of :class:`Score`, and up to three nested entries.

    - ``unnormalized``: the score with the normalizer ``lower``. It is added if ``normalizer`` joins number words of any
      reference into one word, such as "one two" into "12".
    - ``ctc``: the score of ``ctc_hypotheses``, if they are given
    - ``difference``: the :class:`PairedDifference` with ``ctc_hypotheses`` as the baseline. It is added if they are
      given and any reference has a word.

    For the other arguments and the exceptions, see :func:`score`.
    """
    rate = partial(score, num_bootstrap=num_bootstrap, seed=seed, groups=groups, cost=cost, durations_s=durations_s)
    entry = rate(references, hypotheses, normalizer).model_dump(mode="json")
    if any(glues_words(reference, normalizer) for reference in references):
        entry["unnormalized"] = rate(references, hypotheses, _normalizer("lower")).model_dump(mode="json")
    if ctc_hypotheses is not None:
        entry["ctc"] = rate(references, ctc_hypotheses, normalizer).model_dump(mode="json")
        if entry["wer"] is None:
            return entry
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


_normalizer = normalizer  # for use in functions that have an argument called `normalizer`


def _check(
    transcripts: Transcripts, name: str, num_bootstrap: int, groups: Groups, *, needs_words: bool = True
) -> None:
    """Check the input of a score. Error messages call the hypotheses ``name``."""
    references, hypotheses = transcripts.references, transcripts.hypotheses
    if num_bootstrap < MIN_BOOTSTRAP:
        raise UserError(f"num_bootstrap is {num_bootstrap}; an interval needs at least {MIN_BOOTSTRAP} resamples")
    if not references:
        raise UserError("no utterance to score: an error rate needs at least one; check that the set is not empty")
    check_lengths(references, **{name: hypotheses}, **({} if groups is None else {"groups": groups}))
    if needs_words and not transcripts.words.any():
        raise UserError(
            f"the {len(references)} references have no word after the normalizer {transcripts.normalizer.name!r}; an "
            "error rate needs at least one; check the text column, or choose another normalizer"
        )
