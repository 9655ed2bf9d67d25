"""Source ``synthetic``: speech synthesized by espeak-ng."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from tests.support.processes import fork
from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.sources import SOURCES, Index, Source, SourceContext
from tiny_audio.sources._synthetic.espeak import Delivery, Espeak
from tiny_audio.sources._synthetic.grammar import _CONTROL_WORDS, _UNITS, GRAMMARS, is_held_out, spoken, written
from tiny_audio.sources._synthetic.voices import ACCENTS, HELD_OUT_VOICES, TRAINING_VOICES, UNNATURAL_VOICES
from tiny_audio.sources.synthetic import SyntheticConfig, SyntheticSource


def build(config: SyntheticConfig, folder: Path) -> Source:
    return SOURCES.build(config, SourceContext(cache_dir=folder / "cache"))


# --- synthetic: config --------------------------------------------------------------------------------------------


def test_a_config_can_be_read_from_yaml_values() -> None:
    config = SyntheticConfig.model_validate(
        {
            "name": "synthetic",
            "num_utterances": 5,
            "grammars": ["digits", "census"],
            "accents": ["en-us"],
            "voices": ["f1", "m1"],
            "rate_wpm": [150, 160],
            "peak_dbfs": [-10, -3.0],
            "noise_snr_db": [10, 30],
        }
    )
    assert config.grammars == ("digits", "census")
    assert config.voices == ("f1", "m1")
    assert config.noise_snr_db == (10, 30)
    assert SyntheticConfig.model_validate_json(config.model_dump_json()) == config
    assert SyntheticConfig.model_validate({"voices": "held_out"}).voices == "held_out"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accents": ["en-uk"]}, "unknown accent 'en-uk'; did you mean 'en-us'? Allowed: en-029, en-gb, "),
        ({"accents": []}, "at least 1 item"),
        ({"accents": ["en-us", "en-us"]}, "en-us is listed more than once; list each name once"),
        ({"grammars": ["digits", "digits"]}, "digits is listed more than once"),
        ({"grammars": ["digit"]}, "'digits', 'numbers', 'home', 'phone', 'spelling', 'dates' or 'census'"),
        (
            {"voices": ["f11"]},
            "unknown voice 'f11'; write train or held_out for one side of the split, or names of var",
        ),
        ({"voices": "heldout"}, "'train' or 'held_out'"),
        ({"rate_wpm": [200, 150]}, "[200, 150] must be two numbers from 80 to 450, the smaller one first"),
        ({"pitch": [0, 100]}, "[0, 100] must be two numbers from 0 to 99, the smaller one first"),
        ({"noise_snr_db": [float("nan"), 3.0]}, "finite number"),
        ({"rate_wpm": [150.5, 160]}, "valid integer"),
        ({"num_utterances": 0}, "greater than 0"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_invalid_configs_are_rejected(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        SyntheticConfig.model_validate(fields)


def test_without_the_wheel_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=re.escape("run: pip install 'tiny-audio[synthetic]'")):
        build(SyntheticConfig.tiny(), tmp_path).index()


# --- synthetic: voices and sentences --------------------------------------------------------------------------------


def variant_files() -> dict[str, Path]:
    import espeakng_loader

    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    return {path.name: path for path in folder.iterdir()}


def test_every_espeak_variant_is_in_at_most_one_list() -> None:
    voices = TRAINING_VOICES + HELD_OUT_VOICES + UNNATURAL_VOICES
    assert len(voices) == len(set(voices))
    assert set(voices) == set(variant_files())
    assert len(TRAINING_VOICES) >= 70
    assert len(HELD_OUT_VOICES) >= 12


def test_no_held_out_voice_has_the_formants_of_a_training_voice() -> None:
    # Voices that differ only in pitch, echo or roughness count as the same voice, so only formants are compared.
    def formants(name: str) -> tuple[tuple[str, ...], ...]:
        lines = variant_files()[name].read_text(errors="replace").splitlines()
        words = [line.split("//")[0].split() for line in lines]
        return tuple(sorted(tuple(line[1:3]) for line in words if line[:1] == ["formant"] and line[1] in "1234"))

    training = {formants(name): name for name in TRAINING_VOICES}
    assert {name: training[formants(name)] for name in HELD_OUT_VOICES if formants(name) in training} == {}


@pytest.mark.parametrize("name", GRAMMARS)
def test_sentences(name: str) -> None:
    rng = random.Random(0)
    lines = [GRAMMARS[name](rng) for _ in range(1_500)]
    texts = [written(line) for line in lines]
    assert all(re.fullmatch(r"[a-z']+( [a-z']+)*", text) for text in texts)
    assert len(set(texts)) > 600
    assert 0.1 < sum(map(is_held_out, set(texts))) / len(set(texts)) < 0.55
    assert max(map(len, texts)) < 90


def test_all_grammars_are_used_by_default() -> None:
    assert SyntheticConfig().grammars == tuple(GRAMMARS)


def test_single_words_are_never_held_out() -> None:
    alone = [*_CONTROL_WORDS, *_UNITS, "oh", *"abcdefghijklmnopqrstuvwxyz"]
    assert not any(map(is_held_out, alone))


def test_the_letter_a_is_pronounced_as_a_letter() -> None:
    assert spoken("A B A set a timer") == "[['eI]] b [['eI]] set a timer"
    assert written("A B A set a timer") == "a b a set a timer"
    assert spoken("rubout X two") == "rub out x two"


# --- synthetic: speech --------------------------------------------------------------------------------------------


NUM_UTTERANCES = 24


def make(folder: Path, num_workers: int = 2, **fields: Any) -> Index:
    """Synthesize speech and return its index. By default, training and held-out sentences are not separated, because
    computing this split takes two seconds in each process."""
    fields = {"num_utterances": NUM_UTTERANCES, "sentences": "all"} | fields
    return SyntheticSource(SyntheticConfig(**fields), folder, num_workers).index()


def samples(index: Index) -> list[np.ndarray]:
    return [soundfile.read(utterance.audio_file(), dtype="int16")[0] for utterance in index.utterances]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    folder = tmp_path_factory.mktemp("synthetic")
    return folder, make(folder)


def test_synthetic_speech(synthetic: tuple[Path, Index]) -> None:
    folder, index = synthetic
    assert (len(index.utterances), index.dropped) == (NUM_UTTERANCES, ())
    for utterance, audio in zip(index.utterances, samples(index), strict=True):
        info = soundfile.info(utterance.audio_file())
        assert (info.samplerate, info.channels, info.format, info.subtype) == (SAMPLE_RATE, 1, "FLAC", "PCM_16")
        assert utterance.duration_s == info.frames / SAMPLE_RATE
        accent, voice = utterance.metadata["accent"], utterance.metadata["voice"]
        assert utterance.metadata["speaker"] == f"{accent}+{voice}"
        assert accent in ACCENTS
        assert voice in TRAINING_VOICES
        peak = np.abs(audio.astype(np.int32)).max() / 32_767
        assert -20.1 < 20 * np.log10(peak) < -0.9
        loud = np.flatnonzero(np.abs(audio.astype(np.int32)) > peak * 32_767 * 10 ** (-46 / 20))
        assert loud[0] <= 0.1 * SAMPLE_RATE + 160
        assert len(audio) - loud[-1] <= 0.1 * SAMPLE_RATE + 160
    words = sum(len(utterance.text.split()) for utterance in index.utterances)
    assert 1 < words / sum(utterance.duration_s for utterance in index.utterances) < 5
    cache = index.utterances[0].audio_file().parents[1]
    assert cache.parent == folder / "synthetic"
    assert sorted(path.name for path in cache.iterdir()) == ["0000", "manifest.jsonl"]
    assert index.utterances[23].audio_file().name == "0000023.flac"


def test_existing_speech_is_not_synthesized_again(
    synthetic: tuple[Path, Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert make(synthetic[0]) == synthetic[1]


def test_samples_do_not_depend_on_the_number_of_workers_or_utterances(
    synthetic: tuple[Path, Index], tmp_path: Path
) -> None:
    alone = make(tmp_path / "one", num_workers=1)
    fewer = make(tmp_path / "fewer", num_workers=3, num_utterances=6)
    assert alone.fingerprint == synthetic[1].fingerprint
    reference = samples(synthetic[1])
    assert all(map(np.array_equal, samples(alone), reference))
    assert all(map(np.array_equal, samples(fewer), reference[:6]))
    other = make(tmp_path / "seed", seed=1, num_utterances=4)
    assert {utterance.text for utterance in other.utterances}.isdisjoint(
        utterance.text for utterance in synthetic[1].utterances if len(utterance.text) > 20
    )


def test_speech_does_not_depend_on_the_order_of_sentences() -> None:
    deliveries = [
        Delivery(f"{ACCENTS[accent]}+{voice}", 170, 50, 50, 0)
        for accent in ("en-us", "en-gb-scotland")
        # These voices have breath, echo, noise or flutter, which could depend on speech before them.
        for voice in ("f2", "Alicia", "klatt3", "m1", "sandro", "Marco", "victor")
    ]

    def say(delivery: Delivery) -> bytes:
        with Espeak() as espeak:
            return espeak.say("rub out g m e f three nine", delivery).tobytes()

    forwards = [say(delivery) for delivery in deliveries]
    backwards = [say(delivery) for delivery in reversed(deliveries)]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == len(deliveries)


def test_every_accent_and_every_voice_speaks() -> None:
    names = [f"gmw/en-US+{voice}" for voice in TRAINING_VOICES + HELD_OUT_VOICES + UNNATURAL_VOICES]
    names += [f"{file}+f1" for file in ACCENTS.values()]
    said = {}
    with Espeak() as espeak:
        for name in names:
            audio = espeak.say("seven", Delivery(name, 170, 50, 50, 0))
            assert 0.2 < len(audio) / 22_050 < 2, name
            assert 0.01 < np.abs(audio).max() < 0.999, name  # neither silent nor clipped
            said[name] = audio.tobytes()
    assert len(set(said.values())) == len(said)


def test_held_out_speech_has_held_out_voices_and_sentences(tmp_path: Path) -> None:
    index = make(tmp_path, voices="held_out", sentences="held_out", num_utterances=4, noise_snr_db=(0.0, 5.0))
    training = make(tmp_path, sentences="train", num_utterances=4)
    assert not any(is_held_out(utterance.text) for utterance in training.utterances)
    assert {utterance.metadata["voice"] for utterance in index.utterances} <= set(HELD_OUT_VOICES)
    assert all(is_held_out(utterance.text) for utterance in index.utterances)


def test_noise_has_the_requested_level(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"num_utterances": 2, "peak_dbfs": (-6.0, -6.0)}
    clean = samples(make(tmp_path, **fields))
    noisy = samples(make(tmp_path, noise_snr_db=(10.0, 10.0), **fields))
    for speech, both in zip(clean, noisy, strict=True):
        # The sum of speech and noise is scaled to the configured peak, so the speech in it has a new level. A
        # least-squares fit estimates this level.
        level = np.dot(speech.astype(float), both) / np.dot(speech.astype(float), speech)
        noise = both - level * speech
        snr = 10 * np.log10(np.mean((level * speech.astype(float)) ** 2) / np.mean(noise**2))
        assert snr == pytest.approx(10, abs=1)


def test_an_incomplete_cache_of_a_killed_run_is_not_used(tmp_path: Path) -> None:
    source = SyntheticSource(SyntheticConfig(num_utterances=2_000, sentences="all"), tmp_path, 2)
    run = fork(lambda: source.index() and None, stdout=None, stderr=None)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("synthetic/*.tmp/0000/*.flac"))) < 5:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    (unfinished,) = (tmp_path / "synthetic").iterdir()
    assert unfinished.name.endswith(".tmp")
    time.sleep(0.2)
    after_kill = len(list(unfinished.rglob("*.flac")))
    time.sleep(0.3)
    assert len(list(unfinished.rglob("*.flac"))) == after_kill, "the workers outlived their parent"

    os.utime(unfinished, (0, 0))
    assert len(make(tmp_path, num_utterances=3).utterances) == 3
    assert not unfinished.exists(), "old leftovers are removed"


def test_two_processes_can_synthesize_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real_rename = Path.rename

    def rename_after_another_process(self: Path, target: Path) -> Path:
        shutil.copytree(self, target)  # as if another process had finished just before
        return real_rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_after_another_process)
    with caplog.at_level(logging.INFO):
        index = make(tmp_path, num_utterances=3)
    assert len(index.utterances) == 3
    assert "another process finished the same synthesis first; its result is used" in caplog.text
    assert "synthesizing 3 utterances with espeak-ng, processes: 1" in caplog.text
    assert len(list((tmp_path / "synthetic").iterdir())) == 1


def test_an_incomplete_cache_is_named(tmp_path: Path) -> None:
    index = make(tmp_path, num_utterances=3)
    index.utterances[1].audio_file().unlink()
    with pytest.raises(UserError, match=r"the cache .* is damaged: .*2 of 3 utterances; delete the folder"):
        make(tmp_path, num_utterances=3)


def test_an_unwritable_cache_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"the cache folder .*/cache/synthetic cannot be written: "):
        build(SyntheticConfig.tiny(), tmp_path).index()


def test_a_failed_worker_reports_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny_audio.sources.synthetic._WORKER", "tiny_audio.no_such_module")
    with pytest.raises(RuntimeError, match=r"espeak-ng synthesis ended with status 1:\n.*no_such_module"):
        make(tmp_path, num_utterances=3)
    assert list((tmp_path / "synthetic").iterdir()) == []
