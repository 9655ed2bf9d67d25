"""Write a model as a Hugging Face folder that loads without this package."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch

from tiny_audio import __version__
from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.export._bundle import CONFIG, MODEL, PIPELINE, PROCESSOR, bundle, flat_name
from tiny_audio.model import base_weights
from tiny_audio.model.config import TinyAudioConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.projectors import PROJECTORS
from tiny_audio.runtime.files import commit_folder
from tiny_audio.runtime.quiet import quiet_transformers

FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py", "README.md")
"""The files of an export."""

Weights = Literal["all", "trained"]


def export_model(
    model: TinyAudioModel, tokenizer: Any, folder: Path, *, weights: Weights = "all", card: str | None = None
) -> None:
    """Write a flat folder with the weights, the tokenizer, and the code that runs them.

    ``pipeline``, ``AutoModel``, ``AutoTokenizer`` and ``AutoProcessor`` load it with ``trust_remote_code=True``. That
    requires torch, torchaudio, transformers, pydantic and soundfile, and peft for a model with adapters or on the hub.
    The file keeps each tensor's type. Loading uses the widest of them for all, unless ``dtype`` is given.

    Args:
        model: is not changed.
        tokenizer: its decoder's.
        folder: where to write; an earlier export there is replaced.
        weights: ``all``, so that the folder is self-contained; or only the ``trained`` ones, with references to the
            base checkpoints, which must be readable wherever the export is loaded.
        card: the text of ``README.md``.

    Raises:
        UserError: ``folder`` holds something that is not an exported model, a part cannot be bundled, or a base
            checkpoint cannot be read.
    """
    check_replaceable(folder)
    files = bundle([entry.module for entry in _parts(model.config)])
    folder = folder.resolve()  # a link may lead to another disk, and the temporary folder must be on the same one
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with quiet_transformers():
            _write_model(model, aside, weights)
            tokenizer.save_pretrained(aside)
        processor = {
            "processor_class": "TinyAudioProcessor",
            "auto_map": {"AutoProcessor": f"{flat_name(PROCESSOR)}.TinyAudioProcessor"},
        }
        (aside / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
        for name, text in files.items():
            (aside / name).write_text(text, encoding="utf-8")
        if card is not None:
            (aside / "README.md").write_text(card, encoding="utf-8")
        _check_imports(aside, files)
        commit_folder(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Check that an export to this folder overwrites nothing but an export.

    Raises:
        UserError: ``folder`` is a file, or holds something that is not part of an exported model.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        ours = (
            json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
            == TinyAudioConfig.model_type
        )
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise UserError(
            f"{folder} exists and is not an exported model, so it is not overwritten; give another folder, or remove it"
        )
    foreign = sorted(
        entry.name
        for entry in folder.iterdir()
        if not any(fnmatch(entry.name, pattern) for pattern in (*FILES, "__pycache__"))  # written when it is used
    )
    if foreign:
        raise UserError(
            f"{folder} holds an exported model and {foreign[0]!r}, which an export would delete; move it, or give "
            "another folder"
        )


def _parts(config: TinyAudioConfig) -> list[Any]:
    """Registry entries of the model's parts."""
    registries = (("encoder", ENCODERS), ("projector", PROJECTORS), ("decoder", DECODERS))
    return [registry.entry(getattr(config, kind)["name"]) for kind, registry in registries]


def _write_model(model: TinyAudioModel, folder: Path, weights: Weights) -> None:
    """Write weights and ``config.json``; the model's own config is not changed."""
    own = model.config
    config = copy.deepcopy(own)
    kept = None if weights == "all" else _trained(model, config)
    model.config = config
    try:
        model.save_pretrained(folder, state_dict=kept)
    finally:
        model.config = own
    # Parts of different types run together only under autocast, so the export loads as one type.
    config.dtype = functools.reduce(
        torch.promote_types, {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    )
    for kind in ("encoder", "decoder"):
        # The fastest attention kernel depends on the machine; `auto` works everywhere.
        setattr(config, kind, {**getattr(config, kind), "attention": "auto"})
    main = flat_name(MODEL)
    config.auto_map = {
        "AutoConfig": f"{flat_name(CONFIG)}.TinyAudioConfig",
        "AutoModel": f"{main}.TinyAudioModel",
        "AutoModelForSpeechSeq2Seq": f"{main}.TinyAudioModel",
    }
    config.custom_pipelines = {
        "automatic-speech-recognition": {
            "impl": f"{flat_name(PIPELINE)}.TinyAudioPipeline",
            "pt": ["AutoModelForSpeechSeq2Seq"],
        }
    }
    config.tiny_audio_version = __version__
    config.save_pretrained(folder)


def _trained(model: TinyAudioModel, config: TinyAudioConfig) -> dict[str, Any]:
    """The tensors that no checkpoint holds; the config receives references to the others."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    found = base_weights.references({kind: getattr(config, kind) for kind in base_weights.KINDS}, tensors)
    config.base_weights = found
    for kind, reference in found.items():
        for name in reference.pop("names"):
            del tensors[name]
        part = getattr(config, kind)
        if not Path(part["pretrained"]).is_dir():
            setattr(config, kind, {**part, "revision": reference["fingerprint"]})
    return tensors


def _check_imports(folder: Path, files: dict[str, str]) -> None:
    """Check that transformers, which finds imports with a regular expression, finds only files of the bundle."""
    from transformers.dynamic_module_utils import get_relative_imports

    for name in files:
        for needed in get_relative_imports(folder / name):
            if f"{needed}.py" not in files:
                raise UserError(
                    f"{name}: transformers takes a line of this module for an import of {needed!r}, which does not "
                    "exist; reword the line (perhaps in a docstring) that begins with `from .` or `import .`"
                )
