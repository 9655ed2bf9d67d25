"""Write a model as a Hugging Face folder, which can be loaded without this package."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from safetensors import SafetensorError, safe_open

from tiny_audio import __version__
from tiny_audio.config import UserError, first_line
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.export import EXPORTS, NEEDED_FILES, ExportConfig, Exporter, check_replaceable
from tiny_audio.export._bundle import CONFIG, MODEL, PIPELINE, PROCESSOR, bundle, flat_name
from tiny_audio.model import base_weights
from tiny_audio.pretrained import quantization
from tiny_audio.pretrained.quantization import quantizable, whole_state
from tiny_audio.projectors import PROJECTORS
from tiny_audio.runtime.files import new_folder
from tiny_audio.runtime.quiet import quiet_transformers
from tiny_audio.runtime.requirements import REQUIREMENTS

if TYPE_CHECKING:  # `tiny-audio list` imports this module, but must not import transformers
    from tiny_audio.model.config import TinyAudioConfig
    from tiny_audio.model.model import TinyAudioModel

Weights = Literal["all", "trained"]


class HuggingFaceConfig(ExportConfig):
    """A Hugging Face folder, which transformers can load without this package."""

    name: Literal["huggingface"] = "huggingface"
    weights: Weights = "all"
    """``all`` writes all weights, so the folder needs no other files. ``trained`` writes only the trained weights, and
    references to the checkpoints of the base models. When the model is loaded, the other weights are read from these
    checkpoints, which are downloaded if they are on the hub."""
    files: ClassVar[tuple[str, ...]] = (*NEEDED_FILES, "*.py", "README.md")

    @classmethod
    def is_export(cls, folder: Path) -> bool:
        """See :meth:`ExportConfig.is_export`."""
        from tiny_audio.export.load import check_exported

        try:
            check_exported(folder)
        except (OSError, UserError):
            return False
        return True

    @classmethod
    def check_pushable(cls, folder: Path) -> None:
        """See :meth:`ExportConfig.check_pushable`."""
        from tiny_audio.export.load import check_exported

        config = check_exported(folder)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"{folder}: the weights (*.safetensors) are missing; copy or export the model again")
        for path in files:
            try:
                with safe_open(path, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path}: the weights cannot be read: {first_line(error)}; export the model again"
                ) from error
        if not (folder / f"{flat_name(MODEL)}.py").is_file():
            raise UserError(f"{folder}: the code that runs the model is missing; export the model again")
        for kind in config.get("base_weights") or {}:
            if Path(config[kind]["pretrained"]).is_dir():
                raise UserError(
                    f"{folder}: the {kind}'s weights are in the local folder {config[kind]['pretrained']}, which other "
                    "users cannot read; export the model with --weights all"
                )


@EXPORTS.register
def build_huggingface(config: HuggingFaceConfig) -> Exporter:
    """Return an exporter with the options of ``config``; see :func:`export_model`."""
    return lambda model, tokenizer, folder, card: export_model(
        model, tokenizer, folder, weights=config.weights, card=card
    )


def export_model(
    model: TinyAudioModel, tokenizer: Any, folder: Path, *, weights: Weights = "all", card: str | None = None
) -> None:
    """Write a flat folder with the weights, the tokenizer, and the code of the model.

    ``pipeline``, ``AutoModel``, ``AutoTokenizer`` and ``AutoProcessor`` load the folder with
    ``trust_remote_code=True``. ``requirements.txt`` in the folder lists the packages to install, except those of
    plugins. Each tensor is saved in its own type. When transformers loads the folder, it converts all tensors to the
    widest of these types by default.

    Args:
        model: the model. It is not changed.
        tokenizer: the tokenizer of the model's decoder.
        folder: the folder to write. An earlier export in this folder is replaced.
        weights: see :class:`HuggingFaceConfig`.
        card: the text of ``README.md``. If None, no ``README.md`` is written.

    Raises:
        UserError: ``folder`` contains files that are not part of an exported model, a part cannot be bundled, or a base
            checkpoint cannot be read.
    """
    check_replaceable(folder, HuggingFaceConfig)
    files = bundle([entry.module for entry in _parts(model.config)])
    # If the folder is a link to another disk, `new_folder` makes the temporary folder there, so that it can be renamed.
    with new_folder(folder) as aside:
        with quiet_transformers():
            quantizes = _write_model(model, aside, weights)
            tokenizer.save_pretrained(aside)
        processor = {
            "processor_class": "TinyAudioProcessor",
            "auto_map": {"AutoProcessor": f"{flat_name(PROCESSOR)}.TinyAudioProcessor"},
        }
        (aside / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
        for name, text in files.items():
            (aside / name).write_text(text, encoding="utf-8")
        needed = (*REQUIREMENTS, quantization.REQUIREMENT) if quantizes else REQUIREMENTS
        (aside / "requirements.txt").write_text("".join(f"{requirement}\n" for requirement in needed))
        if card is not None:
            (aside / "README.md").write_text(card, encoding="utf-8")
        _check_imports(aside, files)


def _parts(config: TinyAudioConfig) -> list[Any]:
    registries = (("encoder", ENCODERS), ("projector", PROJECTORS), ("decoder", DECODERS))
    return [registry.entry(getattr(config, kind)["name"]) for kind, registry in registries]


def _write_model(model: TinyAudioModel, folder: Path, weights: Weights) -> bool:
    """Write the weights and ``config.json``. Return whether loading the folder quantizes weights."""
    own = model.config
    config = copy.deepcopy(own)
    kept = None if weights == "all" else _trained(model, config)
    model.config = config
    try:
        model.save_pretrained(folder, state_dict=kept)
    finally:
        model.config = own
    # Parts of different types can run together only under autocast, so an export is loaded in one type.
    config.dtype = functools.reduce(
        torch.promote_types, {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    )
    for kind in ("encoder", "decoder"):
        # The run's attention kernel may be missing on other machines, but `auto` works everywhere.
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
    return bool(config.base_weights) and _quantization(config) is not None


def _trained(model: TinyAudioModel, config: TinyAudioConfig) -> dict[str, Any]:
    """Return the tensors that differ from the base checkpoints. Add references to all other tensors to ``config``."""
    tensors = {name: tensor for name, tensor in whole_state(model).items() if name not in model.all_tied_weights_keys}
    found = _references(config, tensors)
    from_checkpoint = set(found.get("decoder", {}).get("names", ()))
    quantized = {f"decoder.{path}.weight" for path in quantizable(model.decoder)}
    if _quantization(config) is not None and not quantized <= from_checkpoint:
        # Some quantized weights of this model differ from the checkpoint's, for example because an earlier run trained
        # them. Therefore the dequantized weights are written, and loading the folder does not quantize them again.
        config.decoder = (config.decoder or {}) | {"quantization": None}
        found = _references(config, tensors)
    config.base_weights = found
    for kind, reference in found.items():
        for name in reference.pop("names"):
            del tensors[name]
        part = getattr(config, kind)
        if not Path(part["pretrained"]).is_dir():
            setattr(config, kind, {**part, "revision": reference["fingerprint"]})
    return tensors


def _quantization(config: TinyAudioConfig) -> Any:
    return (config.decoder or {}).get("quantization")


def _references(config: TinyAudioConfig, tensors: dict[str, Any]) -> dict[str, base_weights.Reference]:
    return base_weights.references({kind: getattr(config, kind) for kind in base_weights.KINDS}, tensors)


def _check_imports(folder: Path, files: dict[str, str]) -> None:
    """Check that each import that transformers finds names a file of the bundle.

    transformers finds imports with a regular expression, which may also match a line of a docstring.
    """
    from transformers.dynamic_module_utils import get_relative_imports

    for name in files:
        for needed in get_relative_imports(folder / name):
            if f"{needed}.py" not in files:
                raise UserError(
                    f"{name}: transformers mistakes a line of this module for an import of {needed!r}, which does not "
                    "exist; reword the line (perhaps in a docstring) that begins with `from .` or `import .`"
                )
