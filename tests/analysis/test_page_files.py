"""The files of HTML pages: which files a page may replace, and which file names it can show."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tiny_audio.cli import main

ROW = {"audio_filepath": "a.wav", "duration": 1.0, "text": "turn the light on", "pred_text": "turn the lights on"}


def test_a_page_replaces_only_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, one, two = (tmp_path / name for name in ("page.html", "one.jsonl", "two.jsonl"))
    for path in (one, two):
        path.write_text(json.dumps(ROW))
    for content in ("", "<!doctype html>", "<html></html>"):
        page.write_text(content)
        assert main(["rescore", str(one), "--html", str(page)]) == 0
    capsys.readouterr()
    # The name of the page is missing, so ``--html`` takes the first input as the page.
    assert main(["rescore", "--html", str(one), str(two)]) == 2
    assert f"--html {one}: this path exists and is not an HTML page; " in capsys.readouterr().err
    assert json.loads(one.read_text()) == ROW
    assert main(["compare", "--html", str(tmp_path), str(tmp_path)]) == 2
    assert f"--html {tmp_path}: this path exists and is a folder; " in capsys.readouterr().err


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="on this system, file names are always valid Unicode")
def test_a_file_whose_name_is_not_utf8_gets_a_page(tmp_path: Path) -> None:
    path, page = tmp_path / os.fsdecode(b"b\xffd.jsonl"), tmp_path / "page.html"
    path.write_text(json.dumps(ROW))
    assert main(["rescore", str(path), "--html", str(page)]) == 0
    assert "<h1>b?d</h1>" in page.read_text(encoding="utf-8")
