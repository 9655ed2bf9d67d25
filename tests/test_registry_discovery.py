"""Discovery of parts in real packages and plugins."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_registry
from tests.support.tiny_registry import (
    make,
)
from tiny_audio.config import RegistryError

PART = """
from typing import Literal
from {package} import PARTS, PartConfig

class {title}Config(PartConfig):
    name: Literal["{name}"] = "{name}"

@PARTS.register
def build(config: {title}Config) -> object: ...
"""

ROOT = """
from tiny_audio.config import Config
from tiny_audio.registry import Registry

class PartConfig(Config):
    name: str

PARTS = Registry("part", PartConfig, package=__name__, entry_points="tests.tiny_parts")
"""

TWIN = f"""
from typing import Literal
from {tiny_registry.__name__} import PartConfig

class TwinConfig(PartConfig):
    name: Literal["conv"] = "conv"

def build(config: TwinConfig) -> object: ...
"""


@pytest.fixture
def package(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Yield a function that creates and imports a package. The package exists until the test ends."""
    before = set(sys.modules)
    sys.path.insert(0, str(tmp_path))

    def make_package(name: str, root: str, parts: dict[str, str]) -> Any:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(textwrap.dedent(root))
        for part, text in parts.items():
            (folder / f"{part}.py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        if not root:
            for part in parts:
                importlib.import_module(f"{name}.{part}")
        return module

    yield make_package
    sys.path.remove(str(tmp_path))
    for module in set(sys.modules) - before:
        if module.split(".")[0] in {path.name.removesuffix(".py") for path in tmp_path.iterdir()}:
            del sys.modules[module]


def part(package: str, name: str) -> str:
    return PART.format(package=package, name=name, title=name.title())


def distribution(folder: Path, name: str, entry_points: str) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tests.tiny_parts]\n{entry_points}\n")


def test_discovery_imports_every_public_module_of_the_package(package: Any) -> None:
    parts = {"alpha": part("kit", "alpha"), "beta": part("kit", "beta"), "_shared": "raise RuntimeError('private')"}
    kit = package("kit", ROOT, parts)
    assert "kit.alpha" not in sys.modules
    assert kit.PARTS.names() == ["alpha", "beta"]
    assert "kit._shared" not in sys.modules


def test_a_lookup_discovers_parts(package: Any) -> None:
    kit = package("kit", ROOT, {"alpha": part("kit", "alpha")})
    assert kit.PARTS.entry("alpha").module == "kit.alpha"


def test_installed_plugins_add_parts(package: Any, tmp_path: Path) -> None:
    kit = package("kit", ROOT, {"alpha": part("kit", "alpha")})
    (tmp_path / "plug.py").write_text(part("kit", "gamma"))
    distribution(tmp_path, "tiny-audio-gamma", "gamma = plug")
    assert kit.PARTS.names() == ["alpha", "gamma"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: "),
    ],
)
def test_a_broken_plugin_is_an_error_that_names_its_distribution(
    package: Any, tmp_path: Path, text: str, reason: str
) -> None:
    kit = package("kit", ROOT, {})
    (tmp_path / "plug.py").write_text(text)
    distribution(tmp_path, "tiny-audio-broken", "broken = plug")
    for _ in range(2):  # the second lookup must fail, too
        with pytest.raises(RegistryError) as caught:
            kit.PARTS.names()
        message = str(caught.value)
        assert message.startswith(f"the plugin 'broken' of tiny-audio-broken (plug) failed to load: {reason}"), message
        assert message.endswith("fix it or uninstall tiny-audio-broken")


def test_a_plugin_with_a_taken_name_is_rejected(package: Any, tmp_path: Path) -> None:
    kit = package("kit", ROOT, {"alpha": part("kit", "alpha")})
    (tmp_path / "plug.py").write_text(part("kit", "alpha"))
    distribution(tmp_path, "tiny-audio-twin", "alpha = plug")
    with pytest.raises(RegistryError, match=r"part 'alpha' is defined twice: in kit.alpha and in plug"):
        kit.PARTS.names()


def test_a_duplicate_name_is_rejected_with_both_modules(package: Any) -> None:
    registry = make()
    other = package("other_parts", "", parts={"conv": TWIN}).conv
    with pytest.raises(RegistryError, match=rf"'conv' .* in {tiny_registry.__name__} and in other_parts\.conv"):
        registry.register(other.build)
