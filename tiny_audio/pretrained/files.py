"""Check a checkpoint's config, find its weight files on this machine, and check that they are complete."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, TypeVar

from tiny_audio.config import UserError
from tiny_audio.pretrained.checkpoints import config_file, published_architecture, read_json
from tiny_audio.pretrained.config import TransformersPartConfig

_Part = TypeVar("_Part", bound=TransformersPartConfig)
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX_SUFFIX = ".index.json"
_OTHER_FORMATS = ("gguf", "nemo", "msgpack", "h5", "pth", "pt", "ckpt", "onnx", "safetensors", "bin")
_LFS = b"version https://git-lfs"
_LARGEST_HEADER = 100_000_000
"""Maximum size of a safetensors header in bytes, as in the safetensors library."""


def check_config(part: TransformersPartConfig) -> dict[str, Any] | None:
    """Return the fields of the ``config.json`` of a part's checkpoint; None for ``init: random``.

    Raises:
        UserError: there is no usable ``config.json``, the checkpoint is quantized, or it has a PEFT adapter for this
            part.
    """
    fields = published_architecture(part)
    if fields is None:
        return None
    _check_not_quantized(part, fields)
    adapter = read_json(part, "adapter_config.json")
    if adapter is not None and not (fields and _adapts_other_parts(part, adapter)):
        if not fields:
            raise UserError(
                f"{part.name}: {part.pretrained!r} holds only a PEFT adapter (adapter_config.json) and no config.json; "
                "merge the adapter into its model with peft's merge_and_unload, and give the folder of the result"
            )
        raise UserError(
            f"{part.name}: {part.pretrained!r} has a PEFT adapter (adapter_config.json) next to a model, so it is not "
            "clear which weights to use. To use the model without the adapter, move adapter_config.json and "
            "adapter_model.* to another folder. To use both, merge them with peft's merge_and_unload"
        )
    if fields.get("model_type") is None:
        raise UserError(
            f"{part.name}: {part.pretrained!r} has no config.json that names a model_type; give a hub id or the "
            "folder of a checkpoint in the format of transformers"
        )
    return fields


def on_disk(part: _Part) -> _Part | None:
    """Return the part with ``pretrained`` set to the folder of its weights, which may be in the hub's cache.

    Returns:
        None if the hub's cache does not have all files of the weights.

    Raises:
        UserError: the checkpoint's config cannot be read, or the index of its weights is damaged.
    """
    if Path(part.pretrained).is_dir():
        return part
    folder = config_file(part).parent
    files = _weight_files(part, folder)
    if not files or not all(path.exists() for path in files):
        return None
    return part.model_copy(update={"pretrained": str(folder), "revision": None})


def _adapts_other_parts(part: TransformersPartConfig, adapter: dict[str, Any]) -> bool:
    """Whether a PEFT adapter is for other parts of a whole model.

    For example, the adapter of Granite Speech is for the language model, so the encoder can be used without it.
    """
    targets = adapter.get("target_modules")
    if part.prefix is None or not isinstance(targets, list):
        return False
    return not {str(target).rpartition(".")[2] for target in targets} & set(part.linear_layers or ())


def check_weight_files(part: TransformersPartConfig) -> None:
    """Check the weight files of a checkpoint, without reading the weights. Do nothing if they are not on this machine.

    Raises:
        UserError: a file is missing, cut off, or not a weight file.
    """
    local = on_disk(part)
    if local is None:
        return
    folder = Path(local.pretrained)
    files = _weight_files(part, folder)
    if not files:
        others = sorted(path.name for end in _OTHER_FORMATS for path in folder.glob(f"*.{end}"))
        held = f"It holds {', '.join(others[:3])}{', …' if len(others) > 3 else ''}. " if others else ""
        raise UserError(
            f"{part.name}: {folder} has no weights that transformers reads (model.safetensors or pytorch_model.bin). "
            f"{held}Download the whole checkpoint, or convert it to the format of transformers"
        )
    missing = [path.name for path in files if not path.exists()]
    if missing:
        raise UserError(
            f"{part.name}: {folder} lacks {len(missing)} of the {len(files)} files that its index of weights names: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; download the missing ones"
        )
    for path in files:
        problem = _problem(path)
        if problem is not None:
            # The hub's client assumes that files in its cache are complete, so it does not download them again.
            advice = "" if local is part else ". It is in the hub's cache: delete it first"
            raise UserError(f"{part.name}: {path} {problem}{advice}")


def _check_not_quantized(part: TransformersPartConfig, fields: dict[str, Any]) -> None:
    """Raise a :class:`UserError` if a checkpoint's config says that its weights are quantized."""
    # In checkpoints of MLX, the field is named `quantization`.
    quantized = fields.get("quantization_config") or fields.get("quantization")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise UserError(
            f"{part.name}: the weights of {part.pretrained!r} are quantized ({method or 'quantization_config'}), but "
            "parts need float32, float16 or bfloat16; give the original checkpoint, which is not quantized"
        )


def _weight_files(part: TransformersPartConfig, folder: Path) -> list[Path]:
    """Return the paths of the weight files that are read for the part.

    If there are files of several kinds, return the kind that transformers prefers. If an index names the files, some of
    them may be missing.

    Raises:
        UserError: an index is damaged.
    """
    for name in _SINGLE:
        if (folder / name).exists():
            return [folder / name]
        index = folder / (name + _INDEX_SUFFIX)
        if index.exists():
            try:
                files = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
                shards = sorted({files[key] for key in part.own_keys(files)})
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{part.name}: {index} is damaged ({type(error).__name__}: {error}); download it again"
                ) from error
            return [folder / shard for shard in shards]
    return []


def _problem(path: Path) -> str | None:
    """Describe what is wrong with a weight file, as the end of a sentence; None if the file looks complete."""
    if path.is_dir():
        return "is a folder, but a file of weights is needed"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(200)
        if not start:
            return "is empty; download it again"
        if start.startswith(_LFS):
            return "is a Git LFS pointer, not weights; run `git lfs pull` in its folder, or download it again"
        header_size = int.from_bytes(start[:8], "little")
        # A safetensors file starts with the size of its header in 8 bytes. These bytes can look like the start of a web
        # page: whitespace and "<". But the first 8 bytes of a web page, read as a number, exceed the maximum size.
        may_be_safetensors = path.suffix == ".safetensors" and len(start) >= 8 and header_size <= _LARGEST_HEADER
        if not may_be_safetensors and start.lstrip()[:1] == b"<":
            return "is a web page, not weights; download it again. For a gated model, run `hf auth login` first"
        if path.suffix != ".safetensors":
            # Before torch 1.6, checkpoints were pickles without a zip archive. Such a file can be checked only by
            # loading it.
            if start.startswith(b"PK") and not zipfile.is_zipfile(path):
                return f"is cut off: its {size:,} bytes do not include the end of the zip archive; download it again"
            return None
        if not may_be_safetensors:
            return "is not a safetensors file; download it again"
        file.seek(8)
        try:
            header = json.loads(file.read(header_size))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + header_size + max((entry["data_offsets"][1] for entry in tensors), default=0)
            types = {entry["dtype"] for entry in tensors}
        except (ValueError, LookupError, TypeError, AttributeError):
            return "has a damaged header; download it again"
    if size < expected:
        return f"is cut off: it has {size:,} of {expected:,} bytes; download it again"
    if any(name.startswith("F8") for name in types):
        return "has 8-bit floating-point weights, but parts need float32, float16 or bfloat16; give another checkpoint"
    return None
