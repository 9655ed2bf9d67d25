"""Load an exported model with this package's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor

from tiny_audio import __version__
from tiny_audio.config import UserError, expand_path, first_line, problems
from tiny_audio.model import base_weights
from tiny_audio.model.config import TinyAudioConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.processor import TinyAudioProcessor
from tiny_audio.pretrained.quantization import quantized_layers
from tiny_audio.registry import UnknownPartError
from tiny_audio.runtime.checkpoint_folders import steps_in
from tiny_audio.runtime.quiet import quiet_transformers

# Register this package's classes, so that transformers uses them for exports and does not need trust_remote_code.
AutoConfig.register(TinyAudioConfig.model_type, TinyAudioConfig, exist_ok=True)
for auto in (AutoModel, AutoModelForSpeechSeq2Seq):
    auto.register(TinyAudioConfig, TinyAudioModel, exist_ok=True)
AutoProcessor.register(TinyAudioConfig, TinyAudioProcessor, exist_ok=True)

_TOKENIZER_FILE = "tokenizer_config.json"
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_model(folder: str | Path, *, types_as_saved: bool = False) -> tuple[TinyAudioModel, Any]:
    """Load the model and the tokenizer of a run or of an export, with this package's code instead of the folder's.

    The model is in evaluation mode, and none of its parameters is trainable. To train from an export, see
    ``training.init_from``.

    Args:
        folder: folder of a run or of an exported model.
        types_as_saved: load each tensor in the type in which it was saved, so that the model needs no more memory than
            in training. A model with several types runs only under autocast. By default, all tensors are loaded in the
            widest type.

    Raises:
        UserError: the folder is not an exported model, is damaged or incomplete, or needs parts that are not installed.
    """
    folder = model_folder(Path(folder))
    saved = check_exported(folder)
    version = saved.get("tiny_audio_version", "unknown")
    for kind in ("encoder", "projector", "decoder"):
        if not isinstance(saved.get(kind), dict):
            raise UserError(f"{folder}: config.json has no section {kind!r}; copy or export the model again")
    with quiet_transformers():
        try:
            model, info = TinyAudioModel.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
            )
        except UnknownPartError as error:
            raise UserError(f"{folder}: {error}; install the package that provides this part") from error
        except ValidationError as error:
            remedy = (
                "config.json was changed after the export: copy or export the model again"
                if version == __version__
                else f"the model was exported by tiny-audio {version}: install that version"
            )
            raise UserError(
                f"{folder}: config.json does not fit the parts of tiny-audio {__version__}: {problems(error)}; {remedy}"
            ) from error
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{folder}: the weights cannot be read, so the folder is damaged or incomplete: "
                f"{first_line(error)}; copy or export the model again"
            ) from error
    if found := "; ".join(base_weights.key_problems(info)):
        raise UserError(f"{folder}: the weights do not match config.json: {found}; copy or export the model again")
    if types_as_saved:
        _restore_types(model, folder, saved.get("base_weights") or {})
    # Freeze all parameters, because transformers does not save which weights were frozen in training.
    return model.eval().requires_grad_(False), load_exported_tokenizer(folder)


def _restore_types(model: TinyAudioModel, folder: Path, references: dict[str, Any]) -> None:
    """Convert each parameter to the type that it had in training.

    ``references`` (``base_weights`` in ``config.json``) states the types of weights that are not in the folder's files.
    """
    types = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # file is not a mapping
                values = file.get_slice(name)
                # A tensor without dimensions, such as a counter of batches, cannot be sliced.
                types[name] = (values[:0] if values.get_shape() else file.get_tensor(name)).dtype
    for name, tensor in model.named_parameters():
        if name in types:
            tensor.data = tensor.data.to(types[name])
        elif (kind := name.partition(".")[0]) in references:
            tensor.data = tensor.data.to(base_weights.dtype_of(references[kind]))
    for _, layer in quantized_layers(model.decoder):
        layer.set_type(base_weights.dtype_of(references["decoder"]))


def model_folder(folder: Path) -> Path:
    """Return the folder with the model's files: ``folder`` itself, or the subfolder ``model`` of a run's folder.

    Raises:
        UserError: the folder does not exist or has no model.
    """
    folder = Path(expand_path(str(folder)))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run or of an exported model")
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if (folder / "progress.json").is_file():
        raise UserError(f"{folder}: this is a checkpoint; export it with `tiny-audio export {folder} DIR`")
    if (folder / "state.json").is_file():
        saved = steps_in(folder / "checkpoints")
        steps = f", or export a checkpoint with --step (saved steps: {', '.join(map(str, saved))})" if saved else ""
        raise UserError(f"{folder}: this run has no model yet; finish it with the command that started it{steps}")
    raise UserError(f"{folder}: there is no config.json; give the folder of a run or of an exported model")


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a model's ``config.json``, or an empty dict if the content is not a JSON object.

    Raises:
        UserError: the file is not JSON.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; copy or export the model again") from error
    return config if isinstance(config, dict) else {}


def check_exported(folder: Path) -> dict[str, Any]:
    """Return the content of the ``config.json`` in an exported model's folder (see :func:`model_folder`).

    Raises:
        UserError: the file does not belong to an exported model.
    """
    config = read_config(folder / "config.json")
    kind = config.get("model_type")
    if kind != TinyAudioConfig.model_type:
        raise UserError(
            f"{folder}: this is not a model of Tiny Audio: config.json has model_type {kind!r} instead of "
            f"{TinyAudioConfig.model_type!r}; give the folder of a model that tiny-audio exported"
        )
    return config


def load_exported_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of an exported model, without running the folder's code.

    Raises:
        UserError: the tokenizer is missing or damaged.
    """
    from transformers import AutoTokenizer

    if not (folder / _TOKENIZER_FILE).is_file():
        raise UserError(f"{folder}: the tokenizer's {_TOKENIZER_FILE} is missing; copy or export the model again")
    if not any((folder / name).is_file() for name in _VOCABULARY_FILES):
        raise UserError(f"{folder}: the tokenizer's tokenizer.json is missing; copy or export the model again")
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise UserError(
            f"{folder}: the tokenizer cannot be read: {first_line(error)}; copy or export the model again"
        ) from error
