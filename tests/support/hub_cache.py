"""Local caches that look like the cache of downloads from the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def use_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the libraries read hub checkpoints only from the cache in ``folder``."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(folder))


def repository_in(cache: Path, name: str) -> Path:
    """Create a cached repository with its main branch at COMMIT. The caller writes files to ``snapshots/COMMIT``."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository
