"""Source ``synthetic`` with a file of sentences."""

from __future__ import annotations

import codecs
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from tiny_audio.config import UserError, identity_of
from tiny_audio.sources import Index
from tiny_audio.sources._synthetic.sentence_file import MAX_CHARACTERS, is_held_out, read_sentences, spoken
from tiny_audio.sources._synthetic.worker import SentenceFile
from tiny_audio.sources.synthetic import SyntheticConfig, SyntheticSource

TEXT = "Open the valve.\n\n  the  pump\tis on \r\nCafé at 10%\nthe pump is on\n"
SENTENCES = ["Open the valve.", "the pump is on", "Café at 10%"]


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "sentences.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def make(path: Path, cache: Path, **fields: Any) -> Index:
    config = SyntheticConfig(
        **({"sentences_file": str(path), "num_utterances": 4, "voices": ("f1",), "sentences": "all"} | fields)
    )
    return SyntheticSource(config, cache, 1).index()


# --- reading


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.rstrip("\n").encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.replace("é", "e\u0301").encode(),  # decomposed accents, as on macOS
    ],
)
def test_lines_become_sentences(tmp_path: Path, content: bytes) -> None:
    assert read_sentences(written(tmp_path, content)) == SENTENCES


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("good\n\nit costs $5\n", ["line 3", "'$'", "it costs $5"]),
        ("[[h@l'oU]] there\n", ["line 1", "'['"]),
        ("привет\n", ["line 1", "'п'"]),
        ("\u2028\x00a\n", ["line 1", "'\\x00'"]),
        ("good\n?!\n", ["line 2", "no letter or digit"]),
        (f"{'a' * (MAX_CHARACTERS + 1)}\n", ["line 1", str(MAX_CHARACTERS)]),
        (b"caf\xe9\n", ["line 1", "0xe9", "UTF-8"]),
        ("#\n" * 9, ["line 1", "line 5", "9", "4 more"]),
        ("\n \n", ["no sentence"]),
        ("", ["no sentence"]),
    ],
)
def test_sentences_that_cannot_be_spoken_are_an_error_with_line_numbers(
    tmp_path: Path, text: str | bytes, named: list[str]
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_sentences(path)
    assert str(path) in str(caught.value)
    assert [name for name in named if name not in str(caught.value)] == []
    assert "line 6" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_an_error(tmp_path: Path) -> None:
    for path, found in ((tmp_path / "none.txt", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=found):
            read_sentences(path)


def test_too_many_sentences_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny_audio.sources._synthetic.sentence_file.MAX_SENTENCES", 2)
    with pytest.raises(UserError, match="more than 2 different sentences"):
        read_sentences(written(tmp_path, TEXT))


# --- text for espeak-ng, and the split into training and held-out sentences


def test_upper_case_and_letters_are_rewritten_for_espeak() -> None:
    assert spoken("The BBC is on, US") == "The BBC is on, US"
    assert spoken("TELL US") == "tell us"  # espeak-ng would spell US as two letters
    assert spoken("a dog") == "a dog"
    assert spoken("spell c a t for a dog") == "spell c [['eI]] t for a dog"


def test_a_tenth_is_held_out_regardless_of_spelling() -> None:
    sentences = [f"sentence number {number}" for number in range(3_000)]
    assert 0.08 < sum(map(is_held_out, sentences)) / len(sentences) < 0.12
    one = next(filter(is_held_out, sentences))
    assert is_held_out(f"{one.upper()}!")
    assert is_held_out("don't stop") == is_held_out("Don’t stop.")


def test_every_sentence_is_spoken_before_one_is_repeated(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{word}\t{word}.\n" for word in "abcdefg"))
    pairs = SentenceFile(path, seed=3)
    rounds = [[pairs.pair(index)[0] for index in range(start, start + 7)] for start in (0, 7, 14)]
    assert all(sorted(one) == list("abcdefg") for one in rounds)
    assert len(set(map(tuple, rounds))) == 3
    assert SentenceFile(path, seed=3).pair(9) == pairs.pair(9) == (rounds[1][2], f"{rounds[1][2]}.")


# --- the source


def test_sentences_are_spoken(tmp_path: Path) -> None:
    index = make(written(tmp_path, TEXT), tmp_path / "cache")
    assert Counter(utterance.text for utterance in index.utterances[:3]) == Counter(SENTENCES)
    assert index.utterances[3].text in SENTENCES
    folder = index.utterances[0].audio_file().parents[1]
    assert sorted(path.name for path in folder.iterdir()) == ["0000", "manifest.jsonl"]
    for utterance in index.utterances:
        audio, _ = soundfile.read(utterance.audio_file())
        assert 0.5 < len(audio) / 16_000 < 4
        assert np.abs(audio).max() > 0.05


def test_the_cache_depends_on_the_content_but_not_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, TEXT)
    first = make(path, tmp_path / "cache")
    moved = path.rename(tmp_path / "moved.txt")
    again = SyntheticConfig(sentences_file=str(moved))
    assert identity_of(again) == identity_of(SyntheticConfig())
    with monkeypatch.context() as patched:
        patched.setattr("subprocess.Popen", None)  # fails if anything is synthesized again
        assert make(moved, tmp_path / "cache") == first
        moved.write_text(f"\n{TEXT}\n")
        assert make(moved, tmp_path / "cache") == first
    moved.write_text("other words\n")
    assert make(moved, tmp_path / "cache").fingerprint != first.fingerprint


def test_a_side_of_the_split_without_sentences_is_an_error(tmp_path: Path) -> None:
    words = [f"word {number}" for number in range(60)]
    sides = {
        side: [word for word in words if is_held_out(word) == (side == "held_out")] for side in ("held_out", "train")
    }
    held_out = make(written(tmp_path, "\n".join(words)), tmp_path / "cache", sentences="held_out")
    assert {utterance.text for utterance in held_out.utterances} <= set(sides["held_out"])
    with pytest.raises(
        UserError, match="none of its 2 sentences is on the side that `sentences: train` uses; set sentences: all"
    ):
        make(written(tmp_path, "\n".join(sides["held_out"][:2])), tmp_path / "cache", sentences="train")


def test_grammars_and_a_file_cannot_be_combined() -> None:
    with pytest.raises(ValidationError, match="sentences_file replaces the grammars"):
        SyntheticConfig(sentences_file="a.txt", grammars=("digits",))
    config = SyntheticConfig(sentences_file="a.txt")
    assert SyntheticConfig.model_validate_json(config.model_dump_json()) == config


def test_utf_16_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "Open the valve.\n".encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"sentences\.txt cannot be read: .*truncated data"):
        read_sentences(path)
