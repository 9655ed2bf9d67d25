"""Registered parts in contract tests: their configs, and parts that break a contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tiny_audio.registry import Entry, Registry

Change = Callable[..., Any]


def parts(registry: Registry[Any, Any]) -> list[Entry[Any, Any]]:
    """Return the entries of all parts in the registry. There must be at least one."""
    entries = registry.entries()
    assert entries, f"no {registry.kind} is registered"
    return entries


def names(entries: Iterable[Entry[Any, Any]]) -> list[str]:
    return [entry.name for entry in entries]


def rebuilt_by(registry: Registry[Any, Any], name: str, change: Change, patch: pytest.MonkeyPatch) -> Any:
    """Make the registry apply ``change(part, config)`` to parts with this name. Return the part's ``tiny()`` config."""
    entry = registry.entry(name)

    def build(config: Any, context: Any) -> Any:
        part = entry.build(config, context)
        return change(part, config) or part

    patch.setitem(registry._entries, name, Entry(entry.name, entry.config, build))
    return entry.config.tiny()


def named(checks: tuple[Change, ...], name: str) -> Change:
    """Return the check with this name."""
    (check,) = [check for check in checks if check.__name__ == f"check_{name}"]
    return check


def check_config(entry: Entry[Any, Any]) -> None:
    """Check that a part has a summary, a ``tiny()`` config that survives JSON, and a docstring for every field."""
    assert entry.summary, f"{entry.config.__qualname__} has no docstring; `tiny-audio list` shows its first line"
    tiny = entry.config.tiny()
    assert type(tiny) is entry.config
    assert entry.config.model_validate_json(tiny.model_dump_json()) == tiny
    undocumented = list(_undocumented(entry.config, entry.config.__qualname__))
    assert not undocumented, f"fields without a docstring: {', '.join(undocumented)}"


def _undocumented(config: type[BaseModel], where: str) -> Iterable[str]:
    for name, field in config.model_fields.items():
        if not field.description and name != "name":
            yield f"{where}.{name}"
        for annotation in (field.annotation, *get_args(field.annotation)):
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from _undocumented(annotation, f"{where}.{name}")
