"""Read the tensors of one part from the checkpoint of a whole model, such as the encoder of a speech language model.

The other tensors are not loaded, and files on the hub that contain only other tensors are not downloaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_audio.pretrained.checkpoints import read_checkpoint, read_json
from tiny_audio.pretrained.config import TransformersPartConfig

if TYPE_CHECKING:
    from torch import Tensor

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def read_own_tensors(part: TransformersPartConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Read the tensors of a part that has a ``prefix``.

    Returns:
        The tensors by their keys without the prefix, and the keys of the tensors that were not read.

    Raises:
        UserError: the checkpoint cannot be read, or has no safetensors files.
    """
    found: tuple[dict[str, Tensor], list[str]] = read_checkpoint(part, _read, part)
    return found


def _read(part: TransformersPartConfig) -> tuple[dict[str, Tensor], list[str]]:
    from safetensors import safe_open

    files = _files(part)
    own = part.own_keys(files)
    tensors = {}
    for name in sorted({files[key] for key in own}):
        path = _path(part, name)
        if path is None:
            raise FileNotFoundError(f"{name}, which {_INDEX} names, is missing")
        with safe_open(path, "pt") as file:
            for key in own:
                if files[key] == name:
                    tensors[re.sub(rf"^({part.prefix})", "", key)] = file.get_tensor(key)
    return tensors, sorted(files.keys() - set(own))


def _files(part: TransformersPartConfig) -> dict[str, str]:
    """Return the name of the file that contains each tensor, by the tensor's key."""
    from safetensors import safe_open

    # If the checkpoint has model.safetensors, ignore the index, as transformers does.
    single = _path(part, _SINGLE)
    if single is not None:
        with safe_open(single, "pt") as file:
            return dict.fromkeys(file.keys(), _SINGLE)
    index = read_json(part, _INDEX)
    if index is None:
        raise FileNotFoundError(f"there is no {_SINGLE} and no {_INDEX}, but this part needs safetensors files")
    return dict(index["weight_map"])


def _path(part: TransformersPartConfig, name: str) -> Path | None:
    """Return the path of a file of the checkpoint, downloaded if needed; None if there is no such file."""
    from transformers.utils import cached_file

    folder = Path(part.pretrained)
    if folder.is_dir():
        return folder / name if (folder / name).exists() else None
    found = cached_file(part.pretrained, name, revision=part.revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
