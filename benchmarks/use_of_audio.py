"""Measure how much a model uses the audio, and how well scores distinguish right texts from invented texts.

    python benchmarks/use_of_audio.py runs/quickstart/model --data DATA... --clips 100

For each set, the benchmark prints the word error rate of greedy decoding, and the bits per token from the audio with
their interval (see :mod:`tiny_audio.analysis.audio_bits`). The bits are also measured for the same model with random
weights in its projector.

A decoded text counts as right if its word error rate is at most 0.2, and as invented if its word error rate is at least
0.8. Other texts and empty texts are ignored. Scores that need no reference are compared by the area under the ROC
curve, and by the share of invented texts below the threshold that 99 % of the right texts reach. The scores are

- the text's log-probability per token
- this log-probability minus the log-probability with other audio embeddings. There are four variants: no embeddings,
  embeddings of digital silence of the same duration, the clip's mean embedding at every position, and embeddings of
  another clip
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Record
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tiny_audio.analysis.audio_bits import ClipLosses, ignores_audio, score_bits
from tiny_audio.analysis.scoring import Transcripts, normalizer
from tiny_audio.data.text import TargetText
from tiny_audio.evaluation.audio_bits import choose_partners, spread
from tiny_audio.evaluation.batches import loaded_batches
from tiny_audio.evaluation.data import read_data
from tiny_audio.export.load import load_model, model_folder
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.model import TinyAudioModel

RIGHT, INVENTED = 0.2, 0.8
"""Maximum word error rate of a right text, and minimum word error rate of an invented text."""
_PADDED_S = 60.0
WITHOUT = ("no embeddings", "silence", "mean embedding", "another clip")


@dataclass
class Clip:
    """A clip with its reference, its audio embeddings and its decoded text."""

    reference: str
    speaker: str | None
    audio: Tensor
    """Audio embeddings ``[N, H]``."""
    silence: Tensor
    """Audio embeddings ``[N, H]`` of silence with the same number of samples."""
    text: str
    ctc_text: str | None
    """The text of the CTC head. None if the model has no CTC head."""


@torch.no_grad()
def embed(
    model: TinyAudioModel, tokenizer: Any, clips: Sequence[Any], rewrite: TargetText, *, decodes: bool
) -> list[Clip]:
    """Encode clips, and also decode them if ``decodes``. Return them in the order of their batches."""
    settings = GenerationConfig(max_new_tokens=model.generation.max_new_tokens, draft="none")
    found = []
    for batch in loaded_batches(clips, max_duration_s=model.longest_clip_s(30.0), max_padded_s=_PADDED_S):
        if not batch.clips:
            continue
        waves = pad_sequence(batch.waveforms, batch_first=True)
        lengths = torch.tensor([len(wave) for wave in batch.waveforms])
        frames = model.encode(waves, lengths)
        audio, sizes = model.projector(frames)
        silence, _ = model.projector(model.encode(torch.zeros_like(waves), lengths))
        texts = [""] * len(batch.clips)
        if decodes:
            texts = [one.text for one in model.transcribe_frames(frames, tokenizer, settings=settings)]
        columns = (batch.clips, audio, silence, sizes, texts, model.ctc_texts(frames))
        for clip, row, quiet, size, text, ctc_text in zip(*columns, strict=True):
            utterance = clip.utterance
            speaker = utterance.metadata.get("speaker")
            parts = row[: int(size)], quiet[: int(size)]
            found.append(Clip(rewrite(utterance.text), speaker, *parts, text, ctc_text))
    return found


@torch.no_grad()
def losses(model: TinyAudioModel, tokenizer: Any, audio: Sequence[Tensor], texts: Sequence[str]) -> np.ndarray:
    """Return the loss of each text in nats ``[B]``, given the text's audio embeddings in ``audio``."""
    found: list[float] = []
    for start in range(0, len(texts), 8):
        rows = list(audio[start : start + 8])
        targets = [torch.tensor(ids(model, tokenizer, text)) for text in texts[start : start + 8]]
        sizes = torch.tensor([len(row) for row in rows])
        found += model.score_embeddings(pad_sequence(rows, batch_first=True), sizes, targets).tolist()
    return np.array(found)


def ids(model: TinyAudioModel, tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text, with the end token."""
    return [*tokenizer.encode(text, add_special_tokens=False), model.config.end_token_id]


def others(clips: Sequence[Clip], texts: Sequence[str]) -> list[Tensor]:
    """Return the audio embeddings of another clip for each clip. ``tiny-audio run`` chooses clips in the same way."""
    partners = choose_partners(texts)
    return [clips[0 if index is None else index].audio for index in partners]


def bits(model: TinyAudioModel, tokenizer: Any, clips: Sequence[Clip]) -> dict[str, Any]:
    """Return the bits from audio with their interval. For the interval, whole speakers are resampled."""
    texts = [clip.reference for clip in clips]
    own = losses(model, tokenizer, [clip.audio for clip in clips], texts)
    other = losses(model, tokenizer, others(clips, texts), texts)
    sizes = [len(ids(model, tokenizer, text)) for text in texts]
    groups = [clip.speaker for clip in clips]
    return score_bits([ClipLosses(*row) for row in zip(sizes, own, other, strict=True)], groups=groups)


def without_audio(model: TinyAudioModel, tokenizer: Any, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """Return the scores of the decoded texts, by name."""
    texts = [clip.text for clip in clips]
    sizes = np.array([len(ids(model, tokenizer, text)) for text in texts])
    own = losses(model, tokenizer, [clip.audio for clip in clips], texts)
    replaced: dict[str, Callable[[], list[Tensor]]] = {
        "no embeddings": lambda: [clip.audio[:0] for clip in clips],
        "silence": lambda: [clip.silence for clip in clips],
        "mean embedding": lambda: [clip.audio.mean(0, keepdim=True).expand(len(clip.audio), -1) for clip in clips],
        "another clip": lambda: others(clips, texts),
    }
    scores = {"log-probability": -own / sizes}
    for name in WITHOUT:
        scores[f"ratio to {name}"] = (losses(model, tokenizer, replaced[name](), texts) - own) / sizes
    return scores


def area(right: np.ndarray, invented: np.ndarray) -> float:
    """Return the area under the ROC curve of two lists of scores. Ties count half."""
    differences = right[:, None] - invented[None]
    return float((differences > 0).mean() + (differences == 0).mean() / 2)


def untrained(model: TinyAudioModel) -> None:
    """Give the projector new random weights."""
    torch.manual_seed(0)
    for module in model.projector.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="runs or exported models")
    parser.add_argument("--data", nargs="+", required=True, help="sets, as for tiny-audio evaluate")
    parser.add_argument("--clips", type=int, default=100, help="clips of each set")
    parser.add_argument("--normalizer", default="lower", help="normalizer of references, in losses and WER")
    parser.add_argument("--output", type=Path, help="page of results")
    options = parser.parse_args()
    record = Record("Use of the audio", options.output)
    sets = {data.name: spread(data.clips, options.clips) for data in read_data(options.data, None)}
    rule, rewrite = normalizer(options.normalizer), TargetText.of(options.normalizer)
    for path in options.models:
        model, tokenizer = load_model(model_folder(path))
        rows, clips = [], []
        for weights in ("trained", "untrained projector"):
            if weights != "trained":
                untrained(model)
            for name, chosen in sets.items():
                is_trained = weights == "trained"
                found = embed(model, tokenizer, chosen, rewrite, decodes=is_trained)
                scored = Transcripts([one.reference for one in found], [one.text for one in found], rule)
                wer = f"{scored.errors.sum() / scored.words.sum():.1%}" if is_trained else ""
                measured = bits(model, tokenizer, found)
                low, high = measured["bits_from_audio_interval"]
                shown = f"{measured['bits_from_audio']:.2f} [{low:.2f}, {high:.2f}]"
                rows.append((name, weights, len(found), wer, shown, "yes" if ignores_audio(measured) else ""))
                if is_trained:
                    clips.append((name, found, scored, without_audio(model, tokenizer, found)))
        record.say(f"## {path.name}")
        record.table(("set", "weights", "clips", "WER", "bits per token from the audio", "warning"), rows)
        separation(record, clips)
    return record.write()


def separation(record: Record, sets: Sequence[tuple[str, list[Clip], Transcripts, dict[str, np.ndarray]]]) -> None:
    """Add a table of how well each score separates right texts from invented texts, over all sets."""
    rates = np.concatenate([scored.errors / np.maximum(1, scored.words) for _, _, scored, _ in sets])
    written = np.concatenate([[bool(clip.text.strip()) for clip in clips] for _, clips, _, _ in sets])
    right, invented = (rates <= RIGHT) & written, (rates >= INVENTED) & written
    record.say(f"Decoded texts: {right.sum()} right, {invented.sum()} invented.")
    if not right.any() or not invented.any():
        return
    rows = []
    for name in sets[0][3]:
        values = np.concatenate([scores[name] for *_, scores in sets])
        threshold = np.quantile(values[right], 0.01)
        rejected = float((values[invented] < threshold).mean())
        rows.append((name, f"{area(values[right], values[invented]):.3f}", f"{rejected:.0%}", f"{threshold:.2f}"))
    record.table(("score, nats per token", "area", "invented texts rejected", "threshold"), rows)


if __name__ == "__main__":
    sys.exit(main())
