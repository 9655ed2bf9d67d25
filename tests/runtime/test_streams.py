"""Output streams with a limited encoding, closed streams, readers that stop reading, and full disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fast import fast_ones
from tiny_audio.runtime.columns import on_one_line

PROGRAM = [sys.executable, "-m", "tiny_audio.cli"]
ROW = {"audio_filepath": "a 🎤 é.wav", "duration": 1, "text": "oui", "pred_text": "non ✓"}


@pytest.fixture
def hypotheses(tmp_path: Path) -> Path:
    path = tmp_path / "réponses 🎤.jsonl"
    path.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    return path


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("variables", "option"),
    [
        pytest.param({"PYTHONIOENCODING": "cp1252"}, None, marks=pytest.mark.slow),
        ({"PYTHONIOENCODING": "latin-1"}, "--json"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, None),
    ],
)
def test_output_in_an_encoding_that_lacks_characters(
    hypotheses: Path, variables: dict[str, str], option: str | None
) -> None:
    done = run("rescore", hypotheses, "--normalizer", "lower", *([option] if option else []), **variables)
    assert done.returncode == 0, done.stderr
    if option:
        assert json.loads(done.stdout)["targets"][0]["name"] == hypotheses.stem, "JSON loses nothing"
    else:
        assert b"?" in done.stdout


def test_a_message_in_an_encoding_that_lacks_characters(hypotheses: Path) -> None:
    done = run("rescore", hypotheses.with_name("aucune 🎤.jsonl"), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"aucune ?.jsonl" in done.stderr


@pytest.mark.parametrize("closed", fast_ones(["<&-", ">&- 2>&-", "<&- >&- 2>&-"], "<&- >&- 2>&-"))
def test_commands_work_with_closed_streams(hypotheses: Path, tmp_path: Path, closed: str) -> None:
    command = [*PROGRAM, "rescore", str(hypotheses), "--html", str(tmp_path / "p.html")]
    done = subprocess.run(["bash", "-c", f'"$@" {closed}', "bash", *command], capture_output=True, check=False)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr + done.stdout
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>"), "output for a closed stream must not end up in the page"


@pytest.mark.parametrize(("script", "code"), [('"$@" | true; exit ${PIPESTATUS[0]}', 3), ('"$@" > /dev/full', 2)])
def test_output_that_cannot_be_written_gives_one_message(hypotheses: Path, script: str, code: int) -> None:
    if "/dev/full" in script and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = subprocess.run(
        ["bash", "-c", script, "bash", *PROGRAM, "rescore", hypotheses], capture_output=True, check=False
    )
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("name", "line"), [("a b.wav", "a b.wav"), ("a\nb\tc\r", r"a\nb\tc\r"), ("\x1b[2J\u2028é", r"\u001b[2J\u2028é")]
)
def test_names_are_shown_on_one_line(name: str, line: str) -> None:
    assert on_one_line(name) == line
