"""Source ``synthetic``: speech synthesized by espeak-ng, for tests, first trials and data that is hard to record.

The sentences come from a text file or from small grammars. Voices and sentences are each split into a training side and
a held-out side, so that a recipe can train on one side and evaluate on the other.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator, model_validator

import tiny_audio
from tiny_audio.config import NO_IDENTITY, LocalPath, UserError
from tiny_audio.registry import did_you_mean
from tiny_audio.sources import SOURCES, Index, Source, SourceConfig, SourceContext, Utterance
from tiny_audio.sources._manifest import Columns, read_manifest
from tiny_audio.sources._shared import cache_key
from tiny_audio.sources._synthetic.grammar import VERSION, save_split
from tiny_audio.sources._synthetic.sentence_file import is_held_out, read_sentences, spoken
from tiny_audio.sources._synthetic.voices import ACCENTS, HELD_OUT_VOICES, TRAINING_VOICES, UNNATURAL_VOICES

_LOG = logging.getLogger(__name__)
_STALE_S = 24 * 3600
"""Age at which a temporary folder is deleted, because its run was probably killed."""
_MIN_SHARE = 20
"""For each group of this many utterances, at most one worker process is started. To synthesize fewer utterances takes
less time than to start a process."""
_WORKER = "tiny_audio.sources._synthetic.worker"
_SENTENCES = "sentences.tsv"
_SPLIT = "split.json"

Grammar = Literal["digits", "numbers", "home", "phone", "spelling", "dates", "census"]
# YAML has only lists. With strict=False, pydantic converts a list to a tuple.
Grammars = Annotated[tuple[Grammar, ...], Field(strict=False, min_length=1)]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
IntRange = Annotated[tuple[int, int], Field(strict=False)]
FloatRange = Annotated[tuple[float, float], Field(strict=False)]


class SyntheticConfig(SourceConfig):
    """Speech synthesized by espeak-ng: sentences of your own, or digits, numbers, commands, spelled names and dates."""

    name: Literal["synthetic"] = "synthetic"
    num_utterances: PositiveInt = 10_000
    """Number of utterances. A larger number adds utterances and does not change the others."""
    seed: NonNegativeInt = 0
    """Seed for all random choices, such as sentences, voices and pitch."""
    grammars: Grammars = ("digits", "numbers", "home", "phone", "spelling", "dates", "census")
    """Kinds of sentences. A kind is drawn for each utterance, and all kinds are equally likely. `digits`: one to eight
    digits. `numbers`: cardinal numbers below 100,000. `home`: smart home commands. `phone`: commands to call or to send
    a message. `spelling`: names and random letters, letter by letter. `dates`: dates. `census`: control words,
    codes, names, dates, phone numbers and other answers to the census form of the corpus CMU AN4."""
    sentences_file: LocalPath | None = Field(default=None, json_schema_extra=NO_IDENTITY)
    """Text file with one sentence per line. These sentences replace the sentences of the grammars. Each sentence is
    spoken once before any sentence is repeated. The transcript is the line as written. espeak-ng reads digits as
    cardinal numbers, so write years and telephone numbers in words. Repeated lines count once. The data depends on the
    content of the file, and not on its path."""
    sentences: Literal["train", "held_out", "all"] = "train"
    """One side of a fixed split of the sentences (`train` or `held_out`), or both (`all`). About a tenth of the
    sentences of a file is held out. Of the sentences that a grammar produces, about 8 % (`phone`) to 40 % (`digits`)
    are held out. Choose `all` if you evaluate on other sentences, such as those of another file."""
    voices: Literal["train", "held_out"] | Names = "train"
    """Voice variants of espeak-ng. `train` and `held_out` are the two sides of a split of the variants that sound
    natural. A list can name any variants, such as `[f1, Mike]`."""
    accents: Names = tuple(ACCENTS)
    """English accents of espeak-ng."""
    rate_wpm: IntRange = (120, 230)
    """Minimum and maximum words per minute."""
    pitch: IntRange = (25, 75)
    """Minimum and maximum pitch, on espeak-ng's scale from 0 to 99. 50 is the voice's own pitch."""
    pitch_range: IntRange = (25, 75)
    """Minimum and maximum variation of pitch, on espeak-ng's scale from 0 (monotone) to 99."""
    word_gap_ms: IntRange = (0, 60)
    """Minimum and maximum additional pause between words."""
    peak_dbfs: FloatRange = (-20.0, -1.0)
    """Minimum and maximum peak level, in decibels relative to full scale."""
    noise_snr_db: FloatRange | None = None
    """Minimum and maximum signal-to-noise ratio of added noise (white to pink). If None, no noise is added."""

    @model_validator(mode="after")
    def _check_origin(self) -> SyntheticConfig:
        if self.sentences_file is not None and self.grammars != type(self).model_fields["grammars"].default:
            raise ValueError(
                "grammars has no effect, because sentences_file replaces the grammars; remove grammars or "
                "sentences_file, or use two sources"
            )
        return self

    @field_validator("grammars", "accents", "voices")
    @classmethod
    def _no_repetition(cls, names: tuple[str, ...] | str) -> tuple[str, ...] | str:
        repeated = [] if isinstance(names, str) else sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is listed more than once; list each name once")
        return names

    @field_validator("accents")
    @classmethod
    def _known_accents(cls, accents: tuple[str, ...]) -> tuple[str, ...]:
        for accent in accents:
            if accent not in ACCENTS:
                raise ValueError(f"unknown accent {accent!r}; {did_you_mean(accent, ACCENTS)}")
        return accents

    @field_validator("voices")
    @classmethod
    def _known_voices(cls, voices: str | tuple[str, ...]) -> str | tuple[str, ...]:
        known = TRAINING_VOICES + HELD_OUT_VOICES + UNNATURAL_VOICES
        for voice in () if isinstance(voices, str) else voices:
            if voice not in known:
                raise ValueError(
                    f"unknown voice {voice!r}; write train or held_out for one side of the split, or names of "
                    f"variants: {did_you_mean(voice, known)}"
                )
        return voices

    @field_validator("rate_wpm", "pitch", "pitch_range", "word_gap_ms", "peak_dbfs", "noise_snr_db")
    @classmethod
    def _within_bounds(cls, span: tuple[float, float] | None, info: ValidationInfo) -> tuple[float, float] | None:
        low, high = _BOUNDS[str(info.field_name)]
        if span is not None and not low <= span[0] <= span[1] <= high:
            raise ValueError(f"[{span[0]}, {span[1]}] must be two numbers from {low} to {high}, the smaller one first")
        return span

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with a few short utterances, for tests."""
        return cls(num_utterances=6, grammars=("digits",), accents=("en-us",), sentences="all")


_BOUNDS: dict[str, tuple[float, float]] = {
    "rate_wpm": (80, 450),
    "pitch": (0, 99),
    "pitch_range": (0, 99),
    "word_gap_ms": (0, 1_000),
    "peak_dbfs": (-60.0, 0.0),
    "noise_snr_db": (-20.0, 80.0),
}


@dataclass(frozen=True, slots=True)
class SyntheticSource(Source):
    """Utterances that are synthesized once into a folder of FLAC files in the cache."""

    config: SyntheticConfig
    cache_dir: Path
    num_workers: int

    def index(self) -> Index:
        """See :meth:`Source.index`. The first call synthesizes the utterances."""
        sentences = _sentences(self.config)
        folder = self.cache_dir / "synthetic" / _cache_key(self.config, sentences)
        if not folder.exists():
            _synthesize(self.config, sentences, folder, self.num_workers)
        index = read_manifest(folder / "manifest.jsonl", Columns())
        if len(index.utterances) != self.config.num_utterances:
            raise UserError(
                f"the cache {folder} is damaged: it has {len(index.utterances):,} of {self.config.num_utterances:,} "
                "utterances; delete the folder to synthesize them again"
            )
        return index

    def encoded(self, utterance: Utterance) -> Path:
        """Return the clip's FLAC file."""
        return utterance.audio_file()


@SOURCES.register
def build_synthetic(config: SyntheticConfig, context: SourceContext) -> Source:
    """Return the source. Nothing is synthesized yet."""
    return SyntheticSource(config, context.cache_dir.absolute(), os.cpu_count() or 1)


def _sentences(config: SyntheticConfig) -> list[str] | None:
    """Return the file's sentences on the side that ``config.sentences`` chooses, or None if the grammars are used."""
    if config.sentences_file is None:
        return None
    path = Path(config.sentences_file)
    sentences = read_sentences(path)
    if config.sentences == "all":
        return sentences
    own = [sentence for sentence in sentences if is_held_out(sentence) == (config.sentences == "held_out")]
    if not own:
        raise UserError(
            f"{path}: none of its {len(sentences)} sentences is on the side that `sentences: {config.sentences}` uses; "
            "set sentences: all, or add sentences"
        )
    return own


def _cache_key(config: SyntheticConfig, sentences: list[str] | None) -> str:
    identity = [config.model_dump(mode="json", exclude={"sentences_file"}), VERSION, _espeak_version()]
    return cache_key(json.dumps(identity if sentences is None else [*identity, sentences], sort_keys=True))


def _espeak_version() -> str:
    try:
        return importlib.metadata.version("espeakng-loader")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "the synthetic source needs espeak-ng, which is not installed; run: pip install 'tiny-audio[synthetic]'"
        ) from error


def _synthesize(config: SyntheticConfig, sentences: list[str] | None, folder: Path, num_workers: int) -> None:
    """Synthesize into a temporary folder and rename it to ``folder``, so that ``folder`` is never incomplete."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
        unfinished.mkdir()
    except OSError as error:
        raise UserError(f"the cache folder {folder.parent} cannot be written: {error}") from error
    started = time.monotonic()
    workers = min(num_workers, -(-config.num_utterances // _MIN_SHARE))
    _LOG.info("synthesizing %d utterances with espeak-ng, processes: %d", config.num_utterances, workers)
    try:
        if sentences is not None:
            pairs = (f"{sentence}\t{spoken(sentence)}\n" for sentence in sentences)
            (unfinished / _SENTENCES).write_text("".join(pairs), encoding="utf-8")
        elif config.sentences != "all":
            save_split(unfinished / _SPLIT)
        _run_workers(config, unfinished, workers)
        seconds = _merge_rows(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            _LOG.info("another process finished the same synthesis first; its result is used")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _LOG.info("synthesized %.1f minutes of speech in %.1f s", seconds / 60, time.monotonic() - started)


def _run_workers(config: SyntheticConfig, folder: Path, num_workers: int) -> None:
    sides = {"train": TRAINING_VOICES, "held_out": HELD_OUT_VOICES}
    settings = config.model_dump(mode="json", exclude={"name", "sentences_file", "voices"})
    job = settings | {
        "folder": str(folder),
        "num_workers": num_workers,
        "voices": sides[config.voices] if isinstance(config.voices, str) else config.voices,
        "sentence_file": _SENTENCES if (folder / _SENTENCES).exists() else None,
        "split_file": _SPLIT if (folder / _SPLIT).exists() else None,
    }
    root = str(Path(tiny_audio.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(num_workers):
            with (folder / f"errors-{index}.txt").open("wb") as errors_file:
                worker = subprocess.Popen(
                    [sys.executable, "-P", "-m", _WORKER],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors_file,
                    env=environment,
                )
            workers.append(worker)
            # If a worker has ended already, writing fails. The loop below reports the worker's error output.
            with contextlib.suppress(BrokenPipeError):
                _stdin(worker).write(json.dumps(job | {"worker": index}).encode() + b"\n")
        for index, worker in enumerate(workers):
            if worker.wait() != 0:
                errors = (folder / f"errors-{index}.txt").read_text(errors="replace").strip()
                raise RuntimeError(
                    f"espeak-ng synthesis ended with status {worker.returncode}:\n{errors[-4_000:] or '(no message)'}"
                )
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            _stdin(worker).close()


def _stdin(worker: subprocess.Popen[bytes]) -> IO[bytes]:
    assert worker.stdin is not None
    return worker.stdin


def _merge_rows(folder: Path) -> float:
    """Write the rows of all workers to one manifest, in the order of utterances. Return the total seconds of audio."""
    rows = []
    for share in folder.glob("rows-*.jsonl"):
        rows += [json.loads(line) for line in share.read_text(encoding="utf-8").splitlines()]
        share.unlink()
    for leftover in (*folder.glob("errors-*.txt"), *folder.glob(_SENTENCES), *folder.glob(_SPLIT)):
        leftover.unlink()
    rows.sort(key=lambda row: str(row["audio_filepath"]))
    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        manifest.writelines(json.dumps(row) + "\n" for row in rows)
        manifest.flush()
        os.fsync(manifest.fileno())
    return sum(float(row["duration"]) for row in rows)


def _remove_stale(folder: Path) -> None:
    """Delete old temporary folders of killed runs. Newer folders are kept, because they may still be in use."""
    for leftover in folder.parent.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process may rename or delete the folder first
            if time.time() - leftover.stat().st_mtime > _STALE_S:
                shutil.rmtree(leftover, ignore_errors=True)
