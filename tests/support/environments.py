"""New virtual environments for every Python on this machine. pip selects all versions of packages, without
constraints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

_TIMEOUT_S = 1800
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pythons() -> dict[str, str]:
    """Return the supported interpreters on this machine by minor version. The running one is first."""
    found = {f"3.{sys.version_info.minor}": sys.executable}
    for minor in range(11, 20):
        names = [shutil.which(f"python3.{minor}"), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")]
        for path in [str(name) for name in names if name]:
            # The command can be a version manager's shim for a Python that is not installed.
            if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
                found.setdefault(f"3.{minor}", path)
    return found


def lowest(requirements: list[str]) -> list[str]:
    """Replace the requirements with the lowest versions that they allow."""
    return [re.sub(r">=([^,]+).*", r"==\1", requirement) for requirement in requirements]


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and the working folder of its programs."""

    folder: Path

    @classmethod
    def create(cls, python: str, folder: Path, *requirements: str) -> Environment:
        """Create an environment and install the requirements with pip."""
        folder.mkdir()
        subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
        (folder / "work").mkdir()
        environment = cls(folder)
        environment.run("python", "-m", "pip", "install", "--quiet", "--no-compile", *requirements)
        return environment

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment and return its standard output. It must succeed."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TINY_AUDIO"))}
        own = {"PIP_CONSTRAINT": os.devnull, "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "home")}
        done = subprocess.run(
            [str(self.folder / "venv" / "bin" / program), *arguments],
            cwd=self.folder / "work",
            env=kept | own | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stdout[-3000:]}{done.stderr[-6000:]}"
        return done.stdout

    def remove(self) -> None:
        """Delete the environment, because it takes gigabytes."""
        shutil.rmtree(self.folder)


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, because a build leaves files in the folder."""
    sources = folder / "sources"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        sources.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, sources)
    for name in ("tiny_audio", "recipes"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(sources)]
    subprocess.run(build, check=True, timeout=_TIMEOUT_S)
    (wheel,) = folder.glob("*.whl")
    return wheel
