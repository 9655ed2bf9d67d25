"""A server with a tiny random model on a free local port, in a thread."""

from __future__ import annotations

import io
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from fastapi import FastAPI
from openai import DefaultHttpxClient, OpenAI
from torch import Tensor

from tests.support.models import assemble
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.serving.app import create_app
from tiny_audio.serving.engine import Engine, Job
from tiny_audio.serving.options import Limits, Options
from tiny_audio.serving.page.card import read_card
from tiny_audio.serving.server import Server, listen

PATIENCE_S = 30.0
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""An SSL context for clients, without certificates. The server does not use TLS. By default, each client would load all
certificates, which takes 50 ms."""
LONG = 9
"""Number of :func:`bursts` in a recording of 18 s. It is split, because the tiny model's chunks have at most 15 s."""


@dataclass
class Served:
    """A running server."""

    port: int
    engine: Engine
    app: FastAPI
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        """Return OpenAI's client for this server. By default, it does not repeat failed requests."""
        connections = DefaultHttpxClient(verify=NO_CERTIFICATES)
        given = {"max_retries": 0, "timeout": PATIENCE_S, "http_client": connections} | options
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, **given)


@cache
def model(*, ctc: bool = True) -> tuple[TinyAudioModel, Any]:
    """Return a tiny model and its tokenizer."""
    return assemble(ctc=ctc)


@cache
def transcriber(*, ctc: bool = True) -> Transcriber:
    """Return a tiny recognizer without filters, because they would suppress the text of a random model."""
    return Transcriber(*model(ctc=ctc), filter_hallucinations=False)


@contextmanager
def serving(
    *, ctc: bool = True, limits: Limits | None = None, engine: Engine | None = None, **options: Any
) -> Iterator[Served]:
    """Start a server with a tiny model. It runs until the end of the ``with`` block."""
    engine = engine or Engine(transcriber(ctc=ctc))
    listening = listen("127.0.0.1", 0)
    card = read_card("tiny", Path("no model card"), engine._transcriber._model)
    app = create_app(engine, Options(**{"model_name": "tiny", "limits": limits or Limits()} | options), card)
    server = Server(app)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Served(listening.getsockname()[1], engine, app, server)
    finally:
        server.should_exit = True
        thread.join()
        engine.close()


def submit(engine: Engine, waveform: Tensor, **options: Any) -> Job:
    return engine.enqueue(engine.chunks([waveform]), len(waveform) / SAMPLE_RATE, **options)


def wait_until(happened: Any, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def noise(duration_s: float, seed: int = 0) -> np.ndarray[Any, Any]:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * SAMPLE_RATE))).astype(np.float32)


def bursts(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return bursts of noise separated by pauses. If the recording is split, each burst becomes a chunk."""
    pause = np.zeros(SAMPLE_RATE, np.float32)
    return np.concatenate([part for index in range(count) for part in (pause, noise(1.0, seed + index))])


def encoded(waveform: np.ndarray[Any, Any], kind: str = "WAV") -> bytes:
    """Return the bytes of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLE_RATE, format=kind)
    return file.getvalue()


def text_of(data: bytes, *, ctc: bool = True) -> str:
    """Return the text that ``Transcriber.transcribe`` gives for a file."""
    waveform, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    return transcriber(ctc=ctc).transcribe([torch.from_numpy(waveform)])[0].text
