"""On Windows, Python lacks modules such as ``fcntl``. Without them, our modules can be imported and commands work."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import tiny_recipe, write_clips
from tests.support.paths import ROOT
from tests.support.tutorial import python

CHILD = """
import builtins, json, os, pkgutil, sys

UNIX = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
FUNCTIONS = ["fork", "geteuid", "getloadavg", "getuid", "killpg", "sched_getaffinity", "setsid", "sysconf"]
real_import = builtins.__import__

def import_without_unix(name, globals=None, *rest, **options):
    # Only our modules cannot import them. Other packages have fallbacks, which check the real platform.
    if name.partition(".")[0] in UNIX and str((globals or {}).get("__name__")).startswith("tiny_audio"):
        raise ModuleNotFoundError(f"No module named {name!r}")
    return real_import(name, globals, *rest, **options)

builtins.__import__ = import_without_unix
import tiny_audio
names = [module.name for module in pkgutil.walk_packages(tiny_audio.__path__, "tiny_audio.")]
for name in names:
    if not name.endswith("._cases"):  # only a benchmark can import its cases
        __import__(name)
for function in FUNCTIONS:
    if function != "sysconf":  # other packages call it on this system
        vars(os).pop(function, None)
from tiny_audio.cli import main
codes = [main(arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([len(names), codes]), file=sys.stderr)
"""


def test_commands_work_without_unix(tmp_path: Path) -> None:
    write_clips(tmp_path, 6)
    recipe, run, clip = tmp_path / "recipe.yaml", tmp_path / "run", tmp_path / "clip000.wav"
    recipe.write_text(json.dumps(tiny_recipe(tmp_path)))
    commands = [
        ["validate", recipe],
        ["run", recipe, "training.steps=3", "generation.max_new_tokens=5", "--output-dir", run],
        ["transcribe", run, clip],
        ["evaluate", run, "--data", tmp_path / "manifest.jsonl", "--output-dir", tmp_path / "evaluation"],
        ["doctor"],
    ]
    process = python(None, CHILD, json.dumps(commands, default=str))
    assert process.returncode == 0, process.stderr
    count, codes = json.loads(process.stderr.splitlines()[-1])
    assert codes == [0] * len(commands), process.stderr
    assert count == len(list((ROOT / "tiny_audio").rglob("*.py"))) - 1
