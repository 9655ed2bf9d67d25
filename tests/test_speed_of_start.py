"""Commands import few modules, so that they start fast. ``benchmarks/startup.py`` measures the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

CHILD = """
import json, sys
attempts = []
sys.addaudithook(lambda event, args: attempts.append(event) if event in {"socket.connect", "socket.getaddrinfo"} else 0)
from tiny_audio.cli import main
exec(sys.argv[2])
codes = [main(arguments) for arguments in json.loads(sys.argv[1])]
modules = sorted({name.split(".")[0] for name in sys.modules} | {name for name in sys.modules if "tiny_audio" in name})
print(json.dumps([codes, modules, attempts]), file=sys.stderr)
"""


def imported_by(*commands: list[str], code: str = "") -> set[str]:
    """Run code and then commands in a new process. Return the names of all modules that the process has imported.

    Of other packages, only the top-level names are included. The commands must succeed without using a network.
    """
    process = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(commands), code],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("HF_")} | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    codes, modules, attempts = json.loads(process.stderr.splitlines()[-1])
    assert codes == [0] * len(commands)
    assert attempts == []
    assert "tiny_audio.cli" in modules
    return set(modules)


def test_help_imports_nothing_heavy() -> None:
    modules = imported_by(["--help"], ["run", "--help"], ["transcribe", "--help"], ["recipes"])
    assert not modules & {"torch", "transformers", "numpy", "soundfile", "peft", "accelerate", "datasets"}
    parts = ("tiny_audio.encoders", "tiny_audio.projectors", "tiny_audio.decoders", "tiny_audio.sources")
    assert not [name for name in modules if name.startswith(parts)]


BUILD = """
from importlib.util import find_spec
from pathlib import Path
import torch
from tiny_audio.projectors import PROJECTORS, ProjectorContext
from tiny_audio.sources import SOURCES, SourceContext
context = SourceContext(Path(CACHE))
sources = [SOURCES.build(entry.config.tiny(), context) for entry in SOURCES.entries() if entry.name != "synthetic"]
assert not {"pyarrow", "huggingface_hub", "httpx2", "fsspec"} & set(sys.modules)
with torch.device("meta"):
    for entry in PROJECTORS.entries():
        PROJECTORS.build(entry.config(), ProjectorContext(64, 64, 50.0, 1.0))
if find_spec("espeakng_loader"):
    SOURCES.build(SOURCES.entry("synthetic").config.tiny(), context).index()
    assert list(Path(CACHE).rglob("*.flac"))
maps = Path("/proc/self/maps")
assert not maps.exists() or "espeak" not in maps.read_text()
"""
"""Code that builds all sources and projectors, and synthesizes speech. Like many scripts of users, it has no
``if __name__ == "__main__"``, so the processes that synthesize speech must not run it again.

Projectors are built on the meta device, as in `validate`. They must not draw normal random numbers there, because this
would load PyTorch's compiler, which takes two seconds. espeak-ng must be loaded only in the worker processes.
"""


def test_commands_that_only_check_import_torch_at_most(tmp_path: Path) -> None:
    recipe = "recipes/quickstart.yaml"
    dry_run = ["sweep", recipe, "training.seed=0,1", "--dry-run"]
    modules = imported_by(
        ["validate", recipe], ["list"], ["schema"], dry_run, code=BUILD.replace("CACHE", repr(str(tmp_path)))
    )
    assert {"tiny_audio.encoders.whisper", "tiny_audio.recipe", "pydantic"} <= modules
    heavy = {"transformers", "tokenizers", "peft", "accelerate", "datasets", "torchaudio", "soundfile", "tensorboard"}
    heavy |= {"espeakng_loader", "sympy"}  # PyTorch's compiler imports sympy
    assert not modules & (heavy | {"jiwer"})
