"""Find the targets (models and providers) that the command line names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tiny_audio.config import UserError, expand_path, first_line
from tiny_audio.evaluation._transformers import TransformersOptions, TransformersTarget
from tiny_audio.evaluation.contexts import ClipContexts, ContextOptions
from tiny_audio.evaluation.targets import OwnTarget, ProviderTarget, Target
from tiny_audio.export import NEEDED_FILES
from tiny_audio.export.load import model_folder, read_config
from tiny_audio.model.config import TinyAudioConfig
from tiny_audio.providers import PROVIDERS
from tiny_audio.runtime.spec import folder_name, invalid_fields, parse_part, split_spec

_PROVIDER = "provider:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_targets(texts: Sequence[str]) -> list[Target]:
    """Find all targets without loading them.

    Args:
        texts: each is the folder of a run or of a model, a model on the hub, or ``provider:NAME``. Options may follow,
            as in ``MODEL:key=value,...``.

    Raises:
        UserError: a target does not exist, or two targets have the same name.
    """
    targets: dict[str, Target] = {}
    for text in texts:
        target = resolve_target(text)
        if target.label in targets:
            raise UserError(
                f"{text}: there are two targets called {target.label!r}; rename a folder, or evaluate the targets one "
                "by one, each with its own --output-dir"
            )
        targets[target.label] = target
    return list(targets.values())


def resolve_target(text: str) -> Target:
    """Find one target (see :func:`resolve_targets`)."""
    if text.startswith(_PROVIDER):
        name, fields = split_spec(text.removeprefix(_PROVIDER))
        config = parse_part(PROVIDERS, {"name": name} | fields, text)
        return ProviderTarget(folder_name(text.removeprefix(_PROVIDER).replace(":", "-", 1)), config)
    folder = Path(expand_path(text))
    if folder.is_dir():
        return _in_folder(text, folder, {})
    if folder.exists():
        raise UserError(f"{text} is a file; give the folder of a run or of a model")
    # These fields stay strings. For example, YAML would read a commit that consists only of digits as a number.
    name, fields = split_spec(text, ["revision", "language", "hotwords"])
    folder = Path(expand_path(name))
    if fields and folder.is_dir():
        return _in_folder(text, folder, fields)
    if text in PROVIDERS.names() or name in PROVIDERS.names():
        raise UserError(f"{text}: there is no folder of that name; for the provider write provider:{text}")
    if not _HUB_ID.fullmatch(name):
        raise UserError(
            f"{name} is neither a folder nor a model on the hub (owner/model); give the folder of a run or of a model"
        )
    return _on_hub(text, name, fields)


def _in_folder(text: str, folder: Path, fields: dict[str, Any]) -> Target:
    folder = model_folder(folder)
    path = folder / "config.json"
    whole = folder.absolute()
    label = folder_name((whole.parent if whole.name == "model" else whole).name)
    label = label if not fields else f"{label}-{folder_name(text.partition(':')[2])}"
    weights = [file for pattern in ("*.safetensors", "*.json", "*.bin") for file in folder.glob(pattern)]
    files = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(weights)}
    identity = {"path": str(whole), "files": files}
    return _of_kind(text, label, folder, _model_type(path), fields, identity)


def _on_hub(text: str, name: str, fields: dict[str, Any]) -> Target:
    import httpx2
    from huggingface_hub import hf_hub_download, snapshot_download

    revision = fields.get("revision")
    try:
        path = Path(hf_hub_download(name, "config.json", revision=revision))
        kind = _model_type(path)
        if kind == TinyAudioConfig.model_type:
            place = Path(snapshot_download(name, revision=revision, allow_patterns=list(NEEDED_FILES)))
        else:
            place = Path(name)
    except (OSError, ValueError, httpx2.HTTPError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{name}: there is no folder with this name, and the model cannot be downloaded from the Hugging Face hub: "
            f"{first_line(error)}"
        ) from error
    # In the hub's cache, each file is in a snapshot folder that is named after the commit.
    identity = {"hub": name, "commit": path.parent.name}
    label = folder_name(text.replace("/", "--").replace(":", "-", 1))
    return _of_kind(text, label, place, kind, fields, identity)


def _of_kind(text: str, label: str, place: Path, kind: str, fields: dict[str, Any], identity: dict[str, Any]) -> Target:
    if kind == TinyAudioConfig.model_type:
        try:
            options = ContextOptions(**{key: value for key, value in fields.items() if key != "revision"})
        except ValidationError as error:
            raise invalid_fields(error, ContextOptions, text) from None
        return OwnTarget(label, place, {"kind": "tiny_audio", **identity}, ClipContexts.of(options))
    try:
        settings = TransformersOptions(**fields)
    except ValidationError as error:
        raise invalid_fields(error, TransformersOptions, text) from None
    return TransformersTarget(label, place, kind, settings, identity)


def _model_type(path: Path) -> str:
    kind = read_config(path).get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{path} has no model_type; give the folder of a run or of a transformers model")
    return kind
