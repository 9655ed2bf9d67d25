"""Find the git commit of this package's code."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache  # the code of a running process does not change
def git_commit() -> str | None:
    """Return the commit if the package is imported from a checkout of its repository, otherwise None.

    The suffix ``-dirty`` means that tracked files have changed since the commit. The result is also None if git fails,
    or if the package is installed inside a checkout of another project.
    """
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
