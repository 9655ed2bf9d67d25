"""``generation_config.json``: what transformers' users look into for how text is searched for. It says what is done.

Written from the model's own settings and read back into them, so a changed file changes what the model does. How much a
CTC head has to say is in ``config.json`` alone, since transformers knows no such field.
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
"""Arguments of ``from_pretrained`` that say where files come from."""


def write_generation(settings: GenerationConfig, end_token_id: int, folder: Path) -> None:
    """Write the file."""
    from transformers import GenerationConfig as Theirs

    Theirs(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        do_sample=False,
        eos_token_id=end_token_id,
        pad_token_id=end_token_id,
    ).save_pretrained(folder)


def read_generation(name: str, own: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The model's settings as a mapping: ``own``, changed as the file says, where there is one.

    Args:
        name: folder or hub id of the model.
        own: its settings in ``config.json``.
        arguments: those of ``from_pretrained``.

    Raises:
        UserError: the file is damaged, or asks for what is not done.
    """
    from transformers.utils import cached_file

    where = {key: value for key, value in arguments.items() if key in _HUB and value is not None}
    path = cached_file(name, NAME, _raise_exceptions_for_missing_entries=False, **where)
    if path is None:
        return own
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        if said.get("do_sample"):
            raise UserError(f"{NAME} of {name} sets do_sample, and transcripts are not sampled; set it to false")
        changes = {key: said[key] for key in ("max_new_tokens", "num_beams") if said.get(key) is not None}
        return GenerationConfig(**{**own, **changes}).model_dump(mode="json")
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"{NAME} of {name} cannot be used: {problems(error)}; correct it") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{NAME} of {name} cannot be used: {' '.join(str(error).split())}; correct it") from error
