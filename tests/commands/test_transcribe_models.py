"""``transcribe`` with the model of a run: output, unreadable audio, and damaged model folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Output
from tests.conftest import (
    UNUSABLE,
    UNUSUAL,
)
from tests.support.processes import begin, finish

pytestmark = pytest.mark.usefixtures("one_thread")


def without_empty(err: str) -> str:
    """Return the messages except those about empty transcripts. The clips are tones, so many transcripts are empty."""
    return "".join(line for line in err.splitlines(keepends=True) if ": no text: " not in line)


def test_transcribe(call: Output, trained: Path) -> None:
    clips = [trained / f"clip00{number}.{'flac' if number else 'wav'}" for number in range(3)]
    code, out, err = call("transcribe", trained / "run" / "model", *clips)
    assert (code, without_empty(err)) == (0, "")
    assert [line.split("\t")[0] for line in out.splitlines()] == list(map(str, clips))


DAMAGED = ("nan.wav", "cut_off.flac", "forged.wav")
"""Clips of UNUSABLE that training drops, but that ``transcribe`` can partly decode."""


def test_unreadable_files_are_named_and_the_others_transcribed(
    call: Output, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [trained / name for name in (*UNUSABLE, *UNUSUAL, "clip000.wav", "nowhere.wav")]
    code, out, err = call("transcribe", trained / "run" / "model", *files)
    assert code == 2
    good = [name for name in UNUSABLE if name in DAMAGED] + [*UNUSUAL, "clip000.wav"]
    assert [Path(line.split("\t")[0]).name for line in out.splitlines()] == good
    assert all(any(text.startswith(f"{trained / name}: ") for text in caplog.messages) for name in DAMAGED)
    errors = without_empty(err).removeprefix("error: ")
    bad = [name for name in UNUSABLE if name not in DAMAGED] + ["nowhere.wav"]
    assert len(errors.splitlines()) == len(bad)
    for name, message in zip(bad, errors.splitlines(), strict=True):
        assert message.startswith(f"{trained / name}: ")


def test_transcribe_as_json(call: Output, trained: Path) -> None:
    files = [trained / name for name in ("text.wav", "clip001.flac", "10_channels.wav")]
    code, out, err = call("transcribe", trained / "run" / "model", *files, "--json", "--no-filters")
    assert code == 2
    bad, good, wide = json.loads(out)
    error = bad.pop("error")
    assert error.startswith(f"{trained / 'text.wav'}: ")
    assert err.splitlines()[-1] == f"error: {error}"
    assert bad == {
        "audio_filepath": str(trained / "text.wav"),
        "duration": None,
        "text": None,
        "ctc_text": None,
        "truncated": None,
        "segments": None,
    }
    assert good.pop("error") is None
    assert good.keys() == bad.keys()
    assert good["duration"] == pytest.approx(0.61)
    assert isinstance(good["text"], str)
    assert isinstance(good["ctc_text"], str)
    assert isinstance(good["truncated"], bool)
    assert wide["duration"] == 1.0


def test_the_text_of_a_clip_does_not_depend_on_the_other_clips(call: Output, trained: Path) -> None:
    clips = [trained / f"clip00{number}.{'wav' if number % 3 == 0 else 'flac'}" for number in range(8)]
    together = json.loads(call("transcribe", trained / "run" / "model", *clips, "--json", "--no-filters")[1])
    for clip, row in zip(clips[:3], together, strict=False):
        assert json.loads(call("transcribe", trained / "run" / "model", clip, "--json", "--no-filters")[1]) == [row]


def damaged(trained: Path, folder: Path, what: str) -> Any:
    model = folder / "model"
    shutil.copytree(trained / "run" / "model", model)
    match what:
        case "missing":
            return folder / "nothing"
        case "another kind":
            (model / "config.json").write_text('{"model_type": "whisper"}')
        case "no JSON":
            (model / "config.json").write_text("{")
        case "cut off":
            weights = model / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
        case "no weights":
            (model / "model.safetensors").unlink()
    return model


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "no such folder"),
        ("another kind", "model_type 'whisper'"),
        ("no JSON", "not valid JSON"),
        ("cut off", "the weights cannot be read"),
        ("no weights", "the weights cannot be read"),
    ],
)
def test_unusable_model_folders_are_rejected(
    call: Output, trained: Path, tmp_path: Path, what: str, message: str
) -> None:
    folder = damaged(trained, tmp_path, what)
    code, out, err = call("transcribe", folder, trained / "clip000.wav")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_transcribe_in_a_new_process(trained: Path) -> None:
    arguments = ["transcribe", trained / "run" / "model", trained / "clip000.wav", trained / "text.wav"]
    code, out, err = finish(begin(*arguments))
    assert code == 2
    assert out.startswith(f"{trained / 'clip000.wav'}\t")
    error = without_empty(err)
    assert error.startswith(f"error: {trained / 'text.wav'}: not an audio file that can be decoded")
    assert error.count("\n") == 1
