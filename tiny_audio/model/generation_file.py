"""Write and read ``generation_config.json``, the file with the decoding settings of transformers' models.

When a model is loaded, the settings in this file override those in ``config.json``, so users can change settings here.
``ctc_weight``, ``ctc_search`` and ``draft`` are only in ``config.json``, because transformers has no such fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tiny_audio.config import UserError, problems
from tiny_audio.model.decoding import GenerationConfig

NAME = "generation_config.json"
_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""Arguments of ``from_pretrained`` that determine the source of files."""


def write_generation(settings: GenerationConfig, end_token_id: int, folder: Path) -> None:
    """Write ``generation_config.json`` to ``folder``."""
    from transformers import GenerationConfig as TransformersConfig

    TransformersConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        do_sample=False,
        eos_token_id=end_token_id,
        pad_token_id=end_token_id,
    ).save_pretrained(folder)


def read_generation(name: str, own: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in ``own``, updated from the file if it exists.

    Args:
        name: folder or hub id of the model.
        own: the settings in ``config.json``.
        arguments: the arguments of ``from_pretrained``.

    Raises:
        UserError: the file is damaged, sets ``do_sample``, or has an invalid value.
    """
    from transformers.utils import cached_file

    where = {key: value for key, value in arguments.items() if key in _HUB and value is not None}
    path = cached_file(name, NAME, _raise_exceptions_for_missing_entries=False, **where)
    if path is None:
        return own
    try:
        read = json.loads(Path(path).read_text(encoding="utf-8"))
        if read.get("do_sample"):
            raise UserError(f"{NAME} of {name} sets do_sample, which is not supported; set do_sample to false")
        changes = {key: read[key] for key in ("max_new_tokens", "num_beams") if read.get(key) is not None}
        return GenerationConfig(**{**own, **changes}).model_dump(mode="json")
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"{NAME} of {name} cannot be used: {problems(error)}; correct the file") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{NAME} of {name} cannot be used: {' '.join(str(error).split())}; correct the file") from error
