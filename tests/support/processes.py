"""Commands in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``tiny-audio`` with these arguments."""
    command = [str(Path(sys.executable).with_name("tiny-audio")), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
