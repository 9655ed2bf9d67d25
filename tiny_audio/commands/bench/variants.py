"""The variants of a benchmark: projector sections with labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from tiny_audio.config import UserError, problems
from tiny_audio.projectors import PROJECTORS, ProjectorConfig
from tiny_audio.registry import did_you_mean
from tiny_audio.runtime.shipped_recipes import shipped_files
from tiny_audio.runtime.yaml_file import apply_overrides, read_yaml

_SECTIONS = ("variants", "controls")
_LABEL = re.compile(r"[^\s,=:][^,=:]{0,59}")


@dataclass(frozen=True)
class Variant:
    """One projector to compare."""

    label: str
    """Name in tables."""
    section: Mapping[str, Any]
    """A recipe's projector section: ``name`` and fields."""

    def config(self) -> ProjectorConfig:
        """Validate the section, and return it as the projector's config.

        Raises:
            UserError: the projector is unknown, or its fields are not valid.
        """
        try:
            return _adapter().validate_json(json.dumps(self.section))
        except ValidationError as error:
            raise UserError(f"variant {self.label}: {problems(error, skip=1)}") from None


@dataclass(frozen=True)
class Variants:
    """Projectors to compare, and controls that check the comparison."""

    compared: tuple[Variant, ...]
    controls: tuple[Variant, ...] = ()
    """Projectors that are degraded on purpose. If a benchmark does not find them worse, its verdicts are unreliable."""


def read_variants(text: str | None) -> Variants:
    """Read the value of ``--variants``.

    Args:
        text: the path of a YAML file, whose sections ``variants`` and ``controls`` (optional) map labels to projectors.
            Or a comma-separated list such as ``swiglu,conv:hidden_dim=512`` or
            ``wide=swiglu:stack=4+hidden_dim=16384``, where ``wide`` is a label. None means every registered projector.

    Raises:
        UserError: the text or file is not valid.
    """
    if text is None:
        return Variants(tuple(Variant(name, {"name": name}) for name in PROJECTORS.names()))
    if text.endswith((".yaml", ".yml")) or text in shipped_files():
        return _from_file(Path(text))
    return Variants(_unique([_from_text(item.strip()) for item in text.split(",")]))


def _from_text(text: str) -> Variant:
    head, colon, fields = text.partition(":")
    label, _, name = head.rpartition("=")
    overrides = fields.split("+") if colon else []
    if not name or not all("=" in item for item in overrides):
        raise UserError(
            f"--variants: {text!r} must be name, name:field=value+field=value or label=name:field=value, such as "
            "conv:hidden_dim=512; or give a YAML file with a section `variants`"
        )
    if label:
        _check_label(label, "--variants")
    section = apply_overrides({"name": PROJECTORS.entry(name).name}, overrides)
    return Variant(label or text.replace(":", " ").replace("+", " "), section)


def _from_file(path: Path) -> Variants:
    document = read_yaml(path)
    for key, section in document.items():
        if key not in _SECTIONS:
            raise UserError(f"{path}: unknown section {key!r}; {did_you_mean(key, _SECTIONS)}")
        if not isinstance(section, dict) or not section:
            raise UserError(f"{path}: {key} must map labels to projectors, such as `wide: {{name: swiglu, stack: 4}}`")
    if "variants" not in document:
        raise UserError(f"{path}: the section `variants` is missing; it maps labels to projectors")
    found = {
        key: [
            Variant(label, {"name": section} if isinstance(section, str) else section)
            for label, section in document.get(key, {}).items()
        ]
        for key in _SECTIONS
    }
    for variant in [*found["variants"], *found["controls"]]:
        if not isinstance(variant.section, dict):
            raise UserError(
                f"{path}: {variant.label} must be a projector's name or its section, not {variant.section!r}"
            )
        _check_label(variant.label, str(path))
        variant.config()
    _unique([*found["variants"], *found["controls"]])
    return Variants(tuple(found["variants"]), tuple(found["controls"]))


def _check_label(label: str, where: str) -> None:
    if not _LABEL.fullmatch(label):
        raise UserError(
            f"{where}: the label {label!r} must have 1 to 60 characters, no comma, equals sign or colon, and no space "
            "at its start; choose another label"
        )


def _unique(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    seen: set[str] = set()
    for variant in variants:
        if variant.label in seen:
            raise UserError(
                f"--variants: {variant.label!r} is given twice; give one of the two another label, in the form "
                "label=name:field=value"
            )
        seen.add(variant.label)
    return tuple(variants)


@cache
def _adapter() -> TypeAdapter[ProjectorConfig]:
    return TypeAdapter(Annotated[ProjectorConfig, PROJECTORS])
