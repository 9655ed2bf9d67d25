"""Save and load a model like transformers, but reject missing, unexpected and mismatched tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tiny_audio.config import UserError
from tiny_audio.model import base_weights
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.generation_file import read_generation, write_generation
from tiny_audio.pretrained.quantization import quantize, whole_state
from tiny_audio.runtime.quiet import errors_only


class SavedModel(PreTrainedModel):  # type: ignore[misc]  # transformers is untyped here
    """A transformers model whose config has the fields ``base_weights``, ``generation`` and ``end_token_id``."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load like transformers, but reject missing, unexpected and mismatched keys.

        Weights that are not in the export come from the pretrained checkpoints of encoder and decoder. With
        ``output_loading_info``, wrong keys are returned and raise no error. By default, only safetensors are read.

        Raises:
            UserError: a key is missing or unexpected or has another shape, or a base checkpoint cannot be read.
        """
        name, returns_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        allows_shapes = kwargs.pop("ignore_mismatched_sizes", False)
        settings = {"use_safetensors": True, **kwargs, "ignore_mismatched_sizes": True}
        with errors_only():  # hides transformers' report on wrong keys, which are checked below
            model, info = super().from_pretrained(name, *args, output_loading_info=True, **settings)
        missing = set(info["missing_keys"]) - model.all_tied_weights_keys.keys()
        info["missing_keys"] = missing - base_weights.complete(model, model.config, missing)
        if "decoder" in (model.config.base_weights or {}) and (kind := model.config.decoder.get("quantization")):
            quantize(model.decoder, kind)
        model.config.base_weights = None
        problems = dict(info) | ({"mismatched_keys": ()} if allows_shapes else {})
        if not returns_info and (found := "; ".join(base_weights.key_problems(problems))):
            raise UserError(f"{name}: the weights do not match config.json: {found}; copy or export the model again")
        if name is not None:
            model.config.generation = read_generation(str(name), model.config.generation, kwargs)
        return (model, info) if returns_info else model

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save like transformers, and write ``generation_config.json`` from the model's own settings.

        Quantized weights are dequantized before they are written, so that they can be loaded without bitsandbytes.
        """
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        settings = GenerationConfig(**self.config.generation)
        write_generation(settings, self.config.end_token_id, Path(save_directory))
        if kwargs.get("state_dict") is None:
            kwargs["state_dict"] = whole_state(self)
        super().save_pretrained(save_directory, **kwargs)
