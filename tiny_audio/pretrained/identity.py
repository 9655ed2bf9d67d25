"""Compute the identity of a checkpoint: a commit on the hub, or a hash of the files in a folder that affect the model.

The path of a folder is not part of the identity, so a folder may be moved. ``generation_config.json`` is also left out,
because decoding settings come from the recipe. In JSON files smaller than 1 MiB, whitespace and the order of keys are
ignored. Fields that only record which program wrote the file, or where the model was loaded from, are ignored, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tiny_audio.config import UserError
from tiny_audio.pretrained.checkpoints import config_file
from tiny_audio.pretrained.config import TransformersPartConfig
from tiny_audio.runtime.files import cache_dir, write_atomically

LOCAL_FOLDER = "(a local folder)"
"""Replacement for the path of a folder in identities."""
_WEIGHTS = ("*.safetensors", "*.bin")
"""Kinds of weight files. transformers reads the first kind that exists."""
_OTHER_FILES = (
    "config.json",
    "*.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "preprocessor_config.json",
    "processor_config.json",
)
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")
_ABOUT_THE_WRITER = ("_name_or_path", "transformers_version", "tiny_audio_version", "name_or_path")
_DIGESTS = "file_digests.json"
_LARGE_BYTES = 1 << 20
"""Digests of files of at least this size are kept in the cache folder."""
_FRESH_NS = 2_000_000_000
"""A digest is kept only if its file last changed at least this many nanoseconds ago. A file that was changed more
recently could change again without a new time stamp."""


def is_local(pretrained: str) -> bool:
    """Whether ``pretrained`` looks like the path of a folder instead of a hub id.

    The folder does not have to exist, because the recipe may come from another machine.
    """
    return (
        pretrained.startswith(("/", ".", "~", "$"))
        or "\\" in pretrained
        or pretrained.count("/") > 1
        or (pretrained != "" and Path(pretrained).is_dir())
    )


def without_path(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the encoder's or decoder's section of a recipe's identity, with :data:`LOCAL_FOLDER` instead of a path."""
    pretrained = section.get("pretrained")
    if isinstance(pretrained, str) and is_local(pretrained):
        return {**section, "pretrained": LOCAL_FOLDER}
    return dict(section)


def checkpoint_identity(part: TransformersPartConfig) -> str | None:
    """Return the identity of a part's checkpoint; None for a part with random weights.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    if part.init == "random":
        return None
    folder = Path(part.pretrained)
    if not folder.is_dir():
        from transformers.utils.hub import extract_commit_hash

        commit: str | None = extract_commit_hash(str(config_file(part)), None)
        return commit
    try:
        return folder_identity(folder)
    except OSError as error:
        raise UserError(f"{part.name}: {part.pretrained!r} cannot be read: {error}") from error


def folder_identity(folder: Path) -> str:
    """Compute the SHA-256 of the weights, configs, tokenizer, templates and preprocessor settings in a folder.

    Raises:
        OSError: a file cannot be read.
    """
    digests = _Digests(cache_dir() / _DIGESTS)
    total = hashlib.sha256()
    for path in _files(folder):
        # Names are hashed to a fixed length, so that different lists of files never give the same bytes.
        total.update(hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest())
        total.update(bytes.fromhex(digests.of(path)))
    digests.save()
    return total.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    found = {path for pattern in _OTHER_FILES for path in folder.glob(pattern)}
    for pattern in _WEIGHTS:
        weights = {path for path in folder.glob(pattern) if path.name not in _NOT_WEIGHTS}
        if weights:
            found |= weights
            break
    return (path for path in sorted(found) if path.is_file())


class _Digests:
    """SHA-256 digests of files. Digests of large files are kept on disk, with the file's size, times and inode."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False
        try:
            self._known: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # digests from a missing or damaged cache are computed again
            self._known = {}

    def of(self, path: Path) -> str:
        """Return the digest of a file in hexadecimal digits."""
        if path.suffix == ".json" and path.stat().st_size < _LARGE_BYTES:
            return hashlib.sha256(_values(path.read_bytes())).hexdigest()
        status = os.stat(path)
        facts = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
        key = os.path.realpath(path)
        known = self._known.get(key)
        if isinstance(known, list) and len(known) == 2 and known[0] == facts:
            return str(known[1])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if status.st_size >= _LARGE_BYTES and time.time_ns() - max(facts[1:3]) > _FRESH_NS:
            self._known[key] = [facts, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Write the digests to disk if there are new ones."""
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._known, indent=1))
        except OSError:  # without a writable cache folder, the digests are computed again in the next run
            return


def _values(content: bytes) -> bytes:
    """Return a JSON object in a canonical form, without the fields in ``_ABOUT_THE_WRITER``.

    Content that is not a JSON object is returned unchanged.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not isinstance(fields, dict):
        return content
    kept = {key: value for key, value in fields.items() if key not in _ABOUT_THE_WRITER}
    return json.dumps(kept, sort_keys=True).encode()
