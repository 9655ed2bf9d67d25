"""Run exported models in processes without this package."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from typing import Any

import pytest
import transformers.dynamic_module_utils
from filelock import FileLock
from huggingface_hub import constants
from packaging.requirements import Requirement
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.support.processes import finish, fork

INSTALLED = ["torch", "torchaudio", "transformers", "peft", "pydantic", "soundfile"]
"""All packages that an exported model may import."""
_STANDARD = {Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("stdlib")) / "lib-dynload"}


def run(
    python: Path | str, flags: Sequence[str], code: str, *arguments: str | Path, cwd: Path, **environment: str
) -> Any:
    """Run code in a new process, and return the last line of its output, parsed as JSON."""
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [str(python), *flags, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=env | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_here(
    code: str, *arguments: str | Path, cwd: Path, installed: Sequence[str] = INSTALLED, **environment: str
) -> Any:
    """Run code as :func:`run` does, but in a fork of the test. Only ``installed`` packages can be imported.

    A fork saves the seconds that a new interpreter would need for imports.
    """
    site = only(installed, cwd / "site")

    def work() -> None:
        os.environ.update(environment)
        kept = {path.stem for path in site.iterdir()} | sys.stdlib_module_names | {"__main__"}
        for name in [name for name in sys.modules if name.partition(".")[0] not in kept]:
            del sys.modules[name]
        sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
        sys.path[:] = [path for path in sys.path if Path(path) in _STANDARD] + [str(site)]
        importlib.invalidate_caches()
        CONFIG_MAPPING._extra_content.clear()  # remove our classes
        transformers.dynamic_module_utils.HF_MODULES_CACHE = environment["HF_MODULES_CACHE"]
        constants.HF_HUB_OFFLINE = True
        constants.HF_HUB_CACHE = environment.get("HF_HUB_CACHE", os.path.join(environment["HF_HOME"], "hub"))
        sys.argv = ["-c", *map(str, arguments)]
        exec(code, {"__name__": "__main__"})

    returncode, out, err = finish(fork(work, cwd=cwd))
    assert returncode == 0, err[-6000:]
    return json.loads(out.strip().splitlines()[-1])


def run_alone(
    code: str, *arguments: str | Path, cwd: Path, installed: Sequence[str] = INSTALLED, **environment: str
) -> Any:
    """Run code as :func:`run_here` does, but in a new interpreter."""
    site = only(installed, cwd / "site")
    code = f"import sys; sys.path.append({str(site)!r})\n{code}"
    return run(sys.executable, ["-I", "-S"], code, *arguments, cwd=cwd, **environment)


def only(requirements: Sequence[str], site: Path) -> Path:
    """Create a folder like site-packages with only these packages and their requirements."""
    site.mkdir()
    for name, path in _files(tuple(requirements)).items():
        (site / name).symlink_to(path)
    return site


@cache
def _files(requirements: tuple[str, ...]) -> dict[str, Path]:
    """Return the entries of site-packages, as path by name, of these packages and their requirements."""
    found: dict[str, Path] = {}
    waiting, seen = list(requirements), set()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        # RECORD is read instead of `distribution.files`, which checks every file. PyTorch has thousands of files.
        lines = (distribution.read_text("RECORD") or "").splitlines()
        for top in {line.partition(",")[0].partition("/")[0] for line in lines} - {"..", "__pycache__", ""}:
            found.setdefault(top, Path(str(distribution.locate_file(top))).resolve())
        needs = [Requirement(text) for text in distribution.requires or []]
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a new virtual environment with :data:`INSTALLED`, shared by all tests and workers of a
    pytest session."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    python, done = folder / "venv" / "bin" / "python", folder / "venv" / "installed"
    with FileLock(folder / "venv.lock"):
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
            pins = folder / "constraints.txt"
            pins.write_text("".join(f"{name}=={importlib.metadata.version(name)}\n" for name in INSTALLED))
            subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", pins, *INSTALLED], check=True)
            done.touch()
    return python


def offline(folder: Path) -> dict[str, str]:
    """Return the environment variables of a process without a network, with its own caches."""
    return {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "modules")}
