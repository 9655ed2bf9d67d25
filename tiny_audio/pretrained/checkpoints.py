"""Read a checkpoint's config and other JSON files. If a checkpoint cannot be read, report the reason in one message."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

from tiny_audio.config import UserError
from tiny_audio.pretrained.config import TransformersPartConfig
from tiny_audio.pretrained.published import published_fields
from tiny_audio.runtime.quiet import errors_only


def published_architecture(part: TransformersPartConfig) -> dict[str, Any] | None:
    """Read the checkpoint's ``config.json``, and return its fields; None for ``init: random``.

    Raises:
        UserError: the checkpoint's config cannot be read.
    """
    if part.init == "random":
        return None
    architecture: dict[str, Any] = read_checkpoint(part, _read_config, part)
    return architecture


def known_architecture(part: TransformersPartConfig) -> dict[str, Any] | None:
    """Return the transformers config of the part's checkpoint from this package's table of well-known checkpoints.

    Returns:
        None if the checkpoint is not in the table, or for ``init: random``.
    """
    return None if part.init == "random" else published_fields(part.pretrained, part.revision)


def read_architecture(part: TransformersPartConfig) -> dict[str, Any] | None:
    """Return the transformers config of the part's checkpoint; None for ``init: random``.

    The config is read from this package's table or, if the checkpoint is not in the table, from its ``config.json``.

    Raises:
        UserError: the checkpoint's config cannot be read.
    """
    return known_architecture(part) or published_architecture(part)


def read_json(part: TransformersPartConfig, name: str) -> dict[str, Any] | None:
    """Read a JSON file of the part's checkpoint on the hub or in a local folder; None if there is no such file.

    Raises:
        UserError: the file cannot be read, or does not contain a JSON object.
    """
    found: dict[str, Any] | None = read_checkpoint(part, _read_json, part, name)
    return found


def config_file(part: TransformersPartConfig) -> Path:
    """Return the path of the checkpoint's ``config.json``. It is downloaded to the hub's cache if needed.

    Raises:
        UserError: the file cannot be read.
    """
    from transformers.utils import cached_file

    return Path(read_checkpoint(part, cached_file, part.pretrained, "config.json", revision=part.revision))


def _read_config(part: TransformersPartConfig) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    # First check that a local config.json contains a JSON object. Otherwise, transformers would raise errors of many
    # types.
    if Path(part.pretrained).is_dir():
        _read_json(part, "config.json")
    fields: dict[str, Any]
    fields, _ = PreTrainedConfig.get_config_dict(part.pretrained, revision=part.revision)
    return fields


def _read_json(part: TransformersPartConfig, name: str) -> dict[str, Any] | None:
    from transformers.utils import cached_file

    folder = Path(part.pretrained)
    if folder.is_dir():
        path = folder / name
        if not path.exists():
            return None
    else:
        # With these settings, transformers returns None if the file is missing or cannot be downloaded.
        tolerant = ("gated_repo", "missing_entries", "connection_errors")
        settings = {f"_raise_exceptions_for_{name}": False for name in tolerant}
        found = cached_file(part.pretrained, name, revision=part.revision, **settings)
        if found is None:
            return None
        path = Path(found)
    if not path.is_file():
        raise ValueError(f"{name} is a folder, but a file is needed")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{name} has a {type(fields).__name__} instead of a JSON object")
    return fields


def read_checkpoint(part: TransformersPartConfig, read: Any, *args: Any, **kwargs: Any) -> Any:
    """Call ``read(*args, **kwargs)`` and report a missing or damaged checkpoint in one message.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    if part.pretrained.startswith(("/", ".", "~")) and not Path(part.pretrained).is_dir():
        raise UserError(
            f"{part.name}: there is no folder {part.pretrained!r}; give the folder of a checkpoint, or a hub id such "
            "as owner/name"
        )
    try:
        with errors_only():  # hide transformers' warnings about weights, because building.py checks all weights
            return read(*args, **kwargs)
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        SafetensorError,
        StrictDataclassError,
        # The errors below are caused by damaged pickles and by configs with values of wrong types.
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
    ) as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else error
        # The text of these errors may be only a key or a number, so add the type of the error.
        kind = f"{type(error).__name__}: " if isinstance(error, TypeError | AttributeError | LookupError) else ""
        reason = kind + str(cause).strip().split("\n")[0].rstrip(".")
        at = f" at revision {part.revision}" if part.revision else ""
        raise UserError(f"{part.name}: cannot read {part.pretrained!r}{at}: {reason}. {_advice(part)}") from error


def _advice(part: TransformersPartConfig) -> str:
    """Say what to do about a checkpoint that cannot be read."""
    from huggingface_hub import constants

    if Path(part.pretrained).is_dir():
        return "Repair the folder, or download the checkpoint again."
    if constants.HF_HUB_OFFLINE:
        return (
            "The environment variable HF_HUB_OFFLINE prevents downloads, so only the cache is read. Unset it, or give "
            "the folder of a checkpoint."
        )
    return (
        "Give a hub id or the folder of a checkpoint, and check the network. For a gated model, log in with "
        "`hf auth login`."
    )
