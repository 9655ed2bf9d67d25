"""Find the commit of this code."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache  # as long as the process lives, its code stays the same
def git_commit() -> str | None:
    """Return the commit of this code if it runs from its own checkout, otherwise None.

    A virtual environment inside the checkout of another project does not count.
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
