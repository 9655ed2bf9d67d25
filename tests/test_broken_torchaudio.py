"""Incompatible versions of torch and torchaudio give one message that says what to install."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.models import assemble
from tests.support.tutorial import EACH_COMMAND, python
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.runtime.requirements import AUDIO_PAIR, audio_pair_problem

CAUSES = {
    "symbol": 'raise OSError("/lib/_torchaudio.so: undefined symbol: torch_exception_get_what")',
    "versions": 'raise RuntimeError("PyTorch and TorchAudio were compiled with different CUDA versions.\\nMore.")',
    "library": 'raise ImportError("libcudart.so.13: cannot open shared object file")',
    "renamed": "import torch; torch.no_such_function",
    "silent": "raise ImportError",
}
LOAD = """
import json, sys
from transformers import AutoModelForSpeechSeq2Seq
try:
    AutoModelForSpeechSeq2Seq.from_pretrained(sys.argv[1], trust_remote_code=True)
except ValueError as error:
    print(json.dumps(str(error)))
"""


def fake(folder: Path, cause: str) -> Path:
    """Write a package ``torchaudio`` that cannot be imported, and return its folder."""
    (folder / "torchaudio").mkdir(parents=True)
    (folder / "torchaudio" / "__init__.py").write_text(f"{CAUSES[cause]}\n")
    return folder


IMPORT_AGAIN = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
    del sys.modules[name]
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
CONFIG_MAPPING._extra_content.clear()
"""
"""Code that removes torchaudio and the registered classes of this package, so that both are loaded again."""


def run(code: str, argument: str, site: Path) -> str:
    """Run code with the folder ``site`` first on the path, and return the last line of its output."""
    done = python(site, IMPORT_AGAIN + code, argument)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("cause", CAUSES)
def test_the_message_names_versions_cause_and_remedy(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(fake(tmp_path, cause)))
    problem = audio_pair_problem.__wrapped__()
    assert problem is not None
    first, second = problem.splitlines()
    assert "torch 2." in first
    assert "torchaudio 2." in first
    assert cause in {"renamed", "silent"} or CAUSES[cause].split('"')[1].split("\\n")[0] in first
    assert all(f'"{requirement}"' in second for requirement in AUDIO_PAIR)


def test_compatible_versions_give_no_message() -> None:
    assert audio_pair_problem() is None


def test_commands_print_one_message_and_no_traceback(tmp_path: Path) -> None:
    commands = [["--help"], ["validate", "quickstart"], ["transcribe", "model", "clip.wav"], ["run", "quickstart"]]
    commands += [["show", "quickstart"], ["export", "model", "to"], ["doctor", "quickstart"]]
    *fast, doctor = json.loads(run(EACH_COMMAND, json.dumps(commands), fake(tmp_path, "symbol")))
    for arguments, (code, out, err) in zip(commands, fast, strict=False):
        if arguments[0] in {"--help", "validate"}:
            assert (code, err) == (0, "")
        else:
            assert (code, out) == (2, ""), arguments
            assert err.startswith("error: the installed torch and torchaudio do not work together")
            assert err.count("\n") == 2
    code, out, err = doctor
    assert code == 2
    assert [line for line in out.splitlines() if line.startswith("✗ torchaudio: ")]
    assert out.splitlines()[-1].startswith("✓ environment")
    assert err.count("\n") == 1


def test_the_code_of_an_export_says_what_to_install(tmp_path: Path) -> None:
    export_model(*assemble(), tmp_path / "model")
    message = json.loads(run(LOAD, str(tmp_path / "model"), fake(tmp_path / "site", "symbol")))
    assert message.startswith("the installed torch and torchaudio do not work together")
    requirements = (tmp_path / "model" / "requirements.txt").read_text().splitlines()
    assert set(AUDIO_PAIR) < set(requirements)
