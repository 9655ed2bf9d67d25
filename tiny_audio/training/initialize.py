"""``training.init_from``: weights of another run, every key accounted for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tiny_audio.config import UserError
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.export import load_exported_tokenizer
from tiny_audio.model import TinyAudioModel
from tiny_audio.recipe import InitFrom

ALL_PARTS = ("encoder", "projector", "decoder", "ctc_head")


class StartingPoint:
    """An exported model that training starts from.

    Raises:
        UserError: there is no finished model at the path.
    """

    def __init__(self, config: InitFrom) -> None:
        path = Path(config.path).expanduser()
        self.folder = path / "model" if (path / "model").is_dir() else path
        self.wanted = config.parts
        self._files = sorted(self.folder.glob("*.safetensors"))
        if not self._files or not (self.folder / "config.json").is_file():
            raise UserError(
                f"training.init_from.path: {config.path} holds no trained model (no config.json and *.safetensors); "
                "finish that run first, or give the folder of an exported model"
            )
        try:
            self.config: dict[str, Any] = dict(json.loads((self.folder / "config.json").read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(f"training.init_from: {self.folder / 'config.json'} is damaged: {error}") from error

    def takes(self, part: str) -> bool:
        """Whether this part's weights come from here."""
        return self.wanted is None or part in self.wanted

    def tokenizer(self) -> Any:
        """The one that its decoder was trained with."""
        return load_exported_tokenizer(self.folder)

    def ctc_vocabulary(self) -> CtcVocabulary:
        """Labels of its CTC head.

        Raises:
            UserError: it has none.
        """
        characters = self.config.get("ctc_characters")
        if characters is None:
            raise UserError(
                f"training.init_from: {self.folder} has no CTC head; name the parts to take, without ctc_head"
            )
        return CtcVocabulary(tuple(characters))

    def fingerprint(self) -> str:
        """SHA-256 of its weights: part of the identity of what is trained from them."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def load_into(self, model: TinyAudioModel) -> None:
        """Copy the wanted parts' weights.

        Raises:
            UserError: a key is missing, unexpected, or of another shape.
        """
        try:
            saved = {name: tensor for file in self._files for name, tensor in load_file(file).items()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"training.init_from: cannot read the weights in {self.folder}: {error}") from error
        own = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
        prefixes = tuple(f"{part}." for part in self.wanted or ALL_PARTS)
        saved = {name: tensor for name, tensor in saved.items() if name.startswith(prefixes)}
        own = {name: tensor for name, tensor in own.items() if name.startswith(prefixes)}
        problems = [f"{name} is missing there" for name in sorted(own.keys() - saved.keys())]
        problems += [f"{name} has no place in this recipe's model" for name in sorted(saved.keys() - own.keys())]
        problems += [
            f"{name} is {list(saved[name].shape)} there and {list(own[name].shape)} here"
            for name in sorted(own.keys() & saved.keys())
            if own[name].shape != saved[name].shape
        ]
        if problems:
            more = f"\n  … and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise UserError(
                f"training.init_from: {self.folder} does not fit this recipe:\n  "
                + "\n  ".join(problems[:8])
                + more
                + "\nUse the same parts as that run, or name the ones to take in training.init_from.parts."
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])
