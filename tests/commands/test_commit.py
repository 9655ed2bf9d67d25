"""The git commit in reports and in the output of ``doctor``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tiny_audio.commands import _commit


def git(folder: Path, *arguments: str) -> str:
    """Run git, and return its output."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_tag_does_not_replace_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_commit, "__file__", str(tmp_path / "tiny_audio" / "commands" / "_commit.py"))
    find = _commit.git_commit.__wrapped__  # without the cache
    assert find() is None
    git(tmp_path, "init")
    (tmp_path / "file").write_text("before")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a release")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert find() == commit
    (tmp_path / "file").write_text("after")
    assert find() == f"{commit}-dirty"
