"""The exact messages of errors about evaluations and providers, compared with ``messages.txt``.

Other tests check only some words of these messages. To regenerate ``messages.txt``, run
``REGENERATE=1 pytest tests/evaluation/test_messages.py``. Then read the changes to the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.conftest import write_clips
from tests.support.golden import check_golden
from tests.support.provider_server import Fault, vendors
from tiny_audio.config import TinyAudioError, problems
from tiny_audio.data.evaluation_clips import check_group_by, evaluation_clips
from tiny_audio.evaluation.data import read_data
from tiny_audio.evaluation.resolve import resolve_target, resolve_targets
from tiny_audio.providers import PROVIDERS, encode
from tiny_audio.sources import SOURCES, SourceContext

AUDIO = encode(torch.zeros(1600))


def targets(folder: Path) -> Iterator[Callable[[], object]]:
    for name, content in {"no_json": "{", "no_type": "{}", "bert": '{"model_type": "bert"}'}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(content)
    for name in ("empty", "unfinished"):
        (folder / name).mkdir()
    (folder / "unfinished" / "state.json").write_text("{}")
    for text in ("provider:deepgrm", "provider:deepgram:modle=nova-3", "provider:openai_compatible", "deepgram"):
        yield lambda text=text: resolve_target(text)  # type: ignore[misc]
    for name in ("not/a/model", "manifest.jsonl", "empty", "unfinished", "no_json", "no_type", "bert:langage=en"):
        yield lambda name=name: resolve_target(str(folder / name))  # type: ignore[misc]
    yield resolve_target(str(folder / "bert")).check
    yield lambda: resolve_targets(["provider:pocketsphinx"] * 2)


def data(folder: Path) -> Iterator[Callable[[], object]]:
    sets = folder / "sets.yaml"
    sets.write_text("clean: librispeech\n")
    manifest = str(folder / "manifest.jsonl")
    texts = ["libri", "leaderboard/amy", "librispeech:splt=test.clean", "librispeech:split", "hub", str(folder)]
    for text in [*texts, str(sets), str(folder / "nothing.jsonl")]:
        yield lambda text=text: read_data([text], None)  # type: ignore[misc]
    yield lambda: read_data([manifest, manifest], None)
    source = SOURCES.build(SOURCES.parse({"name": "manifest", "path": manifest}), SourceContext(folder))
    yield lambda: check_group_by(evaluation_clips("dev", source).clips, "accent")


def configs() -> Iterator[Callable[[], object]]:
    for fields in (
        {"name": "openai", "base_url": "api.openai.com"},
        {"name": "openai", "base_url": "http://api.openai.com/v1"},
        {"name": "deepgram", "base_url": "https://me:secret@api.deepgram.com"},
        {"name": "openai_compatible", "base_url": "http://host/v1", "model": "a", "key_variable": "KEY"},
    ):
        yield lambda fields=fields: PROVIDERS.parse(fields)  # type: ignore[misc]
    yield lambda: PROVIDERS.build(PROVIDERS.parse("deepgram"))


def requests(url: str, faults: list[Fault]) -> Iterator[Callable[[], object]]:
    fields: dict[str, Any] = {"name": "openai_compatible", "base_url": f"{url}/v1", "model": "a", "retry_wait_s": 0.01}
    provider = PROVIDERS.build(PROVIDERS.parse(fields | {"max_retries": 1, "timeout_s": 0.2}))
    for some in (
        [Fault("status", 401)],
        [Fault("status", 422)],
        [Fault("status", 502)] * 2,
        [Fault("stall")] * 2,
        [Fault("status", 429, headers={"retry-after": "1000"})],
        [Fault("body", 200, body="<html>")],
        [Fault("body", 200, body="{}")],
    ):
        faults[:] = some
        yield lambda: provider.transcribe(AUDIO)
    provider.close()


def test_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPGRAM_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path, 2)
    with vendors() as server:
        lines = []
        for family, calls in {
            "targets": targets(tmp_path),
            "data": data(tmp_path),
            "configs": configs(),
            "requests": requests(server.url, server.faults),
        }.items():
            lines.append(f"# {family}")
            for call in calls:
                with pytest.raises((TinyAudioError, ValueError)) as caught:
                    call()
                error = caught.value
                text = problems(error) if isinstance(error, ValidationError) else str(error)
                text = text.replace(str(tmp_path), "/path").replace(server.url, "http://server")
                text = re.sub(r"Allowed: .*", "Allowed: NAMES", text)
                lines.append(f"{type(error).__name__}: {text}")
    check_golden(Path(__file__).with_name("messages.txt"), "\n".join(lines) + "\n")
