"""For several runs, plot error rates and the use of the audio against hours of training audio.

    python benchmarks/open_vocabulary.py "projector first=runs/open:400,800,1000" "plain=runs/plain:100,200" \\
        --data all.jsonl --clips 30 --kept curves.jsonl --plot docs/open_vocabulary.svg

The model of each saved step decodes the clips greedily. The table has the hours of audio and the minutes of training up
to that step, the word error rate, and the bits per token from the audio: how much less likely the reference becomes if
the decoder gets the audio of another clip (see :mod:`tiny_audio.analysis.audio_bits`).

For runs with an alignment loss, the table also has the word and character error rates of the projector alone. Its text
consists of the tokens whose embeddings are most similar to the audio embeddings, without blanks and repetitions. The
first ``alignment.alone_steps`` steps do not train the decoder. For models that were saved in these steps, the table has
only the rates of the projector alone and, if there is a CTC head, of this head.

Results are stored in the file ``--kept``, so that a later call can add steps. ``execution.checkpoint_every`` and
``execution.keep_checkpoints`` set which steps of a run are saved.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from record import Record
from use_of_audio import bits, embed

from tiny_audio.analysis.scoring import normalizer, score
from tiny_audio.commands.run.checkpoint import SavedStep
from tiny_audio.commands.run.state import RunState
from tiny_audio.data.text import TargetText
from tiny_audio.evaluation.audio_bits import spread
from tiny_audio.evaluation.data import DataSet, read_data
from tiny_audio.model.alignment import AlignmentLoss
from tiny_audio.recipe import Recipe
from tiny_audio.training.checkpoint import read_progress

Row = dict[str, Any]
_KEYS = ("name", "step", "set", "clips")
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def measure(name: str, saved: SavedStep, sets: Sequence[DataSet], most: int, rule_name: str) -> list[Row]:
    """Return the scores of one saved step, with one row for each set."""
    model, tokenizer, report = saved.load()
    model.float()  # if a run trains in bf16, its frozen weights are loaded in bf16
    recipe = Recipe.model_validate_json(json.dumps(report["recipe"]))
    alignment, state = recipe.alignment, RunState.read(saved.run)
    assert state is not None
    assert state.training is not None
    assert state.training.spelling is not None
    labels = state.training.spelling.vocabulary.token_ids
    progress, rule, rewrite = read_progress(saved.folder), normalizer(rule_name), TargetText.of(recipe.data.target_text)
    is_alone = saved.step <= recipe.alone_steps
    rows = []
    for data in sets:
        found = embed(model, tokenizer, spread(data.clips, most), rewrite, decodes=not is_alone)
        groups, references = [clip.speaker for clip in found], [clip.reference for clip in found]
        row = {"name": name, "step": saved.step, "set": data.name, "clips": most, "measured": len(found)}
        row |= {"hours": progress.audio_s / 3600, "minutes": progress.wall_s / 60}
        if labels is not None and alignment is not None:
            nearest = AlignmentLoss(alignment, labels).nearest
            ids = [nearest(model.decoder, clip.audio[None], torch.tensor([len(clip.audio)]))[0] for clip in found]
            texts = [tokenizer.decode(tokens) for tokens in ids]
            scored = score(references, texts, rule, groups=groups)
            row |= {"projector_wer": scored.wer, "projector_wer_interval": scored.wer_interval}
            row |= {"projector_cer": scored.cer}
        if model.ctc_head is not None:
            scored = score(references, [clip.ctc_text or "" for clip in found], rule, groups=groups)
            row |= {"ctc_wer": scored.wer, "ctc_wer_interval": scored.wer_interval, "ctc_cer": scored.cer}
        if not is_alone:
            scored = score(references, [clip.text for clip in found], rule, groups=groups)
            row |= {"wer": scored.wer, "wer_interval": scored.wer_interval, **bits(model, tokenizer, found)}
        rows.append(row)
    return rows


def chart(title: str, curves: dict[str, list[tuple[float, float]]], top: float, left: float) -> list[str]:
    """Return the SVG elements of curves over hours of audio. Values above ``top`` are drawn at the top."""
    width, height = 330.0, 200.0
    longest = max([hours for points in curves.values() for hours, _ in points], default=1.0)

    def at(hours: float, value: float) -> tuple[float, float]:
        return left + width * hours / longest, 30 + height * (1 - min(value, top) / top)

    drawn = [f'<text x="{left}" y="18" font-weight="bold">{escape(title)}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = at(share * longest, share * top)
        drawn.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        drawn.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share * top:g}</text>')
        drawn.append(f'<text x="{x:.1f}" y="{height + 46}" text-anchor="middle">{share * longest:.1f}</text>')
    drawn.append(f'<text x="{left + width / 2}" y="{height + 62}" text-anchor="middle">hours of audio</text>')
    for index, (name, points) in enumerate(curves.items()):
        color = _COLORS[index % len(_COLORS)]
        places = [at(*point) for point in sorted(points)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        drawn += (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"><title>{escape(name)}</title></circle>'
            for x, y in places
        )
    return drawn


def plot(rows: Sequence[Row], name: str) -> str:
    """Return an SVG image with the error rates and the bits of one set."""
    own = [row for row in rows if row["set"] == name]
    runs = list(dict.fromkeys(row["name"] for row in own))

    def curve(run: str, key: str, factor: float = 1) -> list[tuple[float, float]]:
        return [(row["hours"], factor * row[key]) for row in own if row["name"] == run and key in row]

    rates = {run: curve(run, "wer", 100) for run in runs}
    rates |= {f"{run}, projector alone": curve(run, "projector_wer", 100) for run in runs}
    used = {run: curve(run, "bits_from_audio") for run in runs}
    top = float(int(max([bits for points in used.values() for _, bits in points], default=0)) + 1)
    drawn = chart(f"WER in %, {name}", rates, 150.0, 50.0)
    drawn += chart(f"Bits per token from the audio, {name}", used, top, 450.0)
    shown = [run for run, points in rates.items() if points]
    for index, run in enumerate(shown):
        y, color = 290 + 18 * index, _COLORS[list(rates).index(run) % len(_COLORS)]
        drawn.append(f'<line x1="50" x2="75" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"/>')
        drawn.append(f'<text x="82" y="{y + 4}">{escape(run)}</text>')
    size = f'viewBox="0 0 800 {295 + 18 * len(shown)}"'
    style = 'font-family="sans-serif" font-size="12" fill="#333"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', *drawn, "</svg>", ""])


def main() -> int:
    """Measure the steps that are not in the file of results yet, print the table, and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="NAME=RUN:STEP,STEP")
    parser.add_argument("--data", nargs="+", required=True, help="sets, as for tiny-audio evaluate")
    parser.add_argument("--clips", type=int, default=100, help="number of clips of each set, spread over the set")
    parser.add_argument("--normalizer", default="whisper_english")
    parser.add_argument("--kept", type=Path, required=True, help="file for the results, one JSON object per line")
    parser.add_argument("--plot", type=Path, help="SVG file for the curves of the first set")
    options = parser.parse_args()
    sets = read_data(options.data, None)
    kept = [json.loads(line) for line in options.kept.read_text().splitlines()] if options.kept.exists() else []
    for text in options.runs:
        name, _, place = text.partition("=")
        run, _, steps = place.rpartition(":")
        for step in map(int, steps.split(",")):
            known = {tuple(row[key] for key in _KEYS) for row in kept}
            missing = [data for data in sets if (name, step, data.name, options.clips) not in known]
            saved = SavedStep.find(Path(run), step)
            if saved is None:
                sys.exit(f"{run} has no saved model of step {step}")
            if missing:
                kept += measure(name, saved, missing, options.clips, options.normalizer)
                options.kept.write_text("".join(json.dumps(row) + "\n" for row in kept))
    record = Record("Open vocabulary", None)
    alone = ("WER, projector alone", "CER, projector alone", "WER, CTC head", "CER, CTC head")
    head = ("run", "set", "step", "hours of audio", "minutes", "clips", "WER", *alone, "bits per token")
    record.table(head, [shown(row) for row in kept])
    if options.plot:
        options.plot.write_text(plot(kept, sets[0].name))
    return 0


def shown(row: Row) -> tuple[str, ...]:
    """Return the cells of a row."""
    start = (row["name"], row["set"], f"{row['step']}", f"{row['hours']:.2f}", f"{row['minutes']:.0f}")
    rates = [with_interval(row, "wer", 100, 1)]
    for part in ("projector", "ctc"):
        characters = f"{row[f'{part}_cer']:.1%}".replace("%", " %") if f"{part}_cer" in row else ""
        rates += [with_interval(row, f"{part}_wer", 100, 1), characters]
    return *start, f"{row['measured']}", *rates, with_interval(row, "bits_from_audio", 1, 2)


def with_interval(row: Row, key: str, factor: float, digits: int) -> str:
    """Format a value with its interval. Return an empty string if the value was not measured."""
    if key not in row:
        return ""
    low, high = row[f"{key}_interval"]
    unit = " %" if factor == 100 else ""
    return f"{factor * row[key]:.{digits}f}{unit} [{factor * low:.{digits}f}, {factor * high:.{digits}f}]"


if __name__ == "__main__":
    sys.exit(main())
