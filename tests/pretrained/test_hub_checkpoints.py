"""Checkpoints on a hub: the revision decides what is read, and one message tells what cannot be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from tests.support.model_hub import Hub
from tests.support.part_checkpoints import hubert


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """Address of a hub with one repository: tag ``v1`` has zeros in its final norm's bias, ``main`` has ones."""
    hubert(tmp_path / "checkpoint")
    config = (tmp_path / "checkpoint" / "config.json").read_bytes()
    tensors = load_file(tmp_path / "checkpoint" / "model.safetensors")
    for value, (name, commit) in enumerate((("v1", "a" * 40), ("main", "b" * 40))):
        tensors["hubert.encoder.layer_norm.bias"] = torch.full((32,), float(value))
        Hub.revisions[name] = commit
        Hub.commits[commit] = {"config.json": config, "model.safetensors": save(tensors, {"format": "pt"})}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


READER = """
import sys
from tiny_audio.config import UserError
from tiny_audio.encoders import ENCODERS, EncoderContext
for wanted in sys.argv[1:]:
    repository, _, revision = wanted.partition("@")
    fields = {"name": "hubert", "pretrained": repository, "revision": revision or None}
    try:
        part = ENCODERS.build(ENCODERS.parse(fields), EncoderContext())
    except UserError as error:
        print(f"refused: {error}")
    else:
        print(float(part.model.encoder.layer_norm.bias.mean()))
"""


def read(tmp_path: Path, *wanted: str, **environment: str) -> list[str]:
    """A line for each ``repository@revision``: its bias, or the refusal."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READER, *wanted],
        capture_output=True,
        text=True,
        env=clean | settings | environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def test_the_revision_decides_what_is_read(hub: str, tmp_path: Path) -> None:
    names = ("tiny/hubert", "tiny/hubert@v1", f"tiny/hubert@{'a' * 40}", "tiny/hubert@main")
    *values, no_revision, no_repository = read(tmp_path, *names, "tiny/hubert@v9", "tiny/nothing", HF_ENDPOINT=hub)
    assert values == ["1.0", "0.0", "0.0", "1.0"]
    assert no_revision.startswith("refused: hubert: cannot read 'tiny/hubert' at revision v9: v9 is not a valid git")
    assert no_repository.startswith(
        "refused: hubert: cannot read 'tiny/nothing': tiny/nothing is not a local folder and is not a valid model"
    )
    for line in (no_revision, no_repository):
        assert line.endswith("and check the network and `hf auth login` for gated models.")
    # What was read once is there without a network, by the same revision; what was not is refused.
    *offline, not_read = read(
        tmp_path, "tiny/hubert@v1", "tiny/hubert@main", "tiny/other", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1"
    )
    assert offline == ["0.0", "1.0"]
    assert_refused(not_read, "tiny/other")


def assert_refused(line: str, repository: str) -> None:
    assert re.fullmatch(
        rf"refused: hubert: cannot read '{repository}': \S.*\. Give a hub id or the folder of a checkpoint, and check "
        r"the network and `hf auth login` for gated models\.",
        line,
    )


@pytest.mark.slow  # the hub's client tries again
def test_no_network(tmp_path: Path) -> None:
    (line,) = read(tmp_path, "tiny/hubert", HF_ENDPOINT="http://127.0.0.1:9")
    assert_refused(line, "tiny/hubert")
