"""Compare the transcript of a long recording with the transcripts of its clips, which are transcribed one by one.

    python benchmarks/chunking.py runs/quickstart                                           60 synthesized sentences
    python benchmarks/chunking.py runs/mine --manifest an4/dev.jsonl --clips-of an4/train.jsonl
    python benchmarks/chunking.py runs/mine --only calls              simulated telephone calls, with pauses

The clips are joined into four recordings:

- joined: the clips unchanged
- dense: without pauses, so that every chunk of the maximum duration ends within speech
- band: like dense, in the frequency band of telephones
- calls: with pauses of 0.5 to 3 s, in 8-bit mu-law at 8 kHz, with a signal-to-noise ratio of 10 dB

Each recording is transcribed in chunks with several settings. Pauses are found by loudness or by silero-vad. The
durations of the training clips are known or unknown. In the last setting, the model also chooses the cuts. Words that
are lost or repeated at cuts count as deletions and insertions. ``--only voices`` transcribes nothing: it measures
silero-vad's speech probabilities for single clips of speech and of other sounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchaudio
from record import Record
from transcription import PAUSES_S, Clips, in_band, non_speech_clips, sentences, texts

from tiny_audio.analysis.scoring import align, normalizer
from tiny_audio.audio.load import load_audio
from tiny_audio.export.load import load_model, model_folder
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference import chunking
from tiny_audio.inference.filters import NO_VOICE, boost_quiet
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.inference.voice_activity import CONTINUE, FRAME, SpeechProbabilities, silero
from tiny_audio.model.clip_durations import ClipDurations
from tiny_audio.model.decoding import GenerationConfig

NUM_SENTENCES, SEED = 60, 41
MAX_WER_RATIO = 2.0
PARTS = ("joined", "dense", "band", "calls", "voices")
TELEPHONE_HZ = (300, 3400)
TELEPHONE_SNR_DB = 10.0


def from_manifest(path: Path, number: int | None) -> Clips:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = rows if number is None else rows[:: max(1, len(rows) // number)][:number]
    return [(load_audio(path.parent / row["audio_filepath"], max_duration_s=60.0).numpy(), row["text"]) for row in rows]


def durations_of(path: Path) -> ClipDurations:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return ClipDurations.of(np.array([row["duration"] for row in rows]))


def without_pauses(wave: np.ndarray) -> np.ndarray:
    """Return the parts of a waveform that are speech, with 64 ms before and after each part."""
    network = silero()
    assert network is not None, "this benchmark needs silero-vad"
    found = SpeechProbabilities(network)
    probabilities = [*found.add(torch.from_numpy(wave)), *found.end()]
    speech = np.convolve(np.array(probabilities) >= CONTINUE, np.ones(5), "same") > 0
    return wave[np.repeat(speech, FRAME)[: len(wave)]]


def row(name: str, references: list[str], hypotheses: list[str], chunks: object = "", suppressed: object = "") -> list:
    # Score all clips as one text, like the recording, so that the error rates are comparable.
    (one,) = align([" ".join(references)], [" ".join(hypotheses)], normalizer("lower"))
    errors = (one.substitutions, one.deletions, one.insertions)
    return [name, f"{one.errors / one.num_reference_words:.1%}", *errors, chunks, suppressed]


def recording(
    record: Record, recognizer: Transcriber, known: ClipDurations | None, search: bool, title: str, clips: Clips
) -> None:
    references, waves = [text for _, text in clips], [wave for wave, _ in clips]
    rows = [[*row("one by one", references, texts(recognizer, waves)), ""]]
    whole = torch.from_numpy(np.concatenate(waves))
    settings = [(None, False, False)]
    if known is not None:
        settings += [(None, True, False), (known, False, False), (known, True, False)]
        settings += [(known, True, True)] if search else []
    for durations, learned, recuts in settings:
        recognizer._model.config.clip_durations = None if durations is None else vars(durations)
        own = Transcriber(
            recognizer._model, recognizer._tokenizer, generation=recognizer._generation, search_cuts=recuts
        )
        network, chunking.silero = chunking.silero, chunking.silero if learned else lambda: None
        started = time.process_time()
        (result,) = own.transcribe([whole])
        busy_s = time.process_time() - started
        chunking.silero = network
        name = f"{'silero-vad' if learned else 'loudness'}, {'known' if durations else 'unknown'} durations"
        name += ", cuts by the model" if recuts else ""
        suppressed = sum(segment.suppressed is not None for segment in result.segments)
        rows.append([*row(name, references, [result.text], len(result.segments), suppressed), f"{busy_s:.1f}"])
    recognizer._model.config.clip_durations = None if known is None else vars(known)
    seconds = len(whole) / SAMPLE_RATE
    record.say(f"## {title}: {len(clips)} clips, {seconds:.0f} s\n")
    record.table(["", "WER", "substituted", "deleted", "inserted", "chunks", "suppressed", "CPU seconds"], rows)
    rates = [float(str(cells[1]).rstrip("%")) for cells in (rows[0], rows[-1])]
    record.bar("WER at most twice that of the clips one by one", rates[1] <= MAX_WER_RATIO * rates[0])


def highest(wave: np.ndarray) -> float:
    """Return the highest probability of speech in a clip."""
    network = silero()
    assert network is not None, "this benchmark needs silero-vad"
    found = SpeechProbabilities(network)
    samples = boost_quiet(torch.from_numpy(np.asarray(wave, np.float32)))
    return max([*found.add(samples), *found.end()])


def over_telephone(wave: np.ndarray) -> np.ndarray:
    """Simulate a telephone: remove frequencies below 300 Hz, encode in 8-bit mu-law at 8 kHz, and decode to 16 kHz."""
    narrow = torchaudio.functional.resample(torch.from_numpy(wave), SAMPLE_RATE, 8000)
    narrow = torchaudio.functional.highpass_biquad(narrow, 8000, TELEPHONE_HZ[0]).clamp(-1, 1)
    coded = torchaudio.functional.mu_law_encoding(narrow, 256)
    decoded = torchaudio.functional.mu_law_decoding(coded, 256)
    return torchaudio.functional.resample(decoded, 8000, SAMPLE_RATE).numpy()


def in_noise(wave: np.ndarray, snr_db: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(wave))
    return wave + noise * np.sqrt((wave**2).mean()) * 10 ** (-snr_db / 20)


def voices(record: Record, clips: Clips) -> None:
    kinds = {
        "as they are": [wave for wave, _ in clips],
        "white noise as loud": [in_noise(wave, 0) for wave, _ in clips],
        "white noise 5 dB louder": [in_noise(wave, -5) for wave, _ in clips],
        "300 to 3,400 Hz": [in_band(wave, *TELEPHONE_HZ) for wave, _ in clips],
        "mu-law at 8 kHz, noise at 10 dB": [in_noise(over_telephone(wave), 10) for wave, _ in clips],
    }
    rows = [
        [kind, *(f"{np.quantile([highest(wave) for wave in waves], q):.3f}" for q in (0, 0.05, 1))]
        for kind, waves in (kinds | non_speech_clips()).items()
    ]
    record.say("## Highest probability of speech in a clip\n")
    record.table(["clips", "lowest", "5 % quantile", "highest"], rows)
    record.bar(
        "speech is never below the limit of the filter no_voice",
        all(float(cells[1]) >= NO_VOICE for cells in rows[: len(kinds)]),
    )


def calls(clips: Clips) -> Clips:
    """Return simulated telephone calls: each clip with a pause before it and with noise, in 8-bit mu-law at 8 kHz."""
    rng = np.random.default_rng(1)
    found = []
    for wave, text in clips:
        pause = np.zeros(int(rng.uniform(*PAUSES_S) * SAMPLE_RATE), np.float32)
        level = np.sqrt((wave**2).mean()) * 10 ** (-TELEPHONE_SNR_DB / 20)
        noisy = np.concatenate([pause, wave]) + level * rng.standard_normal(len(pause) + len(wave))
        found.append((over_telephone(noisy.astype(np.float32)), text))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="a run, or its model folder")
    parser.add_argument("--manifest", type=Path, help="JSONL of clips; default: synthesized sentences")
    parser.add_argument("--clips", type=int, help="number of clips of the manifest")
    parser.add_argument("--clips-of", type=Path, help="JSONL of the training clips, if the export has no durations")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the synthesized sentences")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure only these; default: all")
    parser.add_argument("--no-search", action="store_true", help="do not let the model choose cuts")
    parser.add_argument("--greedy", action="store_true", help="decode greedily")
    parser.add_argument("--output", type=Path, help="also write the results to this page")
    arguments = parser.parse_args()
    record = Record("Long recordings in chunks", arguments.output)
    model, tokenizer = load_model(model_folder(arguments.model))
    known = durations_of(arguments.clips_of) if arguments.clips_of else model.clip_durations
    model.config.clip_durations = None if known is None else vars(known)
    greedy = GenerationConfig(max_new_tokens=model.generation.max_new_tokens) if arguments.greedy else None
    recognizer = Transcriber(model, tokenizer, generation=greedy)
    given = arguments.manifest
    clips = sentences(NUM_SENTENCES, arguments.seed) if given is None else from_manifest(given, arguments.clips)
    search = not arguments.no_search
    dense = [(without_pauses(wave), text) for wave, text in clips]
    if "joined" in arguments.only:
        recording(record, recognizer, known, search, "Clips joined as they are", clips)
    if "dense" in arguments.only:
        recording(record, recognizer, known, search, "Pauses cut out", dense)
    if "band" in arguments.only:
        narrow = [(in_band(wave, *TELEPHONE_HZ), text) for wave, text in dense]
        recording(record, recognizer, known, search, "Pauses cut out, in the band of telephones", narrow)
    if "calls" in arguments.only:
        recording(record, recognizer, known, search, "Telephone calls", calls(clips))
    if "voices" in arguments.only:
        voices(record, clips)
    return record.write()


if __name__ == "__main__":
    sys.exit(main())
