"""Find the git commit of this package's code."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache  # a running process does not load changed code
def git_commit() -> str | None:
    """Return the commit of this package's checkout, or None if there is no checkout or git fails.

    The suffix ``-dirty`` means that tracked files have changed since the commit.
    """
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # otherwise, git would use the repository of an enclosing folder
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],  # no tags
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
