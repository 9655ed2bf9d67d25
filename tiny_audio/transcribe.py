"""A model folder and audio files -> text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from tiny_audio.audio import AudioError, load_audio
from tiny_audio.device import device_of
from tiny_audio.encoders import ENCODERS
from tiny_audio.evaluation import longest_duration_s
from tiny_audio.export import load_model
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.model import TinyAudioModel

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
