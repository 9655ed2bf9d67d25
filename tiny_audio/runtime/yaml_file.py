"""Read recipe files: strict YAML 1.2 (``1e-4`` is a number, ``no`` is text), ``extends`` and overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tiny_audio.config import UserError, expand_path, first_line
from tiny_audio.runtime.shipped_recipes import find_file, nearest_recipes
from tiny_audio.runtime.text_files import decoded

MAX_BYTES = 256 * 1024
MAX_DEPTH = 40
MAX_EXTENDS = 8

Document = dict[str, Any]
_BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")


class _Loader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 instead of 1.1, limits the depth, and rejects aliases and tags.

    With aliases, a small file could expand to an enormous document.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own protocol
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _problem("aliases are not supported; repeat the value, or use `extends`", event.start_mark)
        if event.tag is not None:
            raise _problem(f"tags such as {_shown(event.tag)} are not supported; remove the tag", event.start_mark)
        if self.depth >= MAX_DEPTH:
            raise _problem(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+(_[0-9]+)*", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


class _Dumper(yaml.SafeDumper):
    """Quotes text that a YAML parser would read as another type: ``no`` in YAML 1.1, ``1e-4`` in YAML 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
        for first in {**yaml.SafeDumper.yaml_implicit_resolvers, **_Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        # Unicode line breaks and byte order marks must be escaped, which requires double quotes.
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _BREAKS.search(text) else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def dump_yaml(document: Document) -> str:
    """Return YAML that :func:`parse_mapping` reads back as an equal document. The order of keys is kept."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def read_yaml(path: Path) -> Document:
    """Read a mapping from a file. If the file ``extends`` another file, merge the mapping over that base.

    ``path`` and the value of ``extends`` can be paths, or names of recipes that ship with the package. A path in
    ``extends`` is relative to the folder of the file that contains it.

    Mappings are merged key by key. ``null`` removes the base's value, and other values replace it. A mapping whose
    ``name`` differs from the base's describes another part, so it replaces the base's mapping completely.

    Raises:
        UserError: a file cannot be read, is not a YAML mapping or extends itself, or the chain of files is too long.
    """
    return _read(find_file(expand_path(str(path))), [])


def _read(path: Path, children: list[Path]) -> Document:
    prefix = f"{children[-1]}: extends: " if children else ""
    document = parse_mapping(_text(path, prefix), str(path))
    real_path = Path(os.path.realpath(path))
    if real_path in children or len(children) >= MAX_EXTENDS:
        chain = " -> ".join(str(child) for child in [*children, real_path])
        raise UserError(f"extends: {chain} is a cycle, or a chain of more than {MAX_EXTENDS} files")
    if "extends" not in document:
        return document
    base = document.pop("extends")
    if not isinstance(base, str) or not base:
        raise UserError(f"{path}: extends must be the path of a recipe, not {_shown(base)}")
    return _merge(_read(find_file(expand_path(base), path.parent, but=path), [*children, real_path]), document)


def _text(path: Path, prefix: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise UserError(f"{prefix}{path} is a folder; give the recipe file in it") from None
    except FileNotFoundError:
        raise UserError(f"{prefix}{path} does not exist, and {nearest_recipes(path)}") from None
    except (OSError, ValueError) as error:  # ValueError is raised for a NUL in the path
        raise UserError(f"{prefix}cannot read {path}: {error}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{prefix}{path} is larger than {MAX_BYTES // 1024} KiB; is it a recipe?")
    try:
        return decoded(content)
    except UnicodeDecodeError as error:
        raise UserError(f"{prefix}{path} is not UTF-8 or UTF-16 text (byte {error.start}); is it a recipe?") from None


def parse_mapping(text: str, name: str) -> Document:
    """Read a YAML mapping from text.

    Args:
        name: the name of the text in error messages.

    Raises:
        UserError: the text is not YAML, or not a mapping.
    """
    document = _parse(text, name)
    if not isinstance(document, dict):
        kind = "empty" if document is None else _shown(document)
        raise UserError(f"{name} must be a mapping with sections such as `encoder:`, not {kind}")
    return document


def _parse(text: str, name: str) -> Any:
    try:
        node = yaml.compose(text, _Loader)
        return None if node is None else _value(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        message = ": ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{name}{line}: {message}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # escapes such as "\U00110000" raise the last two
        raise UserError(f"{name} is not valid YAML: {first_line(error)}") from None


def _value(node: yaml.Node) -> Any:
    """Convert a node to plain Python values.

    PyYAML's constructors are not used, because they would read ``010`` as 8 and raise errors of other types.
    """
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node)
    mapping: Document = {}
    for key_node, value_node in node.value:
        key = _value(key_node)
        if not isinstance(key, str):
            raise _problem(f"keys must be names, not {_shown(key)}", key_node.start_mark)
        if key in mapping:
            raise _problem(f"duplicate key {_shown(key)}; keep only one of the two", key_node.start_mark)
        mapping[key] = _value(value_node)
    return mapping


def _scalar(node: yaml.Node) -> str | int | float | bool | None:
    text: str = node.value
    match node.tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            if len(text) > 20 or abs(int(text)) >= 2**63:
                raise _problem(f"{_shown(text)} is too large for an integer", node.start_mark)
            return int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    try:
        # JSON writes a character beyond 16 bits as two escapes (a surrogate pair), which PyYAML does not join.
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _problem("one half of a surrogate pair is not a character", node.start_mark) from None


def _problem(message: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=mark)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _merge(base: Document, extension: Document) -> Document:
    merged = dict(base)
    for key, value in extension.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, str) and "name" not in value:
            below = {"name": below}
        if value is None and key in merged:  # if the base lacks the key, null is kept, so that validation sees the key
            del merged[key]
        elif isinstance(value, dict) and isinstance(below, dict) and _same_part(value, below):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _same_part(extension: Document, base: Document) -> bool:
    return "name" not in extension or extension["name"] == base.get("name")


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """Apply overrides such as ``training.steps=100``. Missing sections are created, and values are read as YAML.

    As in a file with ``extends``, ``null`` removes an entry.

    Raises:
        UserError: an override does not have this form, its value is not valid YAML, or its path leads through a value
            that is not a mapping.
    """
    for override in overrides:
        path, value = parse_override(override)
        document = set_field(document, path, value, name=f"override {_shown(override)}")
    return document


def parse_override(override: str) -> tuple[str, Any]:
    """Split an override such as ``training.steps=100`` into its dotted path and its value, which is read as YAML.

    Raises:
        UserError: the override does not have this form, or its value is not valid YAML.
    """
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or len(keys) > MAX_DEPTH or not all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys):
        raise UserError(
            f"override {_shown(override)} must have the form section.field=value, such as training.steps=100"
        )
    if keys == ["extends"]:
        raise UserError(f"override {_shown(override)}: extends works only in a recipe file; write it there")
    return path, _parse(text, f"override {path}")


def set_field(document: Document, path: str, value: Any, name: str | None = None) -> Document:
    """Return a copy of a document in which a field is set. Missing mappings on its path are created.

    If the value is None, an existing entry is removed.

    Args:
        path: the dotted path of the field, such as ``training.steps``.
        name: the name of the change in error messages. If None, the path is used.

    Raises:
        UserError: the path leads through a value that is not a mapping.
    """
    return _set(document, path.split("."), value, name or path)


def _set(document: Document, keys: Sequence[str], value: Any, name: str) -> Document:
    key, *rest = keys
    if not rest:
        if value is None and key in document:  # if the key is missing, null is set, so that validation sees the key
            return {other: document[other] for other in document if other != key}
        return document | {key: value}
    below = document.get(key)
    if isinstance(below, str):
        below = {"name": below}  # `projector: conv` is short for `projector: {name: conv}`
    if below is None:
        below = {}
    if not isinstance(below, dict):
        raise UserError(f"{name}: {key} is {_shown(below)} and has no field {rest[0]!r}")
    return document | {key: _set(below, rest, value, name)}
