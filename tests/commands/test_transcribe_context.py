"""``tiny-audio transcribe`` with hotwords, previous text and a language."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.transcribing import call
from tests.support.models import assemble
from tiny_audio.audio.load import load_audio
from tiny_audio.config import UserError
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.inference.hotwords_file import read_hotwords
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.context import ContextSettings
from tiny_audio.model.prompt import Context

pytestmark = pytest.mark.usefixtures("one_thread")

KNOWN = ContextSettings(max_tokens=40, hotwords=True, languages=("en",))


@pytest.fixture(scope="module")
def aware(place: Path) -> Path:
    """Return the folder of a model whose settings allow hotwords and a language, but no previous text."""
    export_model(*assemble(context=KNOWN), place / "aware")
    return place / "aware"


def test_texts_equal_those_of_the_transcriber(
    place: Path, aware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, names = place / "audio" / "a.wav", tmp_path / "names.txt"
    names.write_text("zero\nsix, two\n", encoding="utf-16")
    code, out, err = call(capsys, aware, clip, "--hotwords", names, "--language", "en")
    assert (code, err) == (0, "")
    context = Context(("zero", "six", "two"), language="en")
    found = Transcriber(*assemble(context=KNOWN), filter_hallucinations=False)
    (wanted,) = found.transcribe([load_audio(clip, max_duration_s=60.0)], contexts=context)
    assert out == f"{clip}\t{wanted.text}\n"
    assert call(capsys, aware, clip)[1] != out


def test_unused_contexts_are_reported(
    place: Path, aware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"two {word} {word}\n" for word in ("zero", "one", "four", "five", "six")))
    clip = place / "audio" / "a.wav"
    code, _, err = call(capsys, aware, clip, "--hotwords", names, "--previous-text", "one")
    assert code == 0
    untrained, left_out, previous = err.splitlines()
    assert untrained.startswith("previous text: this model was not trained")
    assert "'two six six'" in left_out
    assert "at most 40 tokens" in left_out
    assert "previous text" in previous


def test_transcripts_are_not_continued_with_other_hotwords(
    place: Path, aware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, output, names = place / "audio" / "a.wav", ("--output-dir", tmp_path / "out"), tmp_path / "names.txt"
    names.write_text("zero")
    assert call(capsys, aware, clip, *output, "--hotwords", names)[0] == 0
    code, out, _ = call(capsys, aware, clip, *output, "--hotwords", names)
    assert (code, "1 already there" in out) == (0, True)
    names.write_text("six")
    code, _, err = call(capsys, aware, clip, *output, "--hotwords", names)
    assert code == 2
    assert "with other options" in err


def test_unusable_contexts_are_rejected(
    place: Path, aware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = place / "audio" / "a.wav"
    code, out, err = call(capsys, aware, clip, "--language", "fr")
    assert (code, out) == (2, "")
    assert "accepts en" in err
    code, _, err = call(capsys, place / "model", clip, "--hotwords", tmp_path / "nowhere.txt")
    assert code == 2
    assert str(tmp_path / "nowhere.txt") in err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b" \n,\n", "no hotword"),
        (b"\xff\xff\xff\xff", "not text"),
        (("ä" * 5_000_001).encode(), "bytes"),  # only 1,000,001 bytes are read, which end within a character
    ],
    ids=["empty", "binary", "large"],
)
def test_unusable_hotword_files_are_rejected(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read_hotwords(path)
