"""Measure the claims about `tiny-audio transcribe` on synthesized speech.

    python benchmarks/transcription.py runs/quickstart                 minutes on two cores
    python benchmarks/transcription.py runs/quickstart --hours 0.1     a quick test

The benchmark needs a run of `recipes/quickstart.yaml` (or its `model` folder). It measures

- the word error rate of a long recording with pauses of 0.5 to 3 s, compared with its sentences transcribed one by one
- the peak memory of the command, compared with the peak memory for a recording of a sixth of the duration
- whether independent parsers can read the subtitles of the long recording
- the start times of words, compared with espeak-ng's own word events
- the texts of 50 clips without speech, with and without the hallucination filters
- whether the filters change the text of speech, and how many words are lost if the speech is 40 dB softer
- the effect of silence before the first sound, which real recordings have and synthesized clips do not
- whether the text of a clip depends on the other clips in its batch

Other requirements are espeak-ng (`pip install -e '.[synthetic]'`), and `pysubs2` and `webvtt-py` to check subtitles.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from record import Record

from tiny_audio.analysis.scoring import align, normalizer
from tiny_audio.audio.load import load_audio
from tiny_audio.export.load import load_model, model_folder
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.filters import boost_quiet, non_speech_reason
from tiny_audio.inference.segments import Transcription
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.runtime.files import cache_dir
from tiny_audio.sources import SOURCES, SourceContext

MAX_WER_DIFFERENCE, MAX_START_ERROR_S, MAX_MEMORY_GAIN = 0.005, 0.1, 1.25
PAUSES_S = (0.5, 3.0)
ROOM_DBFS = -75.0
"""Level of the noise in the shorter recording. The long recording has no noise: its pauses are digital silence."""
NUM_TIMED, NUM_SPOKEN = 200, 400
ATTENUATION_DB = 40.0
TELEPHONE_HZ = (300, 3400)
SILENCES_MS, MAX_WER_OF_SILENCE = (40, 150, 300), 0.01
PEAK_OF = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
Clips = list[tuple[np.ndarray, str]]


def sentences(number: int, seed: int) -> Clips:
    """Synthesize held-out sentences in held-out voices, like the quickstart's evaluation set but with another seed."""
    config = {
        "name": "synthetic",
        "num_utterances": number,
        "seed": seed,
        "voices": "held_out",
        "sentences": "held_out",
        "rate_wpm": [150, 210],
        "pitch": [40, 60],
        "pitch_range": [40, 60],
        "word_gap_ms": [0, 20],
        "grammars": ["digits", "numbers", "home", "phone"],
        "accents": ["en-us", "en-us-nyc", "en-gb", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"],
    }
    index = SOURCES.build(SOURCES.parse(config), SourceContext(cache_dir())).index()
    return [(soundfile.read(str(one.audio), dtype="float32")[0], one.text) for one in index.utterances]


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    alignments = align(references, hypotheses, normalizer("lower"))
    return sum(one.errors for one in alignments) / sum(one.num_reference_words for one in alignments)


def texts(recognizer: Transcriber, clips: Sequence[np.ndarray]) -> list[str]:
    return [one.text for one in recognizer.transcribe([torch.from_numpy(clip) for clip in clips])]


def write_recording(path: Path, clips: Clips, seconds: float, noise_dbfs: float | None) -> int:
    """Write clips with pauses to a FLAC file of about ``seconds``. Return the number of clips in it."""
    rng = np.random.default_rng(1)
    samples = used = 0
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for clip, _ in clips:
            part = np.concatenate([np.zeros(int(rng.uniform(*PAUSES_S) * SAMPLE_RATE)), clip])
            noise = 0 if noise_dbfs is None else 10 ** (noise_dbfs / 20) * rng.standard_normal(len(part))
            file.write(part + noise)
            samples, used = samples + len(part), used + 1
            if samples >= seconds * SAMPLE_RATE:
                break
    return used


def transcribed(model: Path, audio: Path, *options: str) -> tuple[float, float]:
    """Run ``tiny-audio transcribe``. Return its seconds, and the peak memory of its process in MiB."""
    command = [sys.executable, "-m", "tiny_audio.cli", "transcribe", str(model), str(audio), *options]
    # Start the command from a small process, because a new process inherits the peak memory of its parent.
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PEAK_OF, *command], check=True, capture_output=True, text=True)
    return time.monotonic() - started, int(done.stdout) / 1024


def long_recording(
    record: Record, model: Path, recognizer: Transcriber, clips: Clips, hours: float, folder: Path
) -> None:
    short, long = folder / "short.flac", folder / "long.flac"
    num_short = write_recording(short, clips, hours * 600, ROOM_DBFS)
    used = write_recording(long, clips, hours * 3600, None)
    references = [text for _, text in clips[:used]]
    one_by_one = texts(recognizer, [clip for clip, _ in clips[:used]])
    rows = {}
    for path, number in ((long, used), (short, num_short)):
        seconds, peak = transcribed(model, path, "--format", "json", "--output-dir", str(folder))
        result = json.loads(path.with_suffix(".json").read_text())
        # Score the single clips as one text, like the recording, so that the error rates are comparable.
        whole = " ".join(references[:number])
        rates = wer([whole], [result["text"]]), wer([whole], [" ".join(one_by_one[:number])])
        rows[path] = (result, rates, peak, seconds, number)
    result, (together, alone), peak, _, _ = rows[long]
    small, segments = rows[short][2], result["segments"]
    record.say(f"## A recording of {result['duration'] / 60:.0f} minutes\n")
    names = {long: "whole, silent pauses", short: f"a sixth, noise at {ROOM_DBFS:.0f} dBFS"}
    record.table(
        ["recording", "sentences", "chunks", "WER", "WER one by one", "peak memory, MiB", "seconds"],
        [
            [
                *(names[path], number, len(one["segments"]), f"{rates[0]:.2%}", f"{rates[1]:.2%}"),
                *(f"{memory:.0f}", f"{seconds:.0f}"),
            ]
            for path, (one, rates, memory, seconds, number) in rows.items()
        ],
    )
    record.say(f"The longest chunk lasts {max(one['end_s'] - one['start_s'] for one in segments):.1f} s.\n")
    record.bar("WER within 0.5 points of the sentences one by one", abs(together - alone) <= MAX_WER_DIFFERENCE)
    record.bar("six times the duration takes at most a quarter more memory", peak <= MAX_MEMORY_GAIN * small)
    subtitles(record, model, long, folder)


def subtitles(record: Record, model: Path, audio: Path, folder: Path) -> None:
    try:
        import pysubs2
        import webvtt
    except ImportError:
        record.say("Subtitles: not validated; run pip install pysubs2 webvtt-py.")
        return
    for kind in ("srt", "vtt"):
        transcribed(model, audio, "--format", kind, "--output-dir", str(folder))
    srt = pysubs2.load(str(folder / "long.srt"), format_="srt")
    vtt = webvtt.read(str(folder / "long.vtt"))
    ours = json.loads((folder / "long.json").read_text())["text"].split()
    in_srt = " ".join(event.plaintext for event in srt).split()
    in_vtt = " ".join(caption.text for caption in vtt).split()
    times = [(event.start, event.end) for event in srt]
    in_order = all(start < end for start, end in times) and all(a[1] <= b[0] for a, b in itertools.pairwise(times))
    lines = [line for event in srt for line in event.plaintext.split("\n")]
    record.say(
        f"Subtitles: {len(srt)} cues, lines of at most {max(map(len, lines))} characters, cues of at most "
        f"{max(end - start for start, end in times) / 1000:.1f} s.\n"
    )
    record.bar("pysubs2 reads every word from the .srt, cues in order without overlap", in_srt == ours and in_order)
    record.bar("webvtt-py reads every word from the .vtt", in_vtt == ours)


def word_starts(record: Record, recognizer: Transcriber, folder: Path) -> None:
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("spoken_words.py")), str(folder), str(NUM_TIMED), "7"], check=True
    )
    rows = [json.loads(line) for line in (folder / "words.jsonl").read_text().splitlines()]
    clips = [load_audio(folder / row["audio_filepath"], max_duration_s=recognizer.max_chunk_s) for row in rows]
    errors, right = [], 0
    for row, result in zip(rows, recognizer.transcribe(clips, word_timestamps=True), strict=True):
        if result.text == row["text"]:
            right += 1
            words = result.segments[0].words or ()
            errors += [word.start_s - start for word, start in zip(words, row["starts_s"], strict=True)]
    sizes = np.abs(errors)
    record.say("## Word starts\n")
    record.table(
        ["sentences", "with the right text", "words in these", "median error", "90th percentile", "median, signed"],
        [
            [
                *(len(rows), right, len(errors), f"{1000 * np.median(sizes):.0f} ms"),
                *(f"{1000 * np.percentile(sizes, 90):.0f} ms", f"{1000 * np.median(errors):+.0f} ms"),
            ]
        ],
    )
    record.bar("median error of at most 100 ms", bool(np.median(sizes) <= MAX_START_ERROR_S))


def non_speech_clips() -> dict[str, list[np.ndarray]]:
    """Return 50 clips of 1 to 9 s without speech, by kind."""
    rng = np.random.default_rng(5)

    def seconds() -> np.ndarray:
        return np.arange(int(rng.uniform(1, 9) * SAMPLE_RATE)) / SAMPLE_RATE

    def at_some_level(wave: np.ndarray) -> np.ndarray:
        return (wave / np.abs(wave).max() * 10 ** (rng.uniform(-50, -3) / 20)).astype(np.float32)

    def colored(slope: float) -> np.ndarray:
        spectrum = np.fft.rfft(rng.standard_normal(len(seconds())))
        return np.fft.irfft(spectrum * np.maximum(np.arange(len(spectrum)), 1.0) ** -slope)

    def melody() -> np.ndarray:
        notes, harmonics = [], int(rng.integers(1, 16))
        for _ in range(12):
            t = np.arange(int(rng.uniform(0.15, 0.7) * SAMPLE_RATE)) / SAMPLE_RATE
            chord = [110 * 2 ** (rng.integers(0, 30) / 12) for _ in range(rng.integers(1, 4))]
            wave = sum(
                np.sin(2 * np.pi * f * h * t + rng.uniform(0, 6)) / h
                for f in chord
                for h in range(1, harmonics + 1)
                if f * h < 7500
            )
            notes.append(wave * np.minimum(t / 0.02, 1) * np.exp(-rng.uniform(0, 5) * t))
        return np.concatenate(notes)

    dither = [np.round(rng.standard_normal(len(seconds()))).astype(np.float32) / 32768 for _ in range(5)]
    return {
        "digital silence": [np.zeros_like(seconds(), dtype=np.float32) for _ in range(5)],
        "dither of one 16-bit step": dither,
        "white noise": [at_some_level(colored(0.0)) for _ in range(15)],
        "pink noise": [at_some_level(colored(0.5)) for _ in range(5)],
        "one tone": [at_some_level(np.sin(2 * np.pi * rng.uniform(100, 3000) * seconds())) for _ in range(5)],
        "melodies in chords": [at_some_level(melody()) for _ in range(15)],
    }


def no_words(record: Record, filtered: Transcriber, raw: Transcriber) -> None:
    rows, invented = [], 0
    for kind, clips in non_speech_clips().items():
        with_filters = filtered.transcribe([torch.from_numpy(clip) for clip in clips])
        without = texts(raw, clips)
        invented += sum(bool(result.text) for result in with_filters)
        why = Counter(reason for result in with_filters for reason in reasons(result))
        found = ", ".join(f"{count} {reason}" for reason, count in why.most_common())
        rows.append(
            [kind, len(clips), sum(map(bool, without)), sum(bool(result.text) for result in with_filters), found]
        )
    raw_total = sum(row[2] for row in rows)
    rows.append(["all", sum(row[1] for row in rows), raw_total, invented, ""])
    record.say("## Clips without speech\n")
    record.table(["kind", "clips", "with text, no filters", "with text, filters", "reasons of the filters"], rows)
    record.bar("the filters leave no text", invented == 0)


def reasons(result: Transcription) -> list[str]:
    return [segment.suppressed for segment in result.segments if segment.suppressed is not None]


def speech_kept(record: Record, filtered: Transcriber, raw: Transcriber, clips: Clips) -> None:
    waves, references = [wave for wave, _ in clips], [text for _, text in clips]
    plain, result = texts(raw, waves), filtered.transcribe([torch.from_numpy(wave) for wave in waves])
    kept = [one.text for one in result]
    fired = sum(bool(reasons(one)) for one in result)
    softer = [wave * np.float32(10 ** (-ATTENUATION_DB / 20)) for wave in waves]
    coarse = [(np.round(wave * 32768) / 32768).astype(np.float32) for wave in softer]
    rows = [["unchanged, no filters", f"{wer(references, plain):.2%}", *lost(references, plain), ""]]
    rows.append(["unchanged", f"{wer(references, kept):.2%}", *lost(references, kept), fired])
    results = {}
    narrow = [in_band(wave, *TELEPHONE_HZ) for wave in waves]
    for name, waveforms in (("40 dB softer", softer), ("40 dB softer, in 16 bits", coarse), ("telephone", narrow)):
        results[name] = filtered.transcribe([torch.from_numpy(wave) for wave in waveforms])
        found = [one.text for one in results[name]]
        count = sum(bool(reasons(one)) for one in results[name])
        rows.append([name, f"{wer(references, found):.2%}", *lost(references, found), count])
    quiet_raw = texts(raw, softer)
    rows.append(["40 dB softer, no filters", f"{wer(references, quiet_raw):.2%}", *lost(references, quiet_raw), ""])
    num_words = sum(len(text.split()) for text in references)
    record.say(f"## Speech: {len(clips)} sentences, {num_words} words\n")
    record.table(["speech", "WER", "words deleted", "sentences without text", "sentences with filtered text"], rows)
    record.bar("the filters change no text of speech", kept == plain and not fired)
    classified = [non_speech_reason(torch.from_numpy(wave)) for wave in narrow]
    record.bar("speech in the frequency band of telephones is not classified as noise or tones", not any(classified))
    soft_texts = [one.text for one in results["40 dB softer"]]
    gone = {
        name: lost_words(references, kept, [one.text for one in result])
        for name, result in results.items()
        if name != "telephone"
    }
    record.say(
        "Of the words that are right in unchanged speech, "
        + ", and ".join(f"{number} are wrong in speech {name}" for name, number in gone.items())
        + ".\n"
    )
    quiet = [boost_quiet(torch.from_numpy(wave)).numpy() for wave in softer]
    record.bar("the filters remove no word from speech 40 dB softer", texts(raw, quiet) == soft_texts)
    record.bar("every word that is right in unchanged speech is right 40 dB softer", gone["40 dB softer"] == 0)
    alone = [texts(filtered, [wave])[0] for wave in waves[:100]]
    record.bar("100 sentences have the same text alone as among 400", alone == kept[:100])


def in_band(wave: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    """Remove all frequencies outside a band."""
    spectrum, frequencies = np.fft.rfft(wave), np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    spectrum[(frequencies < low_hz) | (frequencies > high_hz)] = 0
    return np.fft.irfft(spectrum, len(wave)).astype(np.float32)


def silence_before(record: Record, filtered: Transcriber, clips: Clips) -> None:
    references, rates = [text for _, text in clips], {}
    for milliseconds in (0, *SILENCES_MS):
        silence = np.zeros(milliseconds * SAMPLE_RATE // 1000, dtype=np.float32)
        rates[milliseconds] = wer(references, texts(filtered, [np.concatenate([silence, wave]) for wave, _ in clips]))
    record.say("## Silence before the first sound\n")
    record.table(["silence, ms", *map(str, rates)], [["WER", *(f"{rate:.2%}" for rate in rates.values())]])
    record.bar("WER at most a point above that without silence", max(rates.values()) - rates[0] <= MAX_WER_OF_SILENCE)


def lost_words(references: Sequence[str], before: Sequence[str], after: Sequence[str]) -> int:
    """Return the number of reference words that are correct in ``before`` but not in ``after``."""
    right = [
        [
            reference == word
            for one in align(references, result, normalizer("lower"))
            for reference, word in one.pairs
            if reference is not None
        ]
        for result in (before, after)
    ]
    return sum(was and not still for was, still in zip(*right, strict=True))


def lost(references: Sequence[str], result: Sequence[str]) -> tuple[int, int]:
    """Return the number of deleted words, and of sentences without any text."""
    alignments = align(references, result, normalizer("lower"))
    return sum(one.deletions for one in alignments), sum(not text for text in result)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="a run of recipes/quickstart.yaml, or its model folder")
    parser.add_argument("--hours", type=float, default=1.0, help="duration of the long recording; default: 1")
    parser.add_argument("--output", type=Path, help="also write the results to this page")
    arguments = parser.parse_args()
    record = Record("Transcription: long recordings, word times, filters", arguments.output)
    folder = model_folder(arguments.model)
    model, tokenizer = load_model(folder)
    filtered, raw = Transcriber(model, tokenizer), Transcriber(model, tokenizer, filter_hallucinations=False)
    clips = sentences(int(arguments.hours * 1100) + NUM_SPOKEN, 40)
    with tempfile.TemporaryDirectory() as place:
        long_recording(record, folder, filtered, clips, arguments.hours, Path(place))
        word_starts(record, filtered, Path(place))
    no_words(record, filtered, raw)
    speech_kept(record, filtered, raw, clips[-NUM_SPOKEN:])
    silence_before(record, filtered, clips[-NUM_SPOKEN:])
    return record.write()


if __name__ == "__main__":
    sys.exit(main())
