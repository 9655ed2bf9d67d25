"""YAML as people mean it: safe, small, no duplicate keys, ``1e-4`` a number, ``no`` a word; extends and overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tiny_audio.config import UserError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 40
MAX_EXTENDS = 8

Document = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars instead of 1.1's, no aliases (they allow bombs, and `extends` serves), bounded depth."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own protocol

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem="aliases are not supported; write the value out, or use `extends`",
                problem_mark=event.start_mark,
            )
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_document_mapping(self, node: yaml.MappingNode) -> Document:
        mapping: Document = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"keys must be names, not {key!r}", problem_mark=key_node.start_mark
                )
            if key in mapping:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key {key!r}; remove one of them", problem_mark=key_node.start_mark
                )
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_document_mapping)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def read_yaml(path: Path) -> Document:
    """A mapping from a file, with what it ``extends`` merged under it.

    Mappings merge key by key; anything else replaces. A mapping that names another part than the one it extends
    replaces it whole, since the fields of one part mean nothing to another.

    Raises:
        UserError: the file cannot be read, is no YAML mapping, or extends itself.
    """
    return _read(path, [])


def _read(path: Path, children: list[Path]) -> Document:
    where = path.resolve()
    if where in children or len(children) >= MAX_EXTENDS:
        chain = " -> ".join(str(child) for child in [*children, where])
        raise UserError(f"extends: {chain} goes in a circle, or is longer than {MAX_EXTENDS} files")
    document = parse_mapping(_text(path), str(path))
    base = document.pop("extends", None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise UserError(f"{path}: extends must be the path of a recipe, not {base!r}")
    return _merge(_read(path.parent / base, [*children, where]), document)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give the recipe file in it") from None
    except FileNotFoundError:
        raise UserError(f"there is no recipe at {path}; recipes that ship with the project are in recipes/") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"cannot read {path}: {error}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES // 1024} KiB; a recipe is a small file, is this one?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 (byte {error.start}); is it a recipe?") from None


def parse_mapping(text: str, name: str) -> Document:
    """A YAML mapping from text; ``name`` is what errors call it."""
    document = _parse(text, name)
    if not isinstance(document, dict):
        kind = "empty" if document is None else f"a {type(document).__name__}"
        raise UserError(f"{name} must be a mapping of sections such as `encoder:`, and is {kind}")
    return document


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{name}{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name} is no valid YAML: {str(error).splitlines()[0] if str(error) else 'too deep'}") from None


def _merge(base: Document, extension: Document) -> Document:
    merged = dict(base)
    for key, value in extension.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, str) and "name" not in value:
            below = {"name": below}
        mergeable = isinstance(below, dict) and isinstance(value, dict)
        if mergeable and value.get("name", below.get("name")) == below.get("name"):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """``training.steps=100`` sets one field, creating what leads to it; values are read as YAML.

    Raises:
        UserError: no ``=``, an empty name, or a path through something that is no mapping.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise UserError(f"override {override!r} is not of the form section.field=value, such as training.steps=100")
        value = _parse(text, f"override {path}")
        document = _set(document, keys, value, override)
    return document


def _set(document: Document, keys: Sequence[str], value: Any, override: str) -> Document:
    key, *rest = keys
    if not rest:
        return document | {key: value}
    below = document.get(key)
    if isinstance(below, str):
        below = {"name": below}  # `projector: conv` is short for this
    if below is None:
        below = {}
    if not isinstance(below, dict):
        raise UserError(f"override {override!r}: {key} is {below!r}, which has no field {rest[0]!r}")
    return document | {key: _set(below, rest, value, override)}
