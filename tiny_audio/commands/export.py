"""``tiny-audio export``: write the model of a run or of an export to another folder."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_audio.config import UserError
from tiny_audio.export import EXPORTS, check_replaceable
from tiny_audio.export.card import base_licenses, model_card
from tiny_audio.export.load import load_model, model_folder
from tiny_audio.export.merge import merge_adapters
from tiny_audio.runtime.spec import parse_part, split_spec
from tiny_audio.runtime.text_files import decoded

_CARD = "README.md"


def export(
    run: Path, folder: Path, output_format: str, *, merge_lora: bool, weights: str | None, step: int | None = None
) -> None:
    """Write a model to another folder, and print the output's size.

    Args:
        run: folder of a run, of one of its checkpoints, or of an exported model.
        folder: the output folder. An earlier export in it is replaced.
        output_format: a registered format, or ``NAME:key=value,...`` to set its options.
        merge_lora: merge LoRA adapters into the base weights.
        weights: the format's option ``weights``. If None, the format's default is used.
        step: export the run's checkpoint of this step. If None, the model in ``run`` is exported.

    Raises:
        UserError: the format or an option is unknown, the model is missing or damaged, or the output folder
            must not be replaced.
    """
    name, options = split_spec(output_format)
    given = f"--format {output_format}"
    if weights is not None:
        options["weights"] = weights
        given += f" --weights {weights}"
    config = parse_part(EXPORTS, {"name": name} | options, given)
    from tiny_audio.commands.run.checkpoint import SavedStep

    saved = SavedStep.find(run, step)
    source = model_folder(run) if saved is None else saved.folder
    if folder.exists() and folder.resolve() == source.resolve():
        raise UserError(f"{folder} is the folder of the model itself; give another folder")
    check_replaceable(folder, type(config))
    card: str | None
    if saved is None:
        model, tokenizer = load_model(source, types_as_saved=True)
        card = _card(run, source)
    else:
        model, tokenizer, report = saved.load()
        card = model_card(report, base_licenses(report["recipe"]))
    merged = merge_adapters(model) if merge_lora else 0
    EXPORTS.build(config)(model, tokenizer, folder, card)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    adapters = f"; adapters of {merged} layers merged" if merge_lora else ""
    print(f"{folder}: {len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB{adapters}")


def _card(run: Path, source: Path) -> str | None:
    report = run / "report.json"
    if report.is_file():
        try:
            read = json.loads(report.read_text(encoding="utf-8"))
            return model_card(read, base_licenses(read["recipe"]))
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{report}: damaged, or written by another version: {type(error).__name__}: {error}; to write it "
                "again, run the same command that started the run"
            ) from error
    own = source / _CARD
    try:
        return decoded(own.read_bytes()) if own.is_file() else None
    except UnicodeDecodeError as error:
        raise UserError(f"{own}: not a text in UTF-8: {error}; save it as UTF-8, or remove it") from error
