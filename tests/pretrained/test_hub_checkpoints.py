"""Checkpoints on the hub: the selected revision is read, and each error gives one message."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save

from tests.support.hub_server import point_to_hub
from tests.support.model_hub import Hub
from tests.support.part_checkpoints import hubert
from tiny_audio.config import UserError
from tiny_audio.encoders import ENCODERS, EncoderContext


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """Yield the address of a local hub with one repository. The bias of the final norm is 0 in the tag ``v1``, and 1 in
    ``main``."""
    hubert(tmp_path / "checkpoint")
    config = (tmp_path / "checkpoint" / "config.json").read_bytes()
    tensors = load_file(tmp_path / "checkpoint" / "model.safetensors")
    for value, (name, commit) in enumerate((("v1", "a" * 40), ("main", "b" * 40))):
        tensors["hubert.encoder.layer_norm.bias"] = torch.full((32,), float(value))
        Hub.revisions[name] = commit
        Hub.commits[commit] = {"config.json": config, "model.safetensors": save(tensors, {"format": "pt"})}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def read(*wanted: str) -> list[str]:
    """Load each ``repository@revision``. Return the bias of its final norm, or the error message."""
    found = []
    for one in wanted:
        repository, _, revision = one.partition("@")
        fields = {"name": "hubert", "pretrained": repository, "revision": revision or None}
        try:
            part: Any = ENCODERS.build(ENCODERS.parse(fields), EncoderContext())
        except UserError as error:
            found.append(str(error))
        else:
            found.append(str(float(part.model.encoder.layer_norm.bias.mean())))
    return found


def test_the_selected_revision_is_read(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to_hub(monkeypatch, hub)
    names = ("tiny/hubert", "tiny/hubert@v1", f"tiny/hubert@{'a' * 40}", "tiny/hubert@main")
    *values, no_revision, no_repository = read(*names, "tiny/hubert@v9", "tiny/nothing")
    assert values == ["1.0", "0.0", "0.0", "1.0"]
    assert no_revision.startswith("hubert: cannot read 'tiny/hubert' at revision v9: v9 is not a valid git")
    assert no_repository.startswith(
        "hubert: cannot read 'tiny/nothing': tiny/nothing is not a local folder and is not a valid model"
    )
    for line in (no_revision, no_repository):
        assert line.endswith("and check the network. For a gated model, log in with `hf auth login`.")
    # Without a network, only revisions in the cache can be read.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    *offline, not_read = read("tiny/hubert@v1", "tiny/hubert@main", "tiny/other")
    assert offline == ["0.0", "1.0"]
    assert not_read.startswith("hubert: cannot read 'tiny/other': ")
    assert "HF_HUB_OFFLINE prevents downloads" in not_read
    assert "check the network" not in not_read


def assert_rejected(line: str, repository: str) -> None:
    assert re.fullmatch(
        rf"hubert: cannot read '{repository}': \S.*\. Give a hub id or the folder of a checkpoint, and check "
        r"the network\. For a gated model, log in with `hf auth login`\.",
        line,
    )


@pytest.mark.slow  # because the hub's client retries
def test_a_missing_network_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    point_to_hub(monkeypatch, "http://127.0.0.1:9")
    (line,) = read("tiny/hubert")
    assert_rejected(line, "tiny/hubert")
