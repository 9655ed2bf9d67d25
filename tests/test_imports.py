"""Who may import whom: parsed, not run."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tiny_audio

ROOT = Path(tiny_audio.__file__).parent

ORDER = [
    "config",
    "frames",
    "ctc",
    "registry",
    "runtime",
    "audio",
    "pretrained",
    "encoders",
    "projectors",
    "decoders",
    "sources",
    "providers",
    "analysis",
    "model",
    "data",
    "recipe",
    "inference",
    "plan",
    "testing",
    "export",
    "training",
    "evaluation",
    "commands",
    "cli",
]
"""Each imports only from those above it."""

TRAVELS = {"numpy", "pydantic", "pydantic_core", "soundfile", "torch", "transformers"}
"""What an exported model's code may import at its top."""
TRAVELS_INSIDE = TRAVELS | {"huggingface_hub", "jinja2", "peft", "safetensors", "tokenizers", "torchaudio"}
"""And inside functions."""
PARTS_ONLY = {"numpy", "pydantic", "pydantic_core", "torch"}
"""Listing parts and validating recipes imports their files, and must stay quick."""


@cache
def modules() -> dict[str, ast.Module]:
    """Dotted name below ``tiny_audio`` -> syntax tree; a package is its ``__init__``."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        steps = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(steps[:-1] if steps[-1] == "__init__" else steps)
        found[name] = ast.parse(path.read_text())
    return found


def imports(tree: ast.AST, *, functions: bool = True, types: bool = True) -> Iterator[str]:
    """Absolute dotted names of all that is imported, ``from package import module`` resolved to the module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not functions:
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            base = node.module or ""
            for alias in node.names:
                below = f"{base}.{alias.name}"
                yield below if below.removeprefix("tiny_audio.") in modules() else base
        else:
            yield from imports(node, functions=functions, types=types)


@cache
def own_imports(name: str) -> set[str]:
    """The modules of ours that one of ours imports; ``""`` is ``tiny_audio`` itself."""
    found = {module for module in imports(modules()[name]) if module.split(".")[0] == "tiny_audio"}
    return {module.removeprefix("tiny_audio").removeprefix(".") for module in found}


@cache
def concrete_parts() -> set[str]:
    """Modules that register something."""
    return {
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(mark, ast.Attribute) and mark.attr == "register" for mark in node.decorator_list)
    }


def top(name: str) -> str:
    return name.split(".")[0]


def is_private(name: str) -> bool:
    return any(step.startswith("_") and not step.startswith("__") for step in name.split("."))


NAMES = [name for name in modules() if name]


def test_there_is_something_to_look_at() -> None:
    assert len(NAMES) > 30
    assert len(concrete_parts()) >= 5
    assert "registry" in own_imports("encoders")


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_up_only(name: str) -> None:
    assert top(name) in ORDER, f"give {top(name)} a place in ORDER, as high as what it imports allows"
    for imported in own_imports(name) - {""}:
        assert imported in modules(), f"{name} imports tiny_audio.{imported}, which does not exist"
        if top(imported) != top(name):
            assert ORDER.index(top(imported)) < ORDER.index(top(name)), f"{name} imports {imported}, which is below it"


@pytest.mark.parametrize("name", NAMES)
def test_private_modules_stay_private(name: str) -> None:
    strangers = {
        imported
        for imported in own_imports(name)
        if is_private(imported) and not name.startswith(imported[: imported.index("._")])
    }
    assert not strangers, f"{name} imports the private {', '.join(strangers)}"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_imports_a_concrete_part(name: str) -> None:
    assert not own_imports(name) & concrete_parts(), "parts come through their registry, and share by a private module"


@pytest.mark.parametrize("name", sorted(concrete_parts()))
def test_a_part_imports_its_contract_and_private_modules_only(name: str) -> None:
    package = top(name)
    siblings = {imported for imported in own_imports(name) if top(imported) == package and imported != package}
    assert all(is_private(sibling) for sibling in siblings), f"{name} imports {siblings}"
    kinds = {"encoders", "projectors", "decoders", "sources"} - {package}
    assert not {top(imported) for imported in own_imports(name)} & kinds, "a part knows no other kind of part"


def traveling() -> set[str]:
    """All that an export may bundle: what the model reaches, and every part."""
    waiting = {
        "model.model",
        "inference.pipeline",
        "model.processor",
        "inference.transcriber",
        *(part for part in concrete_parts() if top(part) in ("encoders", "projectors", "decoders")),
    }
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= own_imports(name) - found - {""}
    return found


@pytest.mark.parametrize("name", sorted(traveling()))
def test_what_travels_needs_little(name: str) -> None:
    def foreign(*, functions: bool) -> set[str]:
        found = {module.split(".")[0] for module in imports(modules()[name], functions=functions, types=False)}
        return found - set(sys.stdlib_module_names) - {"tiny_audio"}

    assert foreign(functions=False) <= (PARTS_ONLY if name in concrete_parts() else TRAVELS)
    assert foreign(functions=True) <= TRAVELS_INSIDE
    assert top(name) not in ("analysis", "recipe", "training", "commands", "cli", "data", "sources")


def test_validating_a_recipe_loads_no_heavy_library() -> None:
    command = "import json, sys, tiny_audio.recipe; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    heavy = {"transformers", "peft", "datasets", "torchaudio", "soundfile", "tokenizers", "jiwer"}
    assert not loaded & heavy
    assert "pydantic" in loaded
