"""The cache that downloads from the hub leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def use_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Read checkpoints on the hub only from the cache in ``folder``."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(folder))


def repository_in(cache: Path, name: str) -> Path:
    """A repository whose main branch is at COMMIT; its ``snapshots/COMMIT`` is still to be written."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository
