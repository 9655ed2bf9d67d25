"""Rules for imports between modules. The tests read imports from the source code, without running most modules."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import tiny_audio
from tiny_audio.commands.show import REGISTRIES

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
    "serving",
    "commands",
    "cli",
]
"""The modules and packages directly in ``tiny_audio``. Each one imports only from those above it."""

PARTS = set(REGISTRIES) - {"exports"}
"""Packages of parts that must not depend on each other. Export formats are left out, because they use whole models."""

EXPORT_LIBRARIES = {"numpy", "pydantic", "pydantic_core", "soundfile", "torch", "transformers"}
"""Libraries that modules of an export may import at the top."""
EXPORT_FUNCTION_LIBRARIES = EXPORT_LIBRARIES | {
    *("bitsandbytes", "huggingface_hub", "jinja2", "peft", "safetensors", "tokenizers", "torchaudio"),
}
"""Libraries that modules of an export may import inside functions."""
PART_LIBRARIES = {"numpy", "pydantic", "pydantic_core", "torch"}
"""Libraries that a part may import at the top. They must import fast, because validating a recipe imports all parts."""
NEVER_EXPORTED = {"sources", "analysis", "data", "recipe", "training", "serving", "commands", "cli"}
"""Entries of ORDER that must not be in an export."""


@cache
def modules() -> dict[str, ast.Module]:
    """Return the syntax tree of each module, by its dotted name below ``tiny_audio``.

    An ``__init__`` module has the name of its package.
    """
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        steps = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(steps[:-1] if steps[-1] == "__init__" else steps)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.AST, *, functions: bool = True, types: bool = True) -> Iterator[str]:
    """Yield the absolute dotted names of imported modules. ``from package import module`` yields the module.

    Args:
        functions: include imports inside functions.
        types: include imports under ``if TYPE_CHECKING``.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not functions:
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write absolute imports; an export rewrites them"
            base = node.module or ""
            for alias in node.names:
                below = f"{base}.{alias.name}"
                yield below if below.removeprefix("tiny_audio.") in modules() else base
        else:
            yield from imports(node, functions=functions, types=types)


@cache
def own_imports(name: str) -> set[str]:
    """Return the modules of this package that a module imports. ``""`` stands for ``tiny_audio`` itself."""
    found = {module for module in imports(modules()[name]) if module.split(".")[0] == "tiny_audio"}
    return {module.removeprefix("tiny_audio").removeprefix(".") for module in found}


@cache
def concrete_parts() -> set[str]:
    """Return the modules that register a part."""
    return {
        name
        for name, tree in modules().items()
        if top(name) in PARTS
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(mark, ast.Attribute) and mark.attr == "register" for mark in node.decorator_list)
    }


def top(name: str) -> str:
    return name.split(".")[0]


def is_private(name: str) -> bool:
    return any(step.startswith("_") and not step.startswith("__") for step in name.split("."))


NAMES = [name for name in modules() if name]


def test_the_code_map_lists_every_entry_in_this_order() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", (ROOT.parent / "docs" / "code_map.md").read_text(), re.MULTILINE)
    listed = [name.removesuffix(".py").rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert listed == ORDER


def test_no_module_is_long() -> None:
    folders = (ROOT, *(ROOT.parent / name for name in ("tests", "benchmarks", "examples")))
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    long = [path.name for path in paths if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long, "divide a module where its responsibilities separate"


def test_the_order_lists_the_first_level_exactly() -> None:
    assert set(ORDER) == {top(name) for name in NAMES}, "add a new folder to ORDER as high as its imports allow"


def test_every_registered_part_is_checked() -> None:
    registered = {entry.module for kind in PARTS for entry in REGISTRIES[kind].entries()}
    ours = {name.removeprefix("tiny_audio.") for name in registered if name.startswith("tiny_audio.")}
    assert concrete_parts() == ours
    assert {top(name) for name in ours} == PARTS


def test_a_module_imports_only_from_entries_above_its_own() -> None:
    for name in NAMES:
        for imported in own_imports(name) - {""}:
            assert imported in modules(), f"{name} imports tiny_audio.{imported}, which does not exist"
            assert top(imported) == top(name) or ORDER.index(top(imported)) < ORDER.index(top(name)), (
                f"{name} imports {imported}, but {top(imported)} is below {top(name)} in ORDER; move the code that "
                "both need to an entry above, or pass it as an argument"
            )


def test_private_modules_are_imported_only_by_their_package() -> None:
    for name in NAMES:
        private = {
            imported
            for imported in own_imports(name)
            if is_private(imported) and not name.startswith(imported[: imported.index("._")])
        }
        assert not private, f"{name} imports {', '.join(private)}; remove the underscore if others need it"


def test_nothing_imports_a_concrete_part() -> None:
    for name in NAMES:
        parts = own_imports(name) & concrete_parts()
        assert not parts, f"{name} imports {parts}; get parts from their registry, and share code in a private module"


def test_a_part_imports_only_its_contract_and_private_modules() -> None:
    for name in sorted(concrete_parts()):
        package = top(name)
        siblings = {imported for imported in own_imports(name) if top(imported) == package and imported != package}
        assert all(is_private(sibling) for sibling in siblings), f"{name} imports {siblings}, which are not private"
        others = {top(imported) for imported in own_imports(name)} & (PARTS - {package})
        assert not others, f"{name} imports {others}; a part must not depend on other kinds of parts"


def exported() -> set[str]:
    """Return the modules that an export may contain: the model, its pipeline, all parts, and every module that these
    modules import."""
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


def test_modules_of_an_export_import_few_libraries() -> None:
    for name in sorted(exported()):
        top_level, inside = libraries(name, functions=False), libraries(name, functions=True)
        assert top_level <= (PART_LIBRARIES if name in concrete_parts() else EXPORT_LIBRARIES), name
        assert inside <= EXPORT_FUNCTION_LIBRARIES, name
        assert top(name) not in NEVER_EXPORTED, name


def libraries(name: str, *, functions: bool) -> set[str]:
    """Return the libraries that a module imports, without Python's standard library and this package."""
    found = {module.split(".")[0] for module in imports(modules()[name], functions=functions, types=False)}
    return found - set(sys.stdlib_module_names) - {"tiny_audio"}
