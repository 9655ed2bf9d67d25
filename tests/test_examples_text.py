"""The scripts in examples/ that create training data from texts."""

from __future__ import annotations

import ctypes.util
import gzip
import json
import random
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"


def run(script: str, arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a script as a command, and return its globals."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert end.value.code == 0
    return functions(script)


def functions(script: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / script))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The dog’s bark woke us.  It was two o'clock!", ["the dog's bark woke us", "it was two o'clock"]),
        ("gen1:1 In the beginning\ngen1:2 And the earth", ["in the beginning", "and the earth"]),
        ("In 1999 we sang; and then we went home.", ["and then we went home"]),  # a clause with digits is dropped
        ("We met J. Smith here.", []),
        ("I saw Mr. Darcy. Mrs Long _was_ there.", ["i saw mister darcy", "missus long was there"]),
        ("Well [a remark] now then", ["well now then"]),
        ("Too few. One two three four five six.", []),  # two words are too few, and six are too many
    ],
)
def test_sentences_are_extracted_from_a_text(text: str, found: list[str]) -> None:
    assert list(functions("sentences.py")["sentences"](text, 3, 5)) == found


def test_sentences_of_a_test_set_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, test, output = (tmp_path / name for name in ("a.txt", "b.txt.gz", "test.jsonl", "out.txt"))
    first.write_text("One day we went to the old mill. This line is fine.")
    second.write_bytes(gzip.compress(b"This line is fine. So is this one. And also that one here."))
    test.write_text(json.dumps({"text": "It's 1890: ONE DAY WE WENT TO town"}) + "\n\n")
    run("sentences.py", [first, second, "--exclude", test, "--output", output], monkeypatch)
    lines = output.read_text().splitlines()
    assert sorted(lines) == ["and also that one here", "so is this one", "this line is fine"]
    run("sentences.py", [first, second, "--most", 1, "--output", output], monkeypatch)
    assert len(output.read_text().splitlines()) == 2, "--most applies to each source"


def test_a_missing_debian_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    script = functions("sentences.py")
    missing = type("Done", (), {"returncode": 1, "stdout": ""})()
    monkeypatch.setattr(script["subprocess"], "run", lambda *_, **__: missing)
    monkeypatch.setattr(script["shutil"], "which", lambda name: name)
    with pytest.raises(SystemExit, match="apt-get install dict-gcide"):
        list(script["texts"]("debian:dict-gcide"))


def test_missing_files_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"sentences.py": ["--output", "out"], "speech.py": ["--engine", "pico", "--output-dir", "out"]}
    for script, arguments in own.items():
        monkeypatch.setattr(sys, "argv", [script, "missing.txt", *arguments])
        with pytest.raises(SystemExit):
            functions(script)["main"]()
        assert "there is no file missing.txt" in capsys.readouterr().err


def test_clips_are_varied_reproducibly() -> None:
    varied = functions("speech.py")["varied"]
    tone = 0.3 * np.sin(np.arange(16_000) / 5)
    found = [varied(tone, index, random.Random(index)) for index in (0, 0, 1)]
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    for audio in found:
        assert len(audio) == len(tone)
        assert 0.17 < np.abs(audio).max() < 0.9


def test_neighboring_sentences_are_joined() -> None:
    joined = functions("speech.py")["joined"]
    lines = [f"sentence number {index} of many" for index in range(200)]
    assert joined(lines, 5, 0) == [(index, [line]) for index, line in enumerate(lines, start=5)]
    assert joined(["", "a b", " ", "c"], 5, 0) == [(6, ["a b"]), (8, ["c"])], "empty lines are left out"
    clips = joined(lines, 5, 20)
    assert [line for _, texts in clips for line in texts] == lines
    assert all(lines[first - 5] == texts[0] for first, texts in clips)
    assert {len(texts) for _, texts in clips} == {1, 2, 3, 4}


def test_joined_sentences_are_one_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function replaces the speech synthesizer, so that the test needs no installed synthesizer."""
    (tmp_path / "sentences.txt").write_text("\n".join(f"word{index}" for index in range(20)))
    main, spoken = functions("speech.py")["main"], []

    def speak(text: str, rng: random.Random) -> tuple[np.ndarray, str]:
        spoken.append(text)
        return np.full(16_000, 0.1), "voice"

    monkeypatch.setitem(main.__globals__, "engine_of", lambda name, model: speak)
    arguments = ["--engine", "pico", "--join", "6", "--output-dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["speech.py", str(tmp_path / "sentences.txt"), *arguments])
    assert main() == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert 1 < len(rows) < 20
    assert [row["text"] for row in rows] == [text.replace(".", "") for text in spoken]
    assert " ".join(row["text"] for row in rows).split() == [f"word{index}" for index in range(20)]


def test_a_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="apt-get install libttspico-utils"):
        functions("speech.py")["engine_of"]("pico", None)
    with pytest.raises(SystemExit, match="not a file: missing"):
        functions("speech.py")["engine_of"]("silero", Path("missing.pt"))


def is_installed(engine: str) -> bool:
    if engine == "flite":
        return ctypes.util.find_library("flite") is not None
    return shutil.which({"pico": "pico2wave", "rhvoice": "RHVoice-test"}[engine]) is not None


@pytest.mark.parametrize("engine", ["flite", "pico", "rhvoice"])
def test_an_engine_speaks_sentences(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_installed(engine):
        pytest.skip(f"{engine} is not installed")
    texts = ["this is not spoken", "the first sentence", "and the second one"]
    (tmp_path / "sentences.txt").write_text("".join(f"{text}\n" for text in texts))
    found = []  # samples are not compared, because Flite's random numbers continue from clip to clip
    for first, name in ((1, "all"), (2, "last")):
        arguments = ["--engine", engine, "--first", first, "--output-dir", tmp_path / name]
        run("speech.py", [tmp_path / "sentences.txt", *arguments], monkeypatch)
        rows = [json.loads(line) for line in (tmp_path / name / "manifest.jsonl").read_text().splitlines()]
        assert [row["text"] for row in rows] == texts[first:]
        for row in rows:
            audio, rate = soundfile.read(tmp_path / name / row["audio_filepath"])
            assert (rate, len(audio) / rate) == (16_000, row["duration"])
            assert 0.5 < row["duration"] < 5
            assert row["speaker"].startswith(f"{engine}-")
        found.append(rows[-1] | {"audio_filepath": ""})
    assert found[0] == found[1], "voice and rate depend only on the engine and the sentence's number"
