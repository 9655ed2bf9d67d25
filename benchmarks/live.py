"""Measure live text: delays, share of correct partial words, and whether final texts equal those of `transcribe`.

    python benchmarks/live.py runs/quickstart                                  200 synthesized sentences
    python benchmarks/live.py runs/mine --manifest recordings.jsonl --clips 50  your own recordings

The clips are joined into streams, with pauses of 0.7 to 2 s between them. `LiveStream`, which the endpoint
`/v1/audio/live` also uses, receives each stream in blocks of 100 ms. The clock is simulated, so the benchmark does not
wait for the audio: a block arrives when its last sample was spoken, and each decoding takes as long as it took on this
machine.

- Final texts: each must equal the text of `Transcriber.transcribe` for a recording of the same samples.
- First word: time from the first sound of a clip to the first message with a text.
- Final text: time from the end of an utterance to its final text, including the pause that ends the utterance.
- Correct partial words: share of the words of all partial texts that are in the final text at the same position.

Without a manifest, the benchmark needs espeak-ng (`pip install -e '.[synthetic]'`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from record import Record
from torch import Tensor
from transcription import ROOM_DBFS, Clips, sentences, wer

from tiny_audio.audio.load import load_audio
from tiny_audio.export.load import load_model, model_folder
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.live import ENDPOINT_PAUSE_S, LONGEST_UTTERANCE_S, Final, LiveStream, Partial
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.inference.utterances import Utterances
from tiny_audio.inference.voice_activity import MARGIN_S, SpeechProbabilities, silero

BLOCK_S = 0.1
PAUSES_S = (0.7, 2.0)
CLIPS_PER_STREAM = 5
AUDIBLE_DB = -30.0
"""The first sound of a clip is the first 10 ms above this level, relative to the loudest 10 ms of the clip."""


@dataclass
class Measured:
    """Measurements over all streams."""

    audio_s: float = 0.0
    detecting_s: float = 0.0
    decoding_s: list[float] = field(default_factory=list)
    first_word_s: list[float] = field(default_factory=list)
    final_s: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """The text of each clip."""
    equal: list[bool] = field(default_factory=list)
    """For each final text, whether it equals the transcriber's text for the same samples."""
    partial_words: list[bool] = field(default_factory=list)
    """For each word of each partial text, whether it is in the final text at the same position."""
    stable_words: list[bool] = field(default_factory=list)
    """Like ``partial_words``, but only for words that a partial text marks as stable."""
    num_partials: int = 0


def recorded(manifest: Path, number: int) -> Clips:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()[:number]]
    return [
        (load_audio(manifest.parent / row["audio_filepath"], max_duration_s=60.0).numpy(), row["text"]) for row in rows
    ]


def first_sound(clip: np.ndarray) -> float:
    """Return the seconds before the first sound of a clip."""
    frames = clip[: len(clip) // 160 * 160].reshape(-1, 160)
    levels = 10 * np.log10((frames**2).mean(1) + 1e-12)
    return float(np.argmax(levels > levels.max() + AUDIBLE_DB)) / 100


def joined(clips: Clips, seed: int) -> tuple[Tensor, list[tuple[float, float]]]:
    """Join clips into a stream. Return the stream, and each clip's first sound and end in seconds."""
    rng, parts, spans, samples = np.random.default_rng(seed), [], [], 0
    for clip, _ in [*clips, (np.zeros(0, np.float32), "")]:
        pause = np.zeros(int(rng.uniform(*PAUSES_S) * SAMPLE_RATE), np.float32)
        begin = samples + len(pause)
        samples = begin + len(clip)
        parts += [pause, clip]
        if len(clip):
            spans.append((begin / SAMPLE_RATE + first_sound(clip), samples / SAMPLE_RATE))
    noise = 10 ** (ROOM_DBFS / 20) * rng.standard_normal(samples)
    whole = np.round((np.concatenate(parts) + noise) * 32768).clip(-32768, 32767) / 32768
    return torch.from_numpy(whole.astype(np.float32)), spans


def events(transcriber: Transcriber, waveform: Tensor, measured: Measured) -> Iterator[tuple[float, Partial | Final]]:
    """Yield the events of a stream, and their times in seconds."""
    network = silero()
    assert network is not None, "this benchmark needs silero-vad"
    stream = LiveStream(
        Utterances(
            SpeechProbabilities(network, frames_per_step=1),
            longest_s=min(LONGEST_UTTERANCE_S, transcriber.max_chunk_s),
            pause_s=ENDPOINT_PAUSE_S,
        )
    )
    blocks = deque(enumerate(waveform.split(round(BLOCK_S * SAMPLE_RATE)), 1))
    running = None
    while blocks or running:
        if running is None or (blocks and blocks[0][0] * BLOCK_S <= running[0]):
            index, block = blocks.popleft()
            now, started = index * BLOCK_S, time.perf_counter()
            stream.add(block)
            measured.detecting_s += time.perf_counter() - started
            if not blocks:
                stream.end()
        else:
            now, job, transcription = running
            stream.finish(job, transcription)
            running = None
        if running is None and (job := stream.next_job()) is not None:
            started = time.perf_counter()
            (transcription,) = transcriber.transcribe([job.chunk.waveform])
            measured.decoding_s.append(time.perf_counter() - started)
            running = now + measured.decoding_s[-1], job, transcription
        yield from ((now, event) for event in stream.take_events())
    measured.audio_s += stream.duration_s


def measure(transcriber: Transcriber, clips: Clips, seed: int, measured: Measured) -> None:
    waveform, spans = joined(clips, seed)
    found = list(events(transcriber, waveform, measured))
    finals = {event.utterance: (now, event) for now, event in found if isinstance(event, Final)}
    samples = [
        waveform[round(one.start_s * SAMPLE_RATE) : round(one.end_s * SAMPLE_RATE)] for _, one in finals.values()
    ]
    offline = transcriber.transcribe(samples)
    measured.equal += [one.text == wanted.text for (_, one), wanted in zip(finals.values(), offline, strict=True)]
    measured.final_s += [now - (one.end_s - MARGIN_S) for now, one in finals.values()]
    for _, event in found:
        if isinstance(event, Partial):
            words = finals[event.utterance][1].text.split()
            measured.partial_words += correct(event.text, words)
            measured.stable_words += correct(event.stable, words)
            measured.num_partials += 1
    for begin, end in spans:
        inside = [(now, event) for now, event in found if begin - 0.5 <= event.start_s < end]
        measured.first_word_s += [now - begin for now, event in inside if event.text][:1]
        measured.texts.append(" ".join(event.text for _, event in inside if isinstance(event, Final) and event.text))


def correct(text: str, words: Sequence[str]) -> list[bool]:
    return [words[index : index + 1] == [word] for index, word in enumerate(text.split())]


def percentiles(values: Sequence[float]) -> list[str]:
    return [f"{np.percentile(values, percent):.2f}" if values else "–" for percent in (50, 95, 100)]


def share(values: Sequence[bool]) -> str:
    return f"{sum(values) / max(1, len(values)):.1%} of {len(values):,}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="a run, or its model folder")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--manifest", type=Path, help="recorded clips instead of synthesized ones")
    parser.add_argument("--output", type=Path, help="also write the results to this page")
    arguments = parser.parse_args()
    record = Record("Live text: final texts, delays, partial texts", arguments.output)
    transcriber = Transcriber(*load_model(model_folder(arguments.model)))
    clips = recorded(arguments.manifest, arguments.clips) if arguments.manifest else sentences(arguments.clips, 41)
    measured = Measured()
    for start in range(0, len(clips), CLIPS_PER_STREAM):
        measure(transcriber, clips[start : start + CLIPS_PER_STREAM], start, measured)
    references = [text for _, text in clips]
    alone = [one.text for one in transcriber.transcribe([torch.from_numpy(wave) for wave, _ in clips])]
    record.say(
        f"{len(clips)} clips in streams of {measured.audio_s:,.0f} s of audio in all, with {len(measured.equal)} "
        f"utterances; {len(measured.decoding_s)} decodings, which took {sum(measured.decoding_s):.0f} s; "
        f"voice activity detection took {measured.detecting_s:.1f} s."
    )
    record.table(
        ["seconds", "median", "95th percentile", "maximum"],
        [
            ["first sound to first text", *percentiles(measured.first_word_s)],
            ["end of the utterance to its final text", *percentiles(measured.final_s)],
            ["a decoding", *percentiles(measured.decoding_s)],
        ],
    )
    record.table(
        ["", ""],
        [
            ["partial texts", f"{measured.num_partials:,}"],
            ["correct words of partial texts", share(measured.partial_words)],
            ["correct words of their stable parts", share(measured.stable_words)],
            ["clips for which a partial or final text was sent", f"{len(measured.first_word_s)} of {len(clips)}"],
            ["WER, live", f"{wer(references, measured.texts):.2%}"],
            ["WER, clip by clip without the pauses", f"{wer(references, alone):.2%}"],
        ],
    )
    record.say()
    record.bar(
        f"{sum(measured.equal)} of {len(measured.equal)} final texts equal those of the transcriber",
        all(measured.equal),
    )
    return record.write()


if __name__ == "__main__":
    sys.exit(main())
