"""The identity of local checkpoints, and the cache of hashes of large files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_audio.pretrained import identity
from tiny_audio.pretrained.identity import LOCAL_FOLDER, folder_identity, is_local, without_path

CONFIG = {"model_type": "llama", "rope_theta": 10_000.0, "_name_or_path": "a/b", "transformers_version": "5.24.0"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "additional_chat_templates").mkdir(parents=True)
    texts = {
        "config.json": json.dumps(CONFIG),
        "tokenizer.json": '{"model": {"vocab": {"a": 0}}}',
        "tokenizer_config.json": '{"bos_token": "<s>"}',
        "merges.txt": "a b\n",
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/tools.jinja": "{{ tools }}",
        "preprocessor_config.json": '{"do_normalize": true}',
        "generation_config.json": '{"temperature": 0.6}',
        "README.md": "# A model",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8192)
    return folder


def replaced(name: str, before: str, after: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert before in text
        (folder / name).write_text(text.replace(before, after))

    return edit


def other_weights(folder: Path) -> None:
    """Reverse the bytes of the file with the weights. Its size and modification time do not change."""
    path = folder / "model.safetensors"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=times)


@pytest.mark.parametrize(
    "edit",
    [
        replaced("config.json", "10000.0", "100000.0"),
        replaced("tokenizer.json", '"a": 0', '"b": 0'),
        replaced("tokenizer_config.json", "<s>", "<t>"),
        replaced("merges.txt", "a b", "a c"),
        replaced("chat_template.jinja", "messages", "reversed"),
        replaced("additional_chat_templates/tools.jinja", "tools", "none"),
        replaced("preprocessor_config.json", "true", "false"),
        lambda folder: (folder / "chat_template.jinja").unlink(),
        lambda folder: (folder / "added_tokens.json").write_text('{"<x>": 1}'),
        lambda folder: (folder / "merges.txt").rename(folder / "vocab.txt"),
        other_weights,
    ],
)
def test_files_that_affect_the_model_change_the_identity(folder: Path, edit: Callable[[Path], object]) -> None:
    before = folder_identity(folder)
    edit(folder)
    assert folder_identity(folder) != before


@pytest.mark.parametrize(
    "edit",
    [
        replaced("README.md", "model", "recognizer"),
        replaced("generation_config.json", "0.6", "0.7"),
        replaced("config.json", "a/b", "c/d"),
        replaced("config.json", "5.24.0", "5.30.0"),
        lambda folder: (folder / "config.json").write_text(json.dumps(dict(reversed(CONFIG.items())), indent=4)),
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"not read, because there is a safetensors file"),
        lambda folder: (folder / "training_args.bin").write_bytes(b"x"),
        lambda folder: os.utime(folder / "model.safetensors"),
        lambda folder: (folder / "logs").mkdir(),
    ],
)
def test_other_files_do_not_change_the_identity(folder: Path, edit: Callable[[Path], object]) -> None:
    before = folder_identity(folder)
    edit(folder)
    assert folder_identity(folder) == before


def test_the_path_does_not_change_the_identity(folder: Path, tmp_path: Path) -> None:
    before = folder_identity(folder)
    assert folder_identity(folder.rename(tmp_path / "moved")) == before
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    assert folder_identity(tmp_path / "link") == before


def test_large_files_are_hashed_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = identity.hashlib.file_digest

    def counting(file: object, name: str) -> object:
        read.append(Path(file.name).name)  # type: ignore[attr-defined]
        return whole(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(identity.hashlib, "file_digest", counting)
    first = folder_identity(folder)
    assert "model.safetensors" in read
    assert not cache.exists(), "the hash of a file that may still change is not cached"
    later = time.time_ns() + 10**10
    monkeypatch.setattr(identity.time, "time_ns", lambda: later)
    assert folder_identity(folder) == first
    read.clear()
    assert folder_identity(folder) == first
    assert "model.safetensors" not in read
    (cache / "file_digests.json").write_text("damaged")
    assert folder_identity(folder) == first
    other_weights(folder)
    assert folder_identity(folder) != first


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("openai/whisper-tiny", False),
        ("gpt2", False),
        ("/data/lm", True),
        ("../lm", True),
        ("a/b/c", True),
        ("", False),
    ],
)
def test_folders_and_repositories_are_distinguished(name: str, local: bool) -> None:
    assert is_local(name) == local
    section = {"name": "llama", "pretrained": name}
    assert without_path(section) == section | ({"pretrained": LOCAL_FOLDER} if local else {})
