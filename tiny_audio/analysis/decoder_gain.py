"""Measure the gain from the decoder: compare a run's model with recognizers that use its encoder but not its decoder.

There are two such recognizers: the model's own CTC head, and the encoder's published checkpoint, such as Whisper with
Whisper's decoder. The model is compared with each recognizer, which is the baseline, by the rule of
:mod:`tiny_audio.analysis.comparison`. Holm's correction
treats all comparisons of a run as one family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tiny_audio.analysis.comparison import TIE, AlignedSet, Row, SetComparison, compare_sets
from tiny_audio.analysis.ledger import three_digits
from tiny_audio.analysis.normalizer_names import NormalizerName
from tiny_audio.analysis.rescore import Target, align_targets
from tiny_audio.analysis.scoring import normalizer
from tiny_audio.analysis.tables import units_text
from tiny_audio.runtime.columns import wrapped

MODEL = "whole model"
"""The name of the run's model in comparisons."""


@dataclass(frozen=True)
class Speed:
    """The speed of a recognizer on clips that are transcribed one by one."""

    num_clips: int
    """Number of clips for which the time was measured."""
    latency_s: float
    """Median time for one clip in seconds, without loading the audio."""
    flops_per_s: float
    """FLOPs per second of audio, without elementwise operations. A multiply-add counts as two."""


@dataclass(frozen=True)
class EncoderSystem:
    """A recognizer that uses the model's encoder but not its decoder, and its hypotheses for one set."""

    set_name: str
    name: str
    normalizer: NormalizerName
    """The normalizer for the references, and for the hypotheses of this system and of the model."""
    rows: Sequence[Row]
    """Rows with ``id``, ``text`` and ``pred_text``."""
    speed: Speed | None
    """Speed of this system. None if it was not measured."""
    model_speed: Speed | None
    """Speed of the model on the same clips. None if it was not measured."""


@dataclass(frozen=True)
class DecoderGain:
    """The result of comparing the model with one system, which is the baseline."""

    system: EncoderSystem
    comparison: SetComparison

    def to_json(self) -> dict[str, Any]:
        """Return the entry of ``decoder_gain`` in ``report.json``. Rates are fractions."""
        aligned, rule = self.comparison.aligned, normalizer(self.system.normalizer)
        return {
            "set": self.system.set_name,
            "system": self.system.name,
            "normalizer": rule.name,
            "normalizer_version": rule.version,
            "num_utterances": len(aligned.rows),
            "num_reference_words": int(aligned.words.sum()),
            "group_by": aligned.column,
            "num_groups": aligned.num_groups,
            "rates": {
                rate.name: {"wer": rate.wer, "wer_interval": rate.interval and list(rate.interval)}
                for rate in self.comparison.rates
            },
            "difference": self.comparison.differences[0].to_json(),
            "slices": [part.to_json() for part in self.comparison.slices],
            "speed": {
                name: speed and asdict(speed)
                for name, speed in ((self.system.name, self.system.speed), (MODEL, self.system.model_speed))
            },
        }


def decoder_gains(
    systems: Sequence[EncoderSystem], model_rows: Mapping[str, Sequence[Row]], group_by: str | None
) -> list[DecoderGain]:
    """Compare the model with every system, on the clips for which both the model and the system have a hypothesis.

    A system is omitted if there are no such clips, or if none of their references has a word.

    Args:
        systems: the systems of all sets.
        model_rows: the model's rows by name of the set.
        group_by: the value of ``evaluation.group_by``.
    """
    sets: dict[str, AlignedSet] = {}
    compared = []
    for system in systems:
        model = model_rows[system.set_name]
        if not {row["id"] for row in system.rows if not row.get("error")} & {row["id"] for row in model}:
            continue
        targets = [_target(system.name, system.rows), _target(MODEL, model)]
        aligned, _ = align_targets(targets, normalizer(system.normalizer), group_by=group_by)
        if aligned.words.any():
            sets[f"{system.set_name}/{system.name}"] = aligned
            compared.append(system)
    found = compare_sets(sets)
    return [DecoderGain(system, entry) for system, entry in zip(compared, found.values(), strict=True)]


def _target(name: str, rows: Sequence[Row]) -> Target:
    # CTC texts are left out, because only `pred_text` is compared.
    return Target(name, Path(), {row["id"]: {"error": None, **row, "ctc_text": None} for row in rows})


def gain_lines(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield lines for the terminal about the entries of ``decoder_gain`` in ``report.json``."""
    if not entries:
        return
    yield "What the decoder adds, relative to recognizers with the same encoder and clips:"
    for entry in entries:
        own, model = (entry["rates"][name]["wer"] for name in (entry["system"], MODEL))
        found = entry["difference"]
        low, high = (100 * end for end in found["interval"])
        verdict = found["verdict"] if found["verdict"] == TIE else f"{found['verdict']} with the decoder"
        text = (
            f"{entry['set']}: WER {own:.2%} with {entry['system']}, {model:.2%} with the model: "
            f"{100 * found['difference']:+.2f} points [{low:+.2f}, {high:+.2f}], {verdict}{_costs(entry)}"
        )
        yield from wrapped(text)
    units = units_text(entry["group_by"] for entry in entries)
    rules = ", ".join(dict.fromkeys(entry["normalizer"] for entry in entries))
    yield from wrapped(f"intervals come from a bootstrap over {units}; normalizer {rules}")


def _costs(entry: Mapping[str, Any]) -> str:
    own, model = (entry["speed"][name] for name in (entry["system"], MODEL))
    if own is None or model is None or not own["flops_per_s"]:
        return ""
    flops, time = (model[key] / own[key] for key in ("flops_per_s", "latency_s"))
    return f"; {three_digits(flops)} times the FLOPs, {three_digits(time)} times the latency with the model"
