"""Load initial weights from another run (``training.init_from``) or a released CTC head (``ctc.init: pretrained``)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tiny_audio.config import UserError, first_line
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.encoders import EncoderConfig
from tiny_audio.export.load import load_exported_tokenizer, load_model
from tiny_audio.model.base_weights import without_adapters
from tiny_audio.model.config import TinyAudioConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.pretrained.identity import folder_identity
from tiny_audio.pretrained.quantization import whole_state
from tiny_audio.recipe import InitFrom, Recipe

ALL_PARTS = ("encoder", "projector", "decoder", "ctc_head")
_ADAPTED = ("encoder", "decoder")
"""Parts that may have adapters."""


class StartingPoint:
    """An exported model that training starts from.

    Raises:
        UserError: the path has no finished model, or the model's config is damaged.
    """

    def __init__(self, config: InitFrom) -> None:
        path = Path(config.path)
        self.folder = path / "model" if (path / "model").is_dir() else path
        self._given = config
        self._files = sorted(self.folder.glob("*.safetensors"))
        if not self._files or not (self.folder / "config.json").is_file():
            raise UserError(
                f"training.init_from.path: {config.path} has no trained model (config.json or *.safetensors is "
                "missing); give the folder of a finished run or of an exported model"
            )
        try:
            self.config: dict[str, Any] = dict(json.loads((self.folder / "config.json").read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"training.init_from: {self.folder / 'config.json'} is damaged: {error}") from error

    @classmethod
    def of(cls, recipe: Recipe) -> StartingPoint | None:
        """Return the model that the recipe's training starts from, if any."""
        return cls(recipe.training.init_from) if recipe.training.init_from else None

    def takes(self, part: str) -> bool:
        """Whether this part's weights are taken from this model."""
        return self._given.takes(part)

    def has_adapters(self, kind: str) -> bool:
        """Whether the adapters of an encoder or decoder are taken from this model."""
        return self.takes(kind) and bool((self.config.get(kind) or {}).get("lora"))

    def tokenizer(self) -> Any:
        """Load the tokenizer that the decoder was trained with."""
        return load_exported_tokenizer(self.folder)

    def ctc_vocabulary(self) -> CtcVocabulary:
        """Return the characters of the CTC head.

        Raises:
            UserError: the model has no CTC head.
        """
        characters = self.config.get("ctc_characters")
        if characters is None:
            raise UserError(
                f"training.init_from: {self.folder} has no CTC head; set training.init_from.parts to "
                "the other parts, without ctc_head"
            )
        return CtcVocabulary(tuple(characters))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights, config and tokenizer."""
        return folder_identity(self.folder)

    def load_into(self, model: TinyAudioModel) -> None:
        """Copy the weights of the parts in ``training.init_from.parts`` into ``model``.

        If a part of the exported model has no adapters, the recipe may add adapters to it.

        Raises:
            UserError: the adapters or tensors of the exported model do not fit the recipe's model.
        """
        problems = list(self._adapter_problems(model.config))
        if problems:
            raise UserError("\n".join([f"training.init_from: {self.folder} does not fit this recipe:", *problems]))
        prefixes = tuple(f"{part}." for part in ALL_PARTS if self.takes(part))
        saved = {name: tensor for name, tensor in self._tensors().items() if name.startswith(prefixes)}
        fresh = tuple(f"{kind}." for kind in _ADAPTED if not (self.config.get(kind) or {}).get("lora"))
        own = {}
        for name in model.state_dict().keys() - model.all_tied_weights_keys.keys():
            if name.startswith(fresh):
                if ".lora_" not in name:
                    own[without_adapters(name)] = name
            elif name.startswith(prefixes):
                own[name] = name
        own = {name: target for name, target in own.items() if name.startswith(prefixes)}
        self._check_fits(saved, {name: model.get_parameter_or_buffer(target) for name, target in own.items()})
        for name, target in own.items():
            there, here = saved[name], model.get_parameter_or_buffer(target)
            # Use the more precise type. Half precision could round away the small changes that merged adapters made.
            here.data = there.to(here.device, torch.promote_types(there.dtype, here.dtype))

    def _tensors(self) -> dict[str, Tensor]:
        """Read all tensors of the model, by name. Tied tensors occur once."""
        referring = {kind for kind in self.config.get("base_weights") or {} if self.takes(kind)}
        try:
            if referring:
                whole, _ = load_model(self.folder, types_as_saved=True)
                tied = whole.all_tied_weights_keys
                return {name: tensor for name, tensor in whole_state(whole).items() if name not in tied}
            return {name: tensor for file in self._files for name, tensor in load_file(file).items()}
        except UserError as error:
            raise UserError(f"training.init_from: {error}") from error
        except (SafetensorError, OSError) as error:
            raise UserError(f"training.init_from: cannot read the weights in {self.folder}: {error}") from error

    def _adapter_problems(self, own: TinyAudioConfig) -> Iterator[str]:
        for kind in _ADAPTED:
            if not self.takes(kind):
                continue
            there, here = ((section or {}).get("lora") for section in (self.config.get(kind), getattr(own, kind)))
            if there is None or (here is not None and _adapters(there) == _adapters(here)):
                continue
            settings = ", ".join(f"{key}: {value}" for key, value in _adapters(there).items())
            yield (
                f"  {kind}.lora: that model has adapters ({settings}), but this recipe has "
                f"{'other adapters' if here else 'none'}. To train that model's adapters further, set {kind}.lora to "
                f"the same values. Or merge that model's adapters with `tiny-audio export {self.folder} DIR "
                "--merge-lora`, and start from DIR"
            )

    def _check_fits(self, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        problems = [f"{name} is not in that model" for name in sorted(own.keys() - saved.keys())]
        problems += [f"{name} is not in this recipe's model" for name in sorted(saved.keys() - own.keys())]
        problems += [
            f"{name} is {list(saved[name].shape)} in that model and {list(own[name].shape)} in this recipe's model"
            for name in sorted(own.keys() & saved.keys())
            if own[name].shape != saved[name].shape
        ]
        if problems:
            more = f"\n  … and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise UserError(
                f"training.init_from: {self.folder} does not fit this recipe:\n  "
                + "\n  ".join(problems[:8])
                + more
                + "\nUse the same parts as that run, or set training.init_from.parts to the parts that fit."
            )


def _adapters(lora: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that affect the output of adapters."""
    variants = {name: True for name in ("dora", "rslora") if lora.get(name)}  # older exports lack these fields
    return {"rank": lora["rank"], "alpha": lora["alpha"], "targets": sorted(lora["targets"])} | variants


@dataclass(frozen=True)
class PretrainedHead:
    """A CTC head that was released with an encoder, and its characters.

    V: number of labels. D: number of encoder channels.
    """

    vocabulary: CtcVocabulary
    weight: Tensor
    """``[V, D]``. Row 0 is the blank. Rows of special symbols are left out."""
    bias: Tensor
    """``[V]``."""

    @classmethod
    def read(cls, encoder: EncoderConfig) -> PretrainedHead:
        """Read the head from the encoder's checkpoint.

        Raises:
            UserError: the checkpoint has no head, or no vocabulary of characters.
        """
        assert encoder.ctc_head is not None, "ctc.init: pretrained needs an encoder family with CTC checkpoints"
        names = [f"{encoder.ctc_head}.weight", f"{encoder.ctc_head}.bias"]
        tensors = _read_tensors(encoder, names)
        if len(tensors) < len(names):
            raise UserError(
                f"ctc.init: {encoder.pretrained!r} has no CTC head ({', '.join(names)}); choose a checkpoint that was "
                "fine-tuned with CTC, or set ctc.init: random"
            )
        weight, bias = (tensors[name].float() for name in names)
        tokenizer = _read_tokenizer(encoder)
        delimiter = tokenizer.word_delimiter_token
        special = {*tokenizer.all_special_tokens, "<s>", "</s>", "<unk>", "<pad>"} - {delimiter}
        spelled = {
            " " if symbol == delimiter else symbol: index
            for symbol, index in tokenizer.get_vocab().items()
            if symbol not in special and index < len(weight)
        }
        blank = tokenizer.pad_token_id
        odd = next((symbol for symbol in spelled if len(symbol) != 1), None)
        if odd is not None or blank is None or blank >= len(weight):
            reason = "tokenizer has no blank" if odd is None else f"label {odd!r} is not a single character"
            raise UserError(
                f"ctc.init: the head of {encoder.pretrained!r} cannot be used: its {reason}; set ctc.init: random"
            )
        lowered = {_lower(symbol): index for symbol, index in spelled.items()}
        if len(lowered) == len(spelled):
            spelled = lowered
        vocabulary = CtcVocabulary.of(spelled)
        rows = [blank, *(spelled[character] for character in vocabulary.characters)]
        return cls(vocabulary, weight[rows], bias[rows])

    def load_into(self, head: nn.Linear) -> None:
        """Copy weight and bias into ``head``."""
        with torch.no_grad():
            head.weight.copy_(self.weight)
            head.bias.copy_(self.bias)


def _lower(character: str) -> str:
    """Return the character in lower case. A character whose lower case is two characters, such as İ, is kept."""
    lower = character.lower()
    return lower if len(lower) == 1 else character


def _read_tokenizer(part: EncoderConfig) -> Any:
    """Load the tokenizer of a checkpoint's CTC head.

    The class is named here, because ``AutoTokenizer`` does not find it for most encoder families.
    """
    from transformers import Wav2Vec2CTCTokenizer

    try:
        return Wav2Vec2CTCTokenizer.from_pretrained(part.pretrained, revision=part.revision)
    except (OSError, ValueError, TypeError) as error:  # TypeError: there is no vocab.json
        raise UserError(
            f"ctc.init: cannot read vocab.json, the vocabulary of {part.pretrained!r}: "
            f"{first_line(error)}; choose a checkpoint with a tokenizer, or set ctc.init: random"
        ) from error


def _read_tensors(part: EncoderConfig, names: list[str]) -> dict[str, Tensor]:
    """Read only the named tensors of a checkpoint, because the whole checkpoint may take gigabytes."""
    from transformers.utils import cached_file

    def fetch(file: str) -> Path | None:
        try:
            found = cached_file(
                part.pretrained, file, revision=part.revision, _raise_exceptions_for_missing_entries=False
            )
        except (OSError, ValueError) as error:
            raise UserError(f"ctc.init: cannot read {part.pretrained!r}: {first_line(error)}") from error
        return None if found is None else Path(found)

    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        listed = fetch(index)
        of: dict[str, str] = (
            json.loads(listed.read_text(encoding="utf-8"))["weight_map"] if listed else dict.fromkeys(names, single)
        )
        tensors = {}
        for name in names:
            path = fetch(of[name]) if name in of else None
            if path is None:
                continue
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    if name in file.keys():  # noqa: SIM118  # safe_open is not a mapping
                        tensors[name] = file.get_tensor(name)
            else:
                # Only zip archives can be memory-mapped. They are the format of torch.save since torch 1.6.
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
                if name in loaded:
                    tensors[name] = loaded[name].clone()
        if tensors:
            return tensors
    return {}
