"""The output and files of `evaluate`, and a provider target that sends its requests to the tests' local server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.provider_server import Vendors

Output = Callable[..., tuple[int, str, str]]
"""The type of a function that runs `evaluate`. It returns the exit code, standard output and standard error."""
FIELDS = [
    *("id", "audio_filepath", "duration", "time", "text", "pred_text", "ctc_text", "truncated", "error", "metadata"),
]


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "hypotheses.jsonl").read_text().splitlines()]


def deepgram(server: Vendors, **fields: object) -> str:
    settings = {"base_url": server.url, "retry_wait_s": 0.01, "max_retries": 0, **fields}
    return "provider:deepgram:" + ",".join(f"{key}={value}" for key, value in settings.items())
