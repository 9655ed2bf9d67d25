"""Tutorial pages about writing a part: install their files and run their commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.processes import fork

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the language and text of each code block of a page in docs/."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


def install(code: list[tuple[str, str]], folder: Path, package: str) -> Path:
    """Write the page's Python files to a folder, with metadata that declares its entry point. Return the folder."""
    for kind, text in code:
        if kind == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name, "each Python block starts with the name of its file"
            (folder / name.group(1)).write_text(text)
    (toml,) = (text for kind, text in code if kind == "toml")
    group = re.search(r'entry-points\."([\w.]+)"', toml)
    assert group
    metadata = folder / f"{package}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{group.group(1)}]\n{package} = {package}\n")
    return folder


def call(site: Path | None, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process that can import the packages in the folder ``site``."""
    paths = os.pathsep.join([str(site), str(ROOT)] if site else [str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


EACH_COMMAND = """
import contextlib, io, json, sys
from tiny_audio.cli import main
results = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def called(
    site: Path | None, work: Callable[[], int | None], anew: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Do work in a fork in which the folder's packages are installed. The fork imports ``tiny_audio`` again, but not
    torch.

    Args:
        site: the folder of packages. None if there is none.
        work: the work of the fork.
        anew: other packages that the fork imports again.
        environment: variables of the fork, added to those of the test.
    """
    imported_anew = {"tiny_audio", "tests", *anew}

    def with_site() -> int | None:
        os.environ.update(environment)
        for name in [name for name in sys.modules if name.partition(".")[0] in imported_anew]:
            del sys.modules[name]
        if site:
            sys.path.insert(0, str(site))
        return work()

    process = fork(with_site, cwd=ROOT)
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def python(
    site: Path | None, code: str, *arguments: str, anew: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a fork, see :func:`called`."""

    def work() -> None:
        sys.argv = ["-c", *arguments]
        exec(code, {"__name__": "__main__"})

    return called(site, work, anew, **environment)


def tiny_audio(
    site: Path | None, commands: list[list[str]], anew: Sequence[str] = (), **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run command lines of ``tiny-audio`` one after another in a single fork, see :func:`called`."""
    done = python(site, EACH_COMMAND, json.dumps(commands), anew=anew, **environment)
    assert done.returncode == 0, done.stderr
    results = zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True)
    return [subprocess.CompletedProcess(command, *result) for command, result in results]


def contract(site: Path, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the page's own tests."""
    arguments = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, *options, str(site / tests)]
    return called(site, lambda: pytest.main(arguments))


def broken(site: Path, folder: Path, module: str, right: str, wrong: str) -> Path:
    """Copy the page's files to ``folder``, with ``right`` replaced by ``wrong`` in the file ``module``."""
    for path in site.glob("*.py"):
        (folder / path.name).write_text(path.read_text())
    code = (site / module).read_text()
    assert right in code
    (folder / module).write_text(code.replace(right, wrong))
    return folder
