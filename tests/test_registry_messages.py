"""The wording of the registry's error messages. ``registry_messages.txt`` contains the expected texts.

To regenerate the file: ``REGENERATE=1 pytest tests/test_registry_messages.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.golden import check_golden
from tests.support.tiny_registry import ConvConfig, Part, PartConfig, build_conv, build_linear, holder, make
from tiny_audio.config import RegistryError, UserError
from tiny_audio.registry import Registry


def without_annotation(config): ...


def with_another_type(config: int) -> Part: ...


class Unnamed(PartConfig):
    name: str = "conv"


def build_unnamed(config: Unnamed) -> Part: ...


def register_late() -> None:
    registry: Registry[Any, Any] = Registry("projector", PartConfig, entry_points="tests.parts")
    holder(registry)
    registry.register(build_conv)


def register(builder: Any) -> Callable[[], object]:
    return lambda: Registry("projector", PartConfig).register(builder)


def validate(part: str) -> Callable[[], object]:
    return lambda: holder(make()).model_validate_json(f'{{"part": {part}}}')


FAULTS: dict[str, Callable[[], object]] = {
    "a name that is taken": lambda: make().register(build_linear),
    "a registration after the schema was built": register_late,
    "a builder without an annotation": register(without_annotation),
    "a builder with another type": register(with_another_type),
    "a config without a literal name": register(build_unnamed),
    "a misspelled name": lambda: make().entry("con"),
    "a name that is like no other": lambda: make().entry("zzz"),
    "no registered part": lambda: Registry("encoder", PartConfig).entry("x"),
    "a misspelled name in a recipe": validate('"cov"'),
    "no name in a recipe": validate("{}"),
    "no part in a recipe": validate("null"),
}


def test_messages() -> None:
    assert ConvConfig().name == "conv"
    lines = []
    for fault, cause in FAULTS.items():
        with pytest.raises((RegistryError, UserError, ValidationError)) as caught:
            cause()
        error = caught.value
        text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        lines.append(f"{fault}\n    {type(error).__name__}: {text}\n")
    check_golden(Path(__file__).with_name("registry_messages.txt"), "\n".join(lines))
