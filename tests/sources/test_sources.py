"""Sources: manifests written by people, and speech made by espeak-ng."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from tiny_audio.audio.load import load_audio
from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.sources import SOURCES, Index, Source, SourceContext
from tiny_audio.sources._manifest import Columns, read_manifest
from tiny_audio.sources._synthetic.espeak import Delivery, Espeak
from tiny_audio.sources._synthetic.grammar import _CONTROL_WORDS, _UNITS, GRAMMARS, is_held_out, spoken, written
from tiny_audio.sources._synthetic.voices import ACCENTS, HELD_OUT_VOICES, TRAINING_VOICES, UNNATURAL_VOICES
from tiny_audio.sources.manifest import ManifestConfig
from tiny_audio.sources.synthetic import SyntheticConfig, SyntheticSource

SHARED = Path(__file__).parents[3] / "shared"
AN4 = SHARED / "speech" / "an4" / "train.jsonl"


def build(config: ManifestConfig | SyntheticConfig, folder: Path) -> Source:
    return SOURCES.build(config, SourceContext(cache_dir=folder / "cache"))


def write_clip(path: Path, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * SAMPLE_RATE), np.float32), SAMPLE_RATE)


def write_manifest(folder: Path, *rows: object) -> Path:
    """Rows that are no strings become JSON."""
    path = folder / "manifest.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"audio_filepath": "a.flac", "duration": 1.0, "text": "yes"} | changes


def indexed(folder: Path, *rows: object, **config: str) -> Index:
    return build(ManifestConfig(path=str(write_manifest(folder, *rows)), **config), folder).index()


# --- manifest ---------------------------------------------------------------------------------------------------


def test_a_manifest_is_read_without_decoding(tmp_path: Path) -> None:
    write_clip(tmp_path / "clips" / "a.flac")
    (tmp_path / "b.flac").write_text("not decoded, so nobody knows yet that this is no audio")
    index = indexed(
        tmp_path,
        row(audio_filepath="clips/a.flac", text="  Hello you ", speaker="ann", age=31, native=True, notes=None),
        "",
        row(audio_filepath=str(tmp_path / "b.flac"), duration=2),
    )
    first, second = index.utterances
    assert (first.id, first.duration_s, first.text) == ("clips/a.flac", 1.0, "Hello you")
    assert first.metadata == {"speaker": "ann", "age": "31", "native": "true"}
    assert first.audio_file() == tmp_path / "clips" / "a.flac"
    assert (second.id, second.duration_s) == (str(tmp_path / "b.flac"), 2.0)
    assert index.dropped == ()


def test_a_source_of_files_goes_into_loader_processes(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.flac")
    source = build(ManifestConfig(path=str(write_manifest(tmp_path, row()))), tmp_path)
    (utterance,) = source.index().utterances
    audio = pickle.loads(pickle.dumps(source)).encoded(utterance)
    assert load_audio(audio, max_duration_s=1).shape == (SAMPLE_RATE,)


def test_a_missing_duration_is_read_from_the_header(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.flac", 2.5)
    (tmp_path / "bad.flac").write_text("no audio")
    index = indexed(
        tmp_path, {"audio_filepath": "a.flac", "text": "yes"}, row(audio_filepath="bad.flac", duration=None)
    )
    assert index.utterances[0].duration_s == 2.5
    assert index.dropped[0].reason == "undecodable"


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        ("{not json", "not_json", "not JSON (Expecting property name enclosed in double quotes: "),
        ("[" * 100_000, "not_json", "not JSON"),
        ('["a.flac", 1.0, "yes"]', "not_an_object", "not a JSON object: ['a.flac', 1.0, 'yes']"),
        ("3", "not_an_object", "not a JSON object: 3"),
        (row(text=""), "text_missing", "'text' must be a text that is not empty, not ''"),
        (row(text=" \t"), "text_missing", "'text' must be a text that is not empty"),
        (row(text=None), "text_missing", "not None"),
        (row(text=["yes"]), "text_missing", "not ['yes']"),
        ({"audio_filepath": "a.flac", "duration": 1}, "text_missing", "not None"),
        (row(text="\ud800"), "bad_unicode", "'text' or 'audio_filepath' holds half a character"),
        (row(audio_filepath="none.flac"), "audio_missing", "there is no file "),
        (row(audio_filepath="nowhere/a.flac"), "audio_missing", "there is no file "),
        (row(audio_filepath="a\0.flac"), "audio_missing", "there is no file "),
        (row(audio_filepath="."), "audio_missing", "there is no file "),
        (row(audio_filepath=3), "audio_missing", "'audio_filepath' must be the path of an audio file, not 3"),
        (row(audio_filepath=""), "audio_missing", "must be the path of an audio file, not ''"),
        (row(duration=0), "bad_duration", "'duration' must be a finite number of seconds above 0, not 0"),
        (row(duration=-1.5), "bad_duration", "not -1.5"),
        (row(duration=float("nan")), "bad_duration", "not nan"),
        (row(duration=float("inf")), "bad_duration", "not inf"),
        (row(duration=10**400), "bad_duration", "not 1000000"),
        (row(duration="1.0"), "bad_duration", "'duration' must be seconds, not '1.0'"),
        (row(duration=True), "bad_duration", "'duration' must be seconds, not True"),
        (row(offset=3.5), "offset", "pieces of files are not supported (offset 3.5): cut the audio into files"),
    ],
)
def test_bad_rows_are_dropped_with_their_line(tmp_path: Path, bad: object, reason: str, detail: str) -> None:
    write_clip(tmp_path / "a.flac")
    index = indexed(tmp_path, row(), bad, row(text="no"))
    assert [utterance.text for utterance in index.utterances] == ["yes", "no"]
    (dropped,) = index.dropped
    assert (dropped.id, dropped.reason) == ("manifest.jsonl:2", reason)
    assert dropped.detail.startswith(f"{tmp_path}/manifest.jsonl, line 2: ")
    assert detail in dropped.detail
    assert len(dropped.detail) < 400


def test_bytes_that_are_no_text_and_a_byte_order_mark(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.flac")
    path = tmp_path / "manifest.jsonl"
    good = json.dumps(row()).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\xff\xfe\n" + good)
    index = read_manifest(path, Columns())
    assert len(index.utterances) == 2
    assert [(dropped.id, dropped.reason) for dropped in index.dropped] == [("manifest.jsonl:2", "not_json")]


def test_ids_are_unique(tmp_path: Path) -> None:
    for name in ("a.flac", "a.flac:3"):
        write_clip(tmp_path / "clip.flac")
        shutil.copy(tmp_path / "clip.flac", tmp_path / name)
    index = indexed(tmp_path, row(audio_filepath="a.flac:3"), row(), row(text="no"), row(text="no"))
    assert [utterance.id for utterance in index.utterances] == ["a.flac:3", "a.flac", "a.flac:3'", "a.flac:4"]


def test_the_fingerprint_is_that_of_the_data_not_of_its_place(tmp_path: Path) -> None:
    def fingerprint(place: str, *rows: object) -> str:
        write_clip(tmp_path / place / "a.flac")
        write_clip(tmp_path / place / "b.flac")
        return indexed(tmp_path / place, *rows).fingerprint

    rows = (row(), row(audio_filepath="b.flac", text="no"))
    first = fingerprint("one", *rows)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert fingerprint("two", *rows) == first
    assert fingerprint("two", row(speaker="ann"), "junk", rows[1]) == first
    others = {
        fingerprint("two", rows[0]),
        fingerprint("two", *reversed(rows)),
        fingerprint("two", row(text="yeah"), rows[1]),
        fingerprint("two", row(duration=1.5), rows[1]),
    }
    assert first not in others
    assert len(others) == 4


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.flac")
    index = indexed(
        tmp_path,
        {"wav": "a.flac", "len": 1.0, "transcript": "yes", "text": "raw"},
        audio_column="wav",
        duration_column="len",
        text_column="transcript",
    )
    assert index.utterances[0].text == "yes"
    assert index.utterances[0].metadata == {"text": "raw"}
    with pytest.raises(
        ValidationError, match="must name three different columns, not 'audio_filepath', 'text' and 'te"
    ):
        ManifestConfig(path="x", duration_column="text")
    with pytest.raises(ValidationError, match="at least 1 character"):
        ManifestConfig(path="")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_clip(tmp_path / "a.flac")
    write_manifest(tmp_path, row(audio_filepath="~/a.flac"))
    (utterance,) = build(ManifestConfig(path="~/manifest.jsonl"), tmp_path).index().utterances
    assert (utterance.id, utterance.audio_file()) == ("~/a.flac", tmp_path / "a.flac")


def test_what_is_no_manifest_at_all(tmp_path: Path) -> None:
    def refused(path: Path, *words: str) -> None:
        with pytest.raises(UserError) as caught:
            build(ManifestConfig(path=str(path)), tmp_path).index()
        for word in (*words, str(path), 'expected one JSON object a line, such as {"audio_filepath": "a.flac"'):
            assert word in str(caught.value)
        assert len(str(caught.value)) < 1_000

    refused(tmp_path / "none.jsonl", "does not exist")
    refused(tmp_path, "is a folder")
    refused(Path("/dev/zero"), "is not a regular file")
    path = tmp_path / "m.jsonl"
    path.write_text("")
    refused(path, "is empty")
    path.write_text(" \n\n")
    refused(path, "is empty")
    path.write_bytes(np.random.default_rng(0).bytes(200_000))
    refused(path, "is not a manifest: none of its first 100 lines is a JSON object")
    path.write_bytes(bytes(30_000_000))
    refused(path, "no row of the manifest", "(30 read)", "not_json", "a line of 1,000,000 bytes or more")
    path.write_text("audio,text\na.flac,yes\n")
    refused(path, "no row of the manifest", "(2 read); the first: not_json", "line 1")
    path.write_text(json.dumps(row()) + "\n")
    refused(path, "the first: audio_missing", "there is no file")


@pytest.mark.skipif(not AN4.exists(), reason="no shared recordings")
def test_an4() -> None:
    index = read_manifest(AN4, Columns())
    assert (len(index.utterances), len(index.dropped)) == (844, 0)
    assert len({utterance.metadata["speaker"] for utterance in index.utterances}) == 66
    assert sum(utterance.duration_s for utterance in index.utterances) / 60 == pytest.approx(37.8, abs=0.1)
    for utterance in index.utterances[::100]:
        waveform = load_audio(utterance.audio_file(), max_duration_s=30)
        assert len(waveform) / SAMPLE_RATE == pytest.approx(utterance.duration_s, abs=0.06)


# --- synthetic: config --------------------------------------------------------------------------------------------


def test_a_synthetic_config_as_yaml_gives_it() -> None:
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
def test_a_synthetic_config_that_cannot_be(fields: dict[str, object], message: str) -> None:
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


def test_every_variant_is_on_one_side_or_on_none() -> None:
    voices = TRAINING_VOICES + HELD_OUT_VOICES + UNNATURAL_VOICES
    assert len(voices) == len(set(voices))
    assert set(voices) == set(variant_files())
    assert len(TRAINING_VOICES) >= 70
    assert len(HELD_OUT_VOICES) >= 12


def test_no_held_out_voice_is_a_training_voice_in_disguise() -> None:
    # Where the formants lie makes the voice; pitch, echo, roughness and the like do not.
    def formants(name: str) -> tuple[tuple[str, ...], ...]:
        lines = variant_files()[name].read_text(errors="replace").splitlines()
        words = [line.split("//")[0].split() for line in lines]
        return tuple(sorted(tuple(line[1:3]) for line in words if line[:1] == ["formant"] and line[1] in "1234"))

    training = {formants(name): name for name in TRAINING_VOICES}
    assert {name: training[formants(name)] for name in HELD_OUT_VOICES if formants(name) in training} == {}


@pytest.mark.parametrize("name", GRAMMARS)
def test_sentences(name: str) -> None:
    rng = random.Random(0)
    lines = [GRAMMARS[name](rng) for _ in range(3_000)]
    texts = [written(line) for line in lines]
    assert all(re.fullmatch(r"[a-z']+( [a-z']+)*", text) for text in texts)
    assert len(set(texts)) > 1_000
    assert 0.05 < sum(map(is_held_out, set(texts))) / len(set(texts)) < 0.15
    assert max(map(len, texts)) < 90


def test_grammars_are_those_of_the_config() -> None:
    assert SyntheticConfig().grammars == tuple(GRAMMARS)


def test_no_word_that_is_said_alone_is_kept_from_training() -> None:
    alone = [*_CONTROL_WORDS, *_UNITS, "oh", *"abcdefghijklmnopqrstuvwxyz"]
    assert not any(map(is_held_out, alone))


def test_a_spelled_a_is_a_letter_and_no_article() -> None:
    assert spoken("A B A set a timer") == "[['eI]] b [['eI]] set a timer"
    assert written("A B A set a timer") == "a b a set a timer"
    assert spoken("rubout X two") == "rub out x two"


# --- synthetic: speech --------------------------------------------------------------------------------------------


def make(folder: Path, num_workers: int = 2, **fields: Any) -> Index:
    fields = {"num_utterances": 45} | fields
    return SyntheticSource(SyntheticConfig(**fields), folder, num_workers).index()


def samples(index: Index) -> list[np.ndarray]:
    return [soundfile.read(utterance.audio_file(), dtype="int16")[0] for utterance in index.utterances]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    folder = tmp_path_factory.mktemp("synthetic")
    return folder, make(folder)


def test_synthetic_speech(synthetic: tuple[Path, Index]) -> None:
    folder, index = synthetic
    assert (len(index.utterances), index.dropped) == (45, ())
    for utterance, audio in zip(index.utterances, samples(index), strict=True):
        info = soundfile.info(utterance.audio_file())
        assert (info.samplerate, info.channels, info.format, info.subtype) == (SAMPLE_RATE, 1, "FLAC", "PCM_16")
        assert utterance.duration_s == info.frames / SAMPLE_RATE
        accent, voice = utterance.metadata["accent"], utterance.metadata["voice"]
        assert utterance.metadata["speaker"] == f"{accent}+{voice}"
        assert accent in ACCENTS
        assert voice in TRAINING_VOICES
        assert not is_held_out(utterance.text)
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
    assert index.utterances[44].audio_file().name == "0000044.flac"


def test_the_second_time_nothing_is_made(synthetic: tuple[Path, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert make(synthetic[0]) == synthetic[1]


def test_neither_the_workers_nor_the_count_change_a_sample(synthetic: tuple[Path, Index], tmp_path: Path) -> None:
    alone = make(tmp_path / "one", num_workers=1)
    fewer = make(tmp_path / "fewer", num_workers=3, num_utterances=30)
    assert alone.fingerprint == synthetic[1].fingerprint
    reference = samples(synthetic[1])
    assert all(map(np.array_equal, samples(alone), reference))
    assert all(map(np.array_equal, samples(fewer), reference[:30]))
    other = make(tmp_path / "seed", seed=1, num_utterances=20)
    assert {utterance.text for utterance in other.utterances}.isdisjoint(
        utterance.text for utterance in synthetic[1].utterances if len(utterance.text) > 20
    )


def test_espeak_says_the_same_in_any_order() -> None:
    deliveries = [
        Delivery(f"{ACCENTS[accent]}+{voice}", 170, 50, 50, 0)
        for accent in ("en-us", "en-gb-scotland")
        for voice in ("f2", "Alicia", "klatt3", "m1", "sandro", "Marco", "victor")  # with breath, echo, noise, flutter
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


def test_held_out_voices_say_held_out_sentences(tmp_path: Path) -> None:
    index = make(tmp_path, voices="held_out", sentences="held_out", num_utterances=20, noise_snr_db=(0.0, 5.0))
    assert {utterance.metadata["voice"] for utterance in index.utterances} <= set(HELD_OUT_VOICES)
    assert all(is_held_out(utterance.text) for utterance in index.utterances)


def test_noise_is_as_loud_as_asked(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"num_utterances": 8, "peak_dbfs": (-6.0, -6.0)}
    clean = samples(make(tmp_path, **fields))
    noisy = samples(make(tmp_path, noise_snr_db=(10.0, 10.0), **fields))
    for speech, both in zip(clean, noisy, strict=True):
        # The peak is set after the mix, so the speech in it comes at another level: fit it.
        level = np.dot(speech.astype(float), both) / np.dot(speech.astype(float), speech)
        noise = both - level * speech
        snr = 10 * np.log10(np.mean((level * speech.astype(float)) ** 2) / np.mean(noise**2))
        assert snr == pytest.approx(10, abs=1)


def test_the_main_process_never_loads_espeak(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tiny_audio.sources import SOURCES, SourceContext\n"
        "from tiny_audio.sources.synthetic import SyntheticConfig\n"
        f"SOURCES.build(SyntheticConfig.tiny(), SourceContext(Path({str(tmp_path)!r}))).index()\n"
        "maps = Path('/proc/self/maps')\n"
        "assert not maps.exists() or 'espeak' not in maps.read_text()\n"
        "print('espeakng_loader' in sys.modules, 'torchaudio' in sys.modules, 'soundfile' in sys.modules)\n"
    )  # no guarded __main__, on purpose
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("False False False\n", "")


def test_a_killed_run_leaves_no_cache_that_is_taken_as_whole(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from tiny_audio.sources.synthetic import SyntheticConfig, SyntheticSource\n"
        f"SyntheticSource(SyntheticConfig(num_utterances=20_000), Path({str(tmp_path)!r}), 2).index()\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code])
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


def test_two_processes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real_rename = Path.rename

    def beaten(self: Path, target: Path) -> Path:
        shutil.copytree(self, target)  # the other process, in the last moment
        return real_rename(self, target)

    monkeypatch.setattr(Path, "rename", beaten)
    with caplog.at_level(logging.INFO):
        index = make(tmp_path, num_utterances=3)
    assert len(index.utterances) == 3
    assert "another process finished the same synthesis first; its result is used" in caplog.text
    assert "synthesizing 3 utterances with espeak-ng, processes: 1" in caplog.text
    assert len(list((tmp_path / "synthetic").iterdir())) == 1


def test_a_cache_that_lost_files_is_named(tmp_path: Path) -> None:
    index = make(tmp_path, num_utterances=3)
    index.utterances[1].audio_file().unlink()
    with pytest.raises(UserError, match=r"the cache .* is damaged: 2 of 3 utterances are there; delete the folder"):
        make(tmp_path, num_utterances=3)


def test_a_cache_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"the cache folder .*/cache/synthetic cannot be written: "):
        build(SyntheticConfig.tiny(), tmp_path).index()


def test_a_worker_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny_audio.sources.synthetic._WORKER", "tiny_audio.no_such_module")
    with pytest.raises(RuntimeError, match=r"espeak-ng synthesis ended with status 1:\n.*no_such_module"):
        make(tmp_path, num_utterances=3)
    assert list((tmp_path / "synthetic").iterdir()) == []
