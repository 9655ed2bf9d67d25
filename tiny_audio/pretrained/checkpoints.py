"""Read a checkpoint's files: its config and its identity. Every failure becomes one message."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tiny_audio.config import UserError
from tiny_audio.pretrained.config import TransformersPartConfig
from tiny_audio.runtime.quiet import errors_only


def published_architecture(part: TransformersPartConfig) -> dict[str, Any] | None:
    """Fields of the ``config.json`` of the part's checkpoint, read without its weights; None for ``init: random``.

    Raises:
        UserError: the checkpoint's config cannot be read.
    """
    if part.init == "random":
        return None
    from transformers import PreTrainedConfig

    architecture: dict[str, Any]
    architecture, _ = read_checkpoint(part, PreTrainedConfig.get_config_dict, part.pretrained, revision=part.revision)
    return architecture


def checkpoint_fingerprint(part: TransformersPartConfig) -> str | None:
    """Identity of a checkpoint: its commit on the hub, or a hash of a local folder's weights.

    None for a part with random weights.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    if part.init == "random":
        return None
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    folder = Path(part.pretrained)
    if not folder.is_dir():
        file = read_checkpoint(part, cached_file, part.pretrained, "config.json", revision=part.revision)
        commit: str | None = extract_commit_hash(file, None)
        return commit
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with path.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()


def read_checkpoint(part: TransformersPartConfig, read: Any, *args: Any, **kwargs: Any) -> Any:
    """Call ``read(*args, **kwargs)`` and report every failure of a missing or damaged checkpoint in one message.

    Raises:
        UserError: names the part, the checkpoint and the reason.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    if part.pretrained.startswith(("/", ".", "~")) and not Path(part.pretrained).is_dir():
        raise UserError(
            f"{part.name}: there is no folder {part.pretrained!r}; give the folder of a checkpoint, or a hub id such "
            "as owner/name"
        )
    try:
        with errors_only():  # our own checks account for every key
            return read(*args, **kwargs)
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else error
        reason = str(cause).strip().split("\n")[0].rstrip(".")
        at = f" at revision {part.revision}" if part.revision else ""
        raise UserError(
            f"{part.name}: cannot read {part.pretrained!r}{at}: {reason}. "
            "Give a hub id or the folder of a checkpoint, and check the network and `hf auth login` for gated models."
        ) from error
