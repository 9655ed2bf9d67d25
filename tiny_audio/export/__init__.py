"""A model -> a Hugging Face folder that loads without this package; and such a folder -> a model."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor

from tiny_audio import __version__
from tiny_audio.config import UserError, problems
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.export._bundle import MODEL, PIPELINE, PROCESSOR, bundle, flat_name
from tiny_audio.model import base_weights
from tiny_audio.model.model import TinyAudioConfig, TinyAudioModel
from tiny_audio.model.processor import TinyAudioProcessor
from tiny_audio.projectors import PROJECTORS
from tiny_audio.registry import UnknownPartError
from tiny_audio.runtime.files import commit_folder
from tiny_audio.runtime.quiet import quiet_transformers

FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py", "README.md")
"""What exports consist of."""

Weights = Literal["all", "trained"]

# Where this package is imported, exports load by its own code, and nobody's trust is needed.
AutoConfig.register(TinyAudioConfig.model_type, TinyAudioConfig, exist_ok=True)
for auto in (AutoModel, AutoModelForSpeechSeq2Seq):
    auto.register(TinyAudioConfig, TinyAudioModel, exist_ok=True)
AutoProcessor.register(TinyAudioConfig, TinyAudioProcessor, exist_ok=True)

_TOKENIZER_FILE = "tokenizer_config.json"
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def export_model(
    model: TinyAudioModel, tokenizer: Any, folder: Path, *, weights: Weights = "all", card: str | None = None
) -> None:
    """Write a flat folder with weights, the tokenizer, and the code that runs them.

    ``pipeline``, ``AutoModel``, ``AutoTokenizer`` and ``AutoProcessor`` load it with ``trust_remote_code=True`` where
    torch, torchaudio, transformers, pydantic and soundfile are installed, and peft for a model with adapters or one on
    the hub. Tensors keep their type in the file; loading takes the widest of them for all, unless it is told another
    ``dtype``.

    Args:
        model: what to export; it stays as it is.
        tokenizer: its decoder's.
        folder: where it goes; an earlier export there is replaced.
        weights: ``all``, frozen ones too, so that the folder needs nothing else; or those that were ``trained``, with
            references to the base checkpoints, which whoever loads it must then be able to read.
        card: the text of its ``README.md``.

    Raises:
        UserError: ``folder`` holds something that is not an exported model, a part cannot be bundled, or a base
            checkpoint cannot be read.
    """
    check_replaceable(folder)
    files = bundle([_used(model.config)[kind].module for kind in ("encoder", "projector", "decoder")])
    folder = folder.resolve()  # a link leads to where there is room: what is aside has to lie there too
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
        _check_found(aside, files)
        commit_folder(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load_model(folder: str | Path, *, types_as_saved: bool = False) -> tuple[TinyAudioModel, Any]:
    """A run's model, or an exported one, to evaluate, and its tokenizer; by this package's code, not the folder's.

    Nothing in it is set to train: to train on from an export, see ``training.init_from``.

    Args:
        folder: a run's, or that of an exported model.
        types_as_saved: keep the type that each tensor has in the file, so that the model takes no more memory than in
            its training; where types differ, it runs under autocast only. Otherwise the widest is taken for all.

    Raises:
        UserError: it is no exported model, is damaged or incomplete, or has parts that are not installed.
    """
    folder = model_folder(Path(folder))
    saved = check_exported(folder)
    version = saved.get("tiny_audio_version", "unknown")
    for kind in ("encoder", "projector", "decoder"):
        if not isinstance(saved.get(kind), dict):
            raise UserError(f"{folder}: config.json has no section {kind!r}; copy or export it again")
    with quiet_transformers():
        try:
            model, info = TinyAudioModel.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
            )
        except UnknownPartError as error:
            raise UserError(f"{folder}: {error}; install the package that offers it") from error
        except ValidationError as error:
            remedy = (
                "it was changed since it was exported: copy or export it again"
                if version == __version__
                else f"it was exported by tiny-audio {version}: install that"
            )
            raise UserError(
                f"{folder}: config.json does not fit the parts of tiny-audio {__version__}: {problems(error)}; {remedy}"
            ) from error
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{folder}: the weights cannot be read, the folder is damaged or incomplete: "
                f"{str(error).strip().splitlines()[0]}; copy or export it again"
            ) from error
        _check_complete(folder, info)
    if types_as_saved:
        _narrow(model, folder, saved.get("base_weights") or {})
    # transformers forgets what was frozen while it loads.
    return model.eval().requires_grad_(False), load_exported_tokenizer(folder)


def _narrow(model: TinyAudioModel, folder: Path, references: dict[str, Any]) -> None:
    """Give parameters the types of the folder's files, and of the base checkpoints as they were trained on."""
    types = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                types[name] = file.get_slice(name)[:0].dtype
    for name, tensor in model.named_parameters():
        if name in types:
            tensor.data = tensor.data.to(types[name])
        elif (kind := name.partition(".")[0]) in references:
            tensor.data = tensor.data.to(getattr(torch, references[kind]["dtype"]))


def _used(config: TinyAudioConfig) -> dict[str, Any]:
    """Registry entries of the model's parts."""
    registries = (("encoder", ENCODERS), ("projector", PROJECTORS), ("decoder", DECODERS))
    return {kind: registry.entry(getattr(config, kind)["name"]) for kind, registry in registries}


def _write_model(model: TinyAudioModel, folder: Path, weights: Weights) -> None:
    """Weights and ``config.json``; the model's own config stays as it is."""
    own = model.config
    config = copy.deepcopy(own)
    kept = None if weights == "all" else _trained(model, config)
    model.config = config
    try:
        model.save_pretrained(folder, state_dict=kept)
    finally:
        model.config = own
    # Parts of several types run together only under autocast, which whoever loads this need not know of.
    config.dtype = functools.reduce(
        torch.promote_types, {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    )
    for kind in ("encoder", "decoder"):
        # Which kernel is fastest depends on the machine: what `auto` takes runs everywhere.
        setattr(config, kind, {**getattr(config, kind), "attention": "auto"})
    main = flat_name(MODEL)
    config.auto_map = {
        "AutoConfig": f"{main}.TinyAudioConfig",
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
    """Tensors that no checkpoint holds; where the others are is written into the config."""
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


def _check_found(folder: Path, files: dict[str, str]) -> None:
    """That transformers, which looks for imports by a regular expression, will copy all of the bundle."""
    from transformers.dynamic_module_utils import get_relative_imports

    for name in files:
        for needed in get_relative_imports(folder / name):
            if f"{needed}.py" not in files:
                raise UserError(
                    f"{name}: transformers takes a line of this module for an import of {needed!r}, which is not "
                    "there; reword the line (it may be in a docstring) that begins with `from .` or `import .`"
                )


def check_replaceable(folder: Path) -> None:
    """Refuse to write an export where something else lies.

    Raises:
        UserError: ``folder`` is a file, or holds something that is not of an exported model.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        ours = json.loads((folder / "config.json").read_text()).get("model_type") == TinyAudioConfig.model_type
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise UserError(
            f"{folder} is there already and holds something else than an exported model, which would be lost; give "
            "another folder, or remove it"
        )
    foreign = sorted(
        entry.name
        for entry in folder.iterdir()
        if not any(fnmatch(entry.name, pattern) for pattern in (*FILES, "__pycache__"))  # which using one leaves
    )
    if foreign:
        raise UserError(
            f"{folder} holds {foreign[0]!r} beside an exported model, which no export writes and which would be lost; "
            "move it, or give another folder"
        )


def model_folder(folder: Path) -> Path:
    """Where a run's model lies; the folder of an exported model is it itself.

    Raises:
        UserError: there is no such folder, or no model in it.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a run's folder, or that of an exported model")
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return place
    if (folder / "state.json").is_file():
        raise UserError(f"{folder}: this run has no model yet; finish it with the command that began it")
    raise UserError(f"{folder}: there is no config.json; give a run's folder, or that of an exported model")


def check_exported(folder: Path) -> dict[str, Any]:
    """The config.json of a :func:`model_folder`.

    Raises:
        UserError: it is not that of an exported model.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; copy or export the model again") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != TinyAudioConfig.model_type:
        raise UserError(
            f"{folder}: a model folder of another kind: model_type is {kind!r} in its config.json, and "
            f"{TinyAudioConfig.model_type!r} is needed; give the folder of a model that tiny-audio exported"
        )
    return dict(config)


def _check_complete(folder: Path, info: dict[str, Any]) -> None:
    if problems := "; ".join(base_weights.key_problems(info)):
        raise UserError(
            f"{folder}: the weights are not exactly those of the model that config.json describes; "
            f"{problems}; copy or export it again"
        )


def load_exported_tokenizer(folder: Path) -> Any:
    """The tokenizer of an exported model, without running the folder's code.

    Raises:
        UserError: it is missing or damaged.
    """
    from transformers import AutoTokenizer

    if not (folder / _TOKENIZER_FILE).is_file():
        raise UserError(f"{folder}: the tokenizer is missing, there is no {_TOKENIZER_FILE}; copy or export it again")
    if not any((folder / name).is_file() for name in _VOCABULARY_FILES):
        raise UserError(f"{folder}: the tokenizer is missing, there is no tokenizer.json; copy or export it again")
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises no type of its own
        raise UserError(
            f"{folder}: the tokenizer cannot be read: {str(error).strip().splitlines()[0]}; copy or export it again"
        ) from error
