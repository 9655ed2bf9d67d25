"""Count the words that are lost or repeated at the cuts of a long recording without pauses.

    python benchmarks/cuts.py runs/mine --manifest an4/dev.jsonl --clips-of an4/train.jsonl   a ten-minute recording

The pauses are removed, and the clips are joined in random order, repeatedly, until the recording lasts ``--minutes``.
The recording is transcribed in chunks. For comparison, each clip is also transcribed in one piece.

A cut is the time span that two neighboring chunks share. For each reference word, take the time from the end of the
word before to the start of the word after. The word is "at a cut" if this time overlaps with a cut. At these words, the
errors of the recording's transcript are compared with those of the clips' transcripts.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from chunking import durations_of, from_manifest, without_pauses
from record import Record
from transcription import Clips, texts

from tiny_audio.analysis.scoring import align, normalizer
from tiny_audio.export.load import load_model, model_folder
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.chunking import Chunk
from tiny_audio.inference.joining import joined
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.inference.word_times import Word
from tiny_audio.model.decoding import GenerationConfig


@dataclass
class Errors:
    """The number of errors at each reference word. An insertion counts at the word before it."""

    substituted: np.ndarray
    deleted: np.ndarray
    inserted: np.ndarray

    @classmethod
    def of(cls, reference: str, hypothesis: str) -> Errors:
        """Return the errors of a hypothesis."""
        found = cls(*(np.zeros(len(reference.split()), int) for _ in range(3)))
        index = -1
        for wanted, word in pairs(reference, hypothesis):
            index += wanted is not None
            if wanted is None:
                found.inserted[max(index, 0)] += 1
            elif word is None:
                found.deleted[index] += 1
            elif word != wanted:
                found.substituted[index] += 1
        return found

    def counts(self, where: np.ndarray) -> list[int]:
        """Return the numbers of substitutions, deletions and insertions at the words that ``where`` selects."""
        return [int(errors[where].sum()) for errors in (self.substituted, self.deleted, self.inserted)]


def pairs(reference: str, hypothesis: str) -> Sequence[tuple[str | None, str | None]]:
    (one,) = align([reference], [hypothesis], normalizer("lower"))
    return one.pairs


def at_cuts(reference: str, words: Sequence[Word], cuts: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return whether each reference word is at a cut.

    Args:
        words: the words of the recording's transcript, with their times.
        cuts: start and end of each cut in seconds.
    """
    starts_s, ends_s = np.array([word.start_s for word in words]), np.array([word.end_s for word in words])
    spans, position = [], 0
    for wanted, word in pairs(reference, " ".join(one.text for one in words)):
        before, after = position - 1, position + (word is not None)
        if wanted is not None:
            begin_s = ends_s[before] if before >= 0 else 0.0
            spans.append((begin_s, starts_s[after] if after < len(words) else np.inf))
        position += word is not None
    return np.array([any(begin <= high and low <= end for low, high in cuts) for begin, end in spans])


def spans_of(chunks: Sequence[Chunk]) -> list[tuple[float, float]]:
    """Return the span in seconds that each chunk shares with the next.

    Adjacent chunks share a span of 0 s. Chunks with a gap between them share no span.
    """
    found = []
    for first, second in itertools.pairwise(chunks):
        end = first.start + len(first.waveform)
        if second.start <= end:
            found.append((second.start / SAMPLE_RATE, end / SAMPLE_RATE))
    return found


def long_recording(clips: Clips, minutes: float, seed: int) -> list[int]:
    """Return indices of clips that last ``minutes`` in all: all clips in random order, then again in a new order."""
    rng, order, seconds = np.random.default_rng(seed), list[int](), 0.0
    while seconds < 60 * minutes:
        for index in rng.permutation(len(clips)).tolist():
            if seconds < 60 * minutes:
                order.append(index)
                seconds += len(clips[index][0]) / SAMPLE_RATE
    return order


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="a run, or its model folder")
    parser.add_argument("--manifest", type=Path, required=True, help="JSONL of clips")
    parser.add_argument("--clips", type=int, help="number of clips of the manifest; default: all")
    parser.add_argument("--clips-of", type=Path, help="JSONL of the training clips, if the export has no durations")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--greedy", action="store_true", help="decode greedily")
    parser.add_argument("--no-search", action="store_true", help="do not let the model choose cuts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random orders")
    parser.add_argument("--output", type=Path, help="also write the results to this page")
    arguments = parser.parse_args()
    record = Record("Words at the cuts of a recording without pauses", arguments.output)
    model, tokenizer = load_model(model_folder(arguments.model))
    if arguments.clips_of:
        model.config.clip_durations = vars(durations_of(arguments.clips_of))
    greedy = GenerationConfig(max_new_tokens=model.generation.max_new_tokens) if arguments.greedy else None
    recognizer = Transcriber(model, tokenizer, generation=greedy, search_cuts=not arguments.no_search)
    clips = [(without_pauses(wave), text) for wave, text in from_manifest(arguments.manifest, arguments.clips)]
    order = long_recording(clips, arguments.minutes, arguments.seed)
    alone = texts(recognizer, [wave for wave, _ in clips])
    whole = torch.from_numpy(np.concatenate([clips[index][0] for index in order]))
    started = time.process_time()
    chunks = list(recognizer.chunks([whole]))
    chunking_s = time.process_time() - started
    segments = joined(chunks, recognizer.transcribe_chunks(chunks), keep_words=True)
    words = [word for segment in segments for word in segment.words or ()]
    reference = " ".join(clips[index][1] for index in order)
    cuts = spans_of(chunks)
    near = at_cuts(reference, words, cuts)
    found = {
        "one by one": Errors.of(reference, " ".join(alone[index] for index in order)),
        "in chunks": Errors.of(reference, " ".join(word.text for word in words)),
    }
    rows = [
        [f"{name}, {place}", int(where.sum()), f"{sum(errors.counts(where)) / where.sum():.1%}", *errors.counts(where)]
        for place, where in (("all words", near | True), ("words at cuts", near))
        for name, errors in found.items()
    ]
    record.say(
        f"{len(order)} clips, {len(whole) / SAMPLE_RATE:.0f} s, {len(chunks)} chunks of "
        f"{max(len(chunk.waveform) for chunk in chunks) / SAMPLE_RATE:.1f} s at most, {len(cuts)} cuts within speech, "
        f"{sum(chunk.overlap > 0 for chunk in chunks)} of these cuts with an overlap; "
        f"{sum(segment.suppressed is not None for segment in segments)} texts suppressed. "
        f"Of {time.process_time() - started:.0f} s of CPU time in all, chunking took {chunking_s:.0f} s."
    )
    record.table(["", "words", "WER", "substituted", "deleted", "inserted"], rows)
    one_piece, in_chunks = (errors.counts(near) for errors in found.values())
    record.say()
    record.bar("words deleted at cuts: no more than in one piece", in_chunks[1] <= one_piece[1])
    record.bar("words inserted at cuts: no more than in one piece", in_chunks[2] <= one_piece[2])
    return record.write()


if __name__ == "__main__":
    sys.exit(main())
