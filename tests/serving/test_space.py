"""The app of a Hugging Face Space. The test runs ``app.py`` as a script, as the hub does, and calls the app's API."""

from __future__ import annotations

import importlib.util
import json
import runpy
import socket
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import soundfile
import torch

from tests.support.models import assemble
from tests.support.processes import fork, kill, wait_until
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.serving.space import write_space

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed"),
]


def answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


def call(url: str, clip: Path) -> Any:
    """Upload a file and transcribe it, as gradio_client does."""
    (path,) = httpx2.post(f"{url}/gradio_api/upload", files={"files": clip.read_bytes()}).json()
    value = {"path": path, "meta": {"_type": "gradio.FileData"}}
    event = httpx2.post(f"{url}/gradio_api/call/transcribe", json={"data": [value]}).json()["event_id"]
    *_, kind, data = httpx2.get(f"{url}/gradio_api/call/transcribe/{event}", timeout=60).text.strip().splitlines()
    assert kind == "event: complete"
    return json.loads(data.removeprefix("data: "))


@pytest.mark.parametrize("ctc", [True, False])
def test_the_app_transcribes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctc: bool) -> None:
    model, tokenizer = assemble(ctc=ctc)
    export_model(model, tokenizer, tmp_path / "model")
    (tmp_path / "space").mkdir()
    write_space(tmp_path / "space", str(tmp_path / "model"), None, "")
    waveform = (0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", waveform, SAMPLE_RATE, "FLOAT")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    monkeypatch.setenv("GRADIO_SERVER_PORT", str(port))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    app = fork(lambda: runpy.run_path(str(tmp_path / "space" / "app.py"), run_name="__main__") and 0)
    try:
        url = f"http://127.0.0.1:{port}"
        assert wait_until(app, lambda: answers(url), pause_s=0.1), app.communicate()
        text, times = call(url, tmp_path / "clip.wav")
    finally:
        kill(app)
    (expected,) = Transcriber(model, tokenizer).transcribe([torch.from_numpy(waveform)])
    assert text == expected.text
    assert " ".join(row[2] for row in times["data"]) == text
