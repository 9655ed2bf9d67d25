"""Text files in UTF-8, UTF-16 and UTF-32, with and without a byte order mark, for every reader."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tiny_audio.analysis.rescore import read_targets, rescore
from tiny_audio.config import UserError
from tiny_audio.runtime.text_files import decoded, open_text
from tiny_audio.runtime.yaml_file import read_yaml
from tiny_audio.sources import SOURCES, SourceContext

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
TEXT = "ça va, Zoë?"


@pytest.fixture(params=ENCODINGS)
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def clip(path: Path) -> None:
    soundfile.write(path, 0.1 * np.sin(np.arange(16_000) * 0.1), 16_000)


def test_texts_are_decoded(tmp_path: Path, encoding: str) -> None:
    text = f"a{TEXT}\r\n{TEXT}\u2028\n"
    (tmp_path / "x").write_bytes(text.encode(encoding))
    assert decoded((tmp_path / "x").read_bytes()) == text
    with open_text(tmp_path / "x") as file:
        assert list(file) == [f"a{TEXT}\r\n", f"{TEXT}\u2028\n"]


@pytest.mark.parametrize("content", [b"", b"a", b"\xef\xbb\xbf"])
def test_short_texts_are_decoded(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with open_text(tmp_path / "x") as file:
        assert file.read() == decoded(content) == content.decode("utf-8-sig")


def test_manifests_are_decoded(tmp_path: Path, encoding: str) -> None:
    clip(tmp_path / "a.wav")
    rows = [{"audio_filepath": "a.wav", "text": TEXT}, {"audio_filepath": "none.wav", "text": TEXT}]
    (tmp_path / "m.jsonl").write_bytes("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(encoding))
    source = SOURCES.build(SOURCES.parse({"name": "manifest", "path": str(tmp_path / "m.jsonl")}), context(tmp_path))
    index = source.index()
    assert [one.text for one in index.utterances] == [TEXT]
    assert [(drop.id, drop.reason) for drop in index.dropped] == [("m.jsonl:2", "audio_missing")]


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_tables_are_decoded(tmp_path: Path, encoding: str, table: str) -> None:
    (tmp_path / "data").mkdir()
    clip(tmp_path / "data" / "a.wav")
    row = {"file_name": "a.wav", "text": TEXT}
    text = f'file_name,text\r\na.wav,"{TEXT}"\r\n' if table.endswith("csv") else json.dumps(row, ensure_ascii=False)
    (tmp_path / "data" / table).write_bytes(text.encode(encoding))
    source = SOURCES.build(SOURCES.parse({"name": "folder", "path": str(tmp_path / "data")}), context(tmp_path))
    assert [one.text for one in source.index().utterances] == [TEXT]


def test_hypotheses_are_decoded(tmp_path: Path, encoding: str) -> None:
    row = {"audio_filepath": "a.wav", "duration": 1, "text": TEXT, "pred_text": TEXT}
    (tmp_path / "h.jsonl").write_bytes(json.dumps(row, ensure_ascii=False).encode(encoding))
    (target,) = read_targets([tmp_path / "h.jsonl"])
    assert target.rows["a.wav"]["text"] == TEXT


def test_hypotheses_match_in_any_unicode_form(tmp_path: Path) -> None:
    row = {"audio_filepath": "réunion.wav", "duration": 1, "text": "déjà", "pred_text": "déjà"}
    for form in ("NFC", "NFD"):
        line = unicodedata.normalize(form, json.dumps(row, ensure_ascii=False))  # type: ignore[arg-type]
        (tmp_path / f"{form}.jsonl").write_text(line, encoding="utf-8")
    rescored = rescore([tmp_path / "NFC.jsonl", tmp_path / "NFD.jsonl"], normalizer_name="lower")
    assert [entry["wer"] for entry in rescored.summary["targets"]] == [0, 0]


def test_recipes_are_decoded(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "r.yaml").write_bytes(f"prompt:\n  system: '{TEXT}'\n".encode(encoding))
    assert read_yaml(tmp_path / "r.yaml") == {"prompt": {"system": TEXT}}


def test_files_that_are_not_text_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"x.jsonl"):
        read_targets([tmp_path / "x.jsonl"])
    with pytest.raises(UserError, match=r"x.jsonl"):
        SOURCES.build(SOURCES.parse({"name": "manifest", "path": str(tmp_path / "x.jsonl")}), context(tmp_path)).index()


def context(folder: Path) -> SourceContext:
    return SourceContext(folder / "cache")
