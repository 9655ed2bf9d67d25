"""A model folder and audio files -> text, or scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from tiny_audio.audio import AudioError, load_audio
from tiny_audio.console import scores_table
from tiny_audio.data.clips import ClipSet
from tiny_audio.device import device_of
from tiny_audio.encoders import ENCODERS
from tiny_audio.evaluation import Hypothesis, evaluate_clips, longest_duration_s
from tiny_audio.export import load_model
from tiny_audio.files import cache_dir
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.model import TinyAudioModel
from tiny_audio.scoring import normalizer
from tiny_audio.sources import SOURCES, SourceContext

_BATCH_PADDED_S = 120.0


def max_duration_s(model: TinyAudioModel) -> float:
    """Longest clip that a model takes in one piece."""
    return longest_duration_s(ENCODERS.parse(model.config.encoder))


def transcribe_files(model_dir: Path, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """One row per file, in the order given: ``audio_filepath, duration, text, ctc_text, truncated, error``.

    A file that cannot be read has an ``error`` and nothing else; the others are transcribed all the same.

    Raises:
        UserError: the model cannot be loaded.
    """
    model, tokenizer = load_model(model_dir)
    model.to(device_of("auto"))
    limit = max_duration_s(model)
    rows: list[dict[str, Any]] = []
    waveforms: dict[int, torch.Tensor] = {}
    for number, path in enumerate(paths):
        row = dict.fromkeys(("audio_filepath", "duration", "text", "ctc_text", "truncated", "error"))
        row["audio_filepath"] = str(path)
        rows.append(row)
        try:
            waveforms[number] = load_audio(path, max_duration_s=limit)
            row["duration"] = len(waveforms[number]) / SAMPLE_RATE
        except AudioError as error:
            row["error"] = str(error)
    waiting = sorted(waveforms, key=lambda number: -len(waveforms[number]))
    while waiting:
        size = max(1, int(_BATCH_PADDED_S * SAMPLE_RATE / len(waveforms[waiting[0]])))
        batch, waiting = waiting[:size], waiting[size:]
        clips = [waveforms.pop(number) for number in batch]
        lengths = torch.tensor([len(clip) for clip in clips], device=model.device)
        transcripts = model.transcribe(pad_sequence(clips, batch_first=True).to(model.device), lengths, tokenizer)
        for number, transcript in zip(batch, transcripts, strict=True):
            rows[number] |= {
                "text": transcript.text,
                "ctc_text": transcript.ctc_text,
                "truncated": transcript.truncated,
            }
    return rows


def evaluate_manifest(
    model_dir: Path, manifest: Path, normalizer_name: str, group_by: str | None
) -> tuple[dict[str, Any], list[Hypothesis]]:
    """Scores and raw hypotheses of a model on a manifest.

    Raises:
        UserError: the model or the manifest cannot be read, or nothing in it can be scored.
    """
    name = normalizer(normalizer_name).name  # refuses what it does not know
    model, tokenizer = load_model(model_dir)
    model.to(device_of("auto"))
    source = SOURCES.build(SOURCES.parse({"name": "manifest", "path": str(manifest)}), SourceContext(cache_dir()))
    limit = max_duration_s(model)
    gathered = ClipSet.gather({manifest.stem: source}, 1 / SAMPLE_RATE, limit)
    gathered.check_any(str(manifest))
    scores, hypotheses, dropped = evaluate_clips(
        model,
        tokenizer,
        gathered.clips,
        normalizer_name=name,
        num_bootstrap=1000,
        group_by=group_by,
        max_duration_s=limit,
        max_padded_s=_BATCH_PADDED_S,
    )
    unread = [*gathered.dropped, *dropped]
    scores["dropped"] = [{"id": drop.id, "reason": drop.reason, "detail": drop.detail} for drop in unread]
    return scores, hypotheses


def print_scores(name: str, scores: dict[str, Any]) -> None:
    """A table, and what could not be read."""
    print(scores_table({name: scores}))
    for drop in scores["dropped"]:
        print(f"not scored: {drop['id']}: {drop['reason']}: {drop['detail']}")
