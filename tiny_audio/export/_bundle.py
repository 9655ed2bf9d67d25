"""Build the flat bundle: one folder with all modules that a model needs. transformers loads them as remote code.

When transformers loads a model, it copies the main file of the model's code, and the files that the main file imports.
It finds the imports with a regular expression for ``from .name import``, and does not support packages. Therefore each
module becomes a file in one folder (``tiny_audio.encoders.whisper`` becomes ``encoders_whisper.py``), and its imports
are rewritten.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.util
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

from tiny_audio import __version__
from tiny_audio.config import UserError

PACKAGE = "tiny_audio"
CONFIG, MODEL, PROCESSOR = "tiny_audio.model.config", "tiny_audio.model.model", "tiny_audio.model.processor"
PIPELINE = "tiny_audio.inference.pipeline"
_MAIN_FILES = {
    CONFIG: "configuration_tiny_audio",
    MODEL: "modeling_tiny_audio",
    PROCESSOR: "processing_tiny_audio",
    PIPELINE: "pipeline_tiny_audio",
}
"""Module -> file name that Hugging Face users expect, without suffix."""


@dataclass(frozen=True)
class _Import:
    """An import statement, the statements that replace it, and the bundled modules that it imports."""

    node: ast.Import | ast.ImportFrom
    statements: list[str]
    modules: list[str]


def bundle(parts: Collection[str]) -> dict[str, str]:
    """Return the source code of each file of a bundle, by file name.

    Args:
        parts: names of the modules that define the model's parts. Imported modules are bundled too if they belong to
            Tiny Audio or to the top-level package of a part. Other packages must be installed on the machine that loads
            the model.

    Raises:
        UserError: a module has no source, or has an import that cannot be rewritten for a flat folder.
    """
    for part in parts:
        if part == "__main__":
            raise UserError(
                "a part that is defined in a notebook or in the main script cannot be exported; move the part to its "
                "own module, and import that module"
            )
    owned = {PACKAGE, *(part.partition(".")[0] for part in parts)}
    files: dict[str, str] = {}
    origins: dict[str, str] = {}
    waiting = [MODEL, PROCESSOR, PIPELINE, *parts]
    while waiting:
        module = waiting.pop()
        name = flat_name(module)
        if origins.setdefault(name, module) != module:
            raise UserError(f"the modules {origins[name]} and {module} would both be exported as {name}.py; rename one")
        if f"{name}.py" in files:
            continue
        text, imported = _flattened(module, owned)
        if module == MODEL:
            text = _with_parts(text, parts)
        files[f"{name}.py"] = text
        waiting += imported
    return files


def flat_name(module: str) -> str:
    """Return the file name of a module in the bundle, without its suffix.

    >>> flat_name("tiny_audio.encoders.whisper"), flat_name("tiny_audio.model.model"), flat_name("plugin.conv")
    ('encoders_whisper', 'modeling_tiny_audio', 'plugin_conv')
    """
    return _MAIN_FILES.get(module) or module.removeprefix(f"{PACKAGE}.").replace(".", "_")


def _flattened(module: str, owned: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Return a module's source with rewritten imports, and the names of the bundled modules that it imports."""
    spec = importlib.util.find_spec(module)
    loader = spec.loader if spec else None
    source = loader.get_source(module) if isinstance(loader, importlib.abc.InspectLoader) else None
    if spec is None or source is None:
        raise UserError(
            f"the source of the module {module} cannot be read, so the module cannot be exported; install the module "
            "as Python source code"
        )
    return _with_flat_imports(source, module, spec.submodule_search_locations is not None, frozenset(owned))


@lru_cache(maxsize=1000)  # a sweep exports many models
def _with_flat_imports(
    source: str, module: str, is_package: bool, owned: frozenset[str]
) -> tuple[str, tuple[str, ...]]:
    path = module.replace(".", "/") + ("/__init__.py" if is_package else ".py")
    package = module if is_package else module.rpartition(".")[0]
    # Split bytes, because ast counts columns in bytes.
    lines = source.encode().splitlines(keepends=True)
    imports = [
        found
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom) and (found := _flat_import(node, package, path, owned))
    ]
    for found in sorted(imports, key=lambda found: found.node.lineno, reverse=True):
        node = found.node
        assert node.end_lineno is not None
        first, last = lines[node.lineno - 1], lines[node.end_lineno - 1]
        indent = first[: node.col_offset]
        if indent.strip():
            raise UserError(f"{path}:{node.lineno}: transformers finds only imports that begin a line; split the line")
        replacement = (b"\n" + indent).join(statement.encode() for statement in found.statements)
        lines[node.lineno - 1 : node.end_lineno] = [indent + replacement + last[node.end_col_offset :]]
    header = f"# Generated by tiny-audio {__version__} from {path}; the next export overwrites it.\n"
    return header + b"".join(lines).decode(), tuple(name for found in imports for name in found.modules)


def _flat_import(node: ast.Import | ast.ImportFrom, package: str, path: str, owned: Collection[str]) -> _Import | None:
    """Return the import rewritten for a flat folder, or None if the imported package is not bundled."""
    if isinstance(node, ast.Import):
        own = [alias for alias in node.names if alias.name.partition(".")[0] in owned]
        if not own:
            return None
        if len(node.names) > 1 or own[0].asname is None:
            raise UserError(
                f"{path}:{node.lineno}: `{ast.unparse(node)}` cannot be exported, because all modules of an export "
                f"are in one folder; write `from {own[0].name} import ...`"
            )
        return _Import(node, _module_import(own[0].name, own[0].asname), [own[0].name])
    base = node.module or ""
    if node.level:
        base = importlib.util.resolve_name("." * node.level + base, package)
    if base.partition(".")[0] not in owned:
        return None
    statements, modules, names = [], [], []
    for alias in node.names:
        if _is_module(base, alias.name):
            modules.append(f"{base}.{alias.name}")
            statements += _module_import(modules[-1], alias.asname or alias.name)
        else:
            names.append(ast.unparse(alias))
    if names:
        modules.append(base)
        statements.insert(0, f"from .{flat_name(base)} import {', '.join(names)}")
    return _Import(node, statements, modules)


def _is_module(package: str, name: str) -> bool:
    """Whether ``from package import name`` imports a module."""
    if name == "*":
        return False
    base = importlib.import_module(package)
    value = getattr(base, name, None)
    if value is not None or not hasattr(base, "__path__"):
        return isinstance(value, ModuleType) and value.__name__ == f"{package}.{name}"
    return importlib.util.find_spec(f"{package}.{name}") is not None


def _module_import(module: str, name: str) -> list[str]:
    """Return statements that bind ``name`` to the module.

    transformers does not find files that are imported with ``from . import``, so the first statement imports a name
    from the file.
    """
    flat = flat_name(module)
    renamed = "" if flat == name else f" as {name}"
    return [f"from .{flat} import __name__ as _{flat}", f"from . import {flat}{renamed}"]


def _with_parts(text: str, parts: Iterable[str]) -> str:
    """Add imports of the model's parts to the model's module, because no registry discovers parts in a flat folder.

    Also add an import of the pipeline, in a branch that never runs. Without this import, transformers would not copy
    the pipeline's file when a loaded model is saved again.
    """
    own = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    last = own[-1].end_lineno
    assert last is not None
    lines = text.splitlines(keepends=True)
    added = ["\n# The parts of this model register themselves.\n"]
    added += [f"from .{flat_name(part)} import __name__ as _{flat_name(part)}\n" for part in dict.fromkeys(parts)]
    pipeline = flat_name(PIPELINE)
    mention = f"\n\nif False:\n    from .{pipeline} import __name__ as _{pipeline}\n"
    return "".join([*lines[:last], *added, *lines[last:], mention])
