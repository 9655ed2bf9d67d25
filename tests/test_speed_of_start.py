"""What a command does not import, it need not wait for; how long it takes is measured in ``benchmarks/startup.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CHILD = """
import json, sys
attempts = []
sys.addaudithook(lambda event, args: attempts.append(event) if event in {"socket.connect", "socket.getaddrinfo"} else 0)
from tiny_audio.cli import main
code = main(sys.argv[1:])
modules = sorted({name.split(".")[0] for name in sys.modules} | {name for name in sys.modules if "tiny_audio" in name})
print(json.dumps([code, modules, attempts]), file=sys.stderr)
"""


def imported_by(*arguments: str) -> set[str]:
    """Top-level modules, and all of ours, after a command that must succeed and ask no network."""
    process = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("HF_")} | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    code, modules, attempts = json.loads(process.stderr.splitlines()[-1])
    assert code == 0
    assert attempts == []
    assert "tiny_audio.cli" in modules
    return set(modules)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["transcribe", "--help"], ["recipes"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    modules = imported_by(*arguments)
    assert not modules & {"torch", "transformers", "numpy", "soundfile", "peft", "accelerate", "datasets"}
    parts = ("tiny_audio.encoders", "tiny_audio.projectors", "tiny_audio.decoders", "tiny_audio.sources")
    assert not [name for name in modules if name.startswith(parts)]


@pytest.mark.parametrize("arguments", [["validate", "recipes/quickstart.yaml"], ["list"], ["schema"]])
def test_what_only_checks_imports_torch_at_most(arguments: list[str]) -> None:
    modules = imported_by(*arguments)
    assert "tiny_audio.encoders.whisper" in modules
    heavy = {"transformers", "tokenizers", "peft", "accelerate", "datasets", "torchaudio", "soundfile", "tensorboard"}
    assert not modules & heavy
