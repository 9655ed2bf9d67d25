"""Registries of their own, with parts made here: registration, discovery, lookup, and what pydantic makes of them."""

from __future__ import annotations

import importlib
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, PositiveInt, ValidationError, create_model

from tiny_audio.config import Config, RegistryError, UserError
from tiny_audio.registry import Registry, UnknownPartError, did_you_mean

if TYPE_CHECKING:
    from tiny_audio.nowhere import Missing


class PartConfig(Config):
    name: str


class ConvConfig(PartConfig):
    """A convolution.

    And more about it.
    """

    name: Literal["conv"] = "conv"
    stride: PositiveInt = 5
    """Frames per embedding."""
    kernels: tuple[int, ...] = (3,)


class LinearConfig(PartConfig):
    name: Literal["linear"] = "linear"
    hidden_size: PositiveInt


class Part:
    def __init__(self, config: PartConfig, context: object = None) -> None:
        self.config, self.context = config, context


def build_conv(config: ConvConfig, context: object) -> Part:
    return Part(config, context)


def build_linear(config: LinearConfig) -> Part:
    return Part(config)


def make() -> Registry[PartConfig, Part]:
    registry: Registry[PartConfig, Part] = Registry("projector", PartConfig)
    registry.register(build_conv)
    registry.register(build_linear)
    return registry


def holder(registry: Registry[Any, Any], **fields: Any) -> type[BaseModel]:
    model: type[BaseModel] = create_model(
        "Holder", __base__=Config, part=(Annotated[PartConfig, registry], ...), **fields
    )
    return model


def test_entries_are_sorted_and_know_their_module_and_summary() -> None:
    registry = make()
    assert registry.names() == ["conv", "linear"]
    entry = registry.entry("conv")
    assert (entry.config, entry.module, entry.summary) == (ConvConfig, __name__, "A convolution.")


def test_register_gives_the_builder_back() -> None:
    registry: Registry[PartConfig, Part] = Registry("projector", PartConfig)
    assert registry.register(build_conv) is build_conv


def test_build_passes_config_and_context() -> None:
    part = make().build(ConvConfig(stride=2), "neighbors")
    assert part.config == ConvConfig(stride=2)
    assert part.context == "neighbors"


def test_registries_share_nothing() -> None:
    first, second = make(), Registry("projector", PartConfig)
    assert first.names()
    assert second.names() == []


def test_a_duplicate_name_is_refused_with_both_modules(package: Any) -> None:
    registry = make()
    other = package("other_parts", "", parts={"conv": TWIN}).conv
    with pytest.raises(
        RegistryError, match=rf"projector 'conv' is defined twice: in {__name__} and in other_parts.conv; rename one"
    ):
        registry.register(other.build)


def test_a_registration_after_the_schema_was_built_is_refused() -> None:
    registry: Registry[PartConfig, Part] = Registry("projector", PartConfig, entry_points="tests.parts")
    registry.register(build_conv)
    holder(registry)
    with pytest.raises(
        RegistryError,
        match=rf"projector 'linear' of {__name__} was registered after the recipe schema was built; "
        rf"import {__name__} before tiny_audio.recipe, or offer it through the entry point group 'tests.parts'",
    ):
        registry.register(build_linear)


def unannotated(config): ...
def of_another_type(config: int) -> Part: ...
def without_arguments() -> Part: ...
def config_second(context: object, config: ConvConfig) -> Part: ...
def only_return_annotated(config) -> ConvConfig: ...


@pytest.mark.parametrize(
    "builder", [unannotated, of_another_type, without_arguments, config_second, only_return_annotated]
)
def test_a_builder_must_annotate_its_config(builder: Any) -> None:
    with pytest.raises(
        RegistryError,
        match=rf"{builder.__name__}: the first argument of a projector builder must be annotated with a subclass of "
        "PartConfig, not ",
    ):
        Registry("projector", PartConfig).register(builder)


def unresolvable(config: Missing) -> Part: ...


def test_an_annotation_that_does_not_resolve_is_named() -> None:
    with pytest.raises(RegistryError, match=r"annotations of .*unresolvable cannot be read: name 'Missing'"):
        Registry("projector", PartConfig).register(unresolvable)


class NoLiteral(PartConfig):
    name: str = "conv"


class TwoNames(PartConfig):
    name: Literal["a", "b"] = "a"


class NoDefault(PartConfig):
    name: Literal["a"]


class OtherDefault(PartConfig):
    name: Literal["a"] = "b"


class NoName(Config):
    stride: int = 1


@pytest.mark.parametrize("config", [NoLiteral, TwoNames, NoDefault, OtherDefault, NoName])
def test_a_config_must_give_its_name_once(config: type[Config]) -> None:
    def build(config: Any) -> Part: ...

    build.__annotations__["config"] = config
    with pytest.raises(RegistryError, match=rf'{config.__name__} must give its name once, as `name: Literal\["..."\]'):
        Registry("projector", Config).register(build)


class Contract(Config, ABC):
    name: str

    @abstractmethod
    def min_frames(self) -> int: ...

    @abstractmethod
    def tiny(self) -> int: ...


class HalfDone(Contract):
    name: Literal["half"] = "half"

    def tiny(self) -> int:
        return 1


def build_half(config: HalfDone) -> Part: ...


def test_a_config_that_misses_a_method_of_its_contract_is_refused() -> None:
    with pytest.raises(RegistryError, match=r"HalfDone must define min_frames$"):
        Registry("projector", Contract).register(build_half)


def test_an_unknown_name_lists_the_names_nearest_first() -> None:
    with pytest.raises(
        UnknownPartError, match=r"^unknown projector 'con'; did you mean 'conv'\? Allowed: conv, linear$"
    ):
        make().entry("con")
    with pytest.raises(UserError, match=r"^unknown projector 'zzz'; Allowed: conv, linear$"):
        make().entry("zzz")


@pytest.mark.parametrize("name", [None, 5, ["conv"], {}])
def test_a_name_that_is_no_name_is_unknown(name: object) -> None:
    with pytest.raises(UnknownPartError, match="unknown projector"):
        make().entry(name)


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(UnknownPartError, match=r"unknown encoder 'x'; Allowed: \(none\)"):
        Registry("encoder", PartConfig).entry("x")


def test_did_you_mean_takes_anything() -> None:
    assert did_you_mean(5, ["a"]) == "Allowed: a"
    assert did_you_mean("swigloo", ["conv", "swiglu"]) == "did you mean 'swiglu'? Allowed: conv, swiglu"


def test_parse_reads_back_what_was_dumped() -> None:
    registry, config = make(), ConvConfig(stride=2, kernels=(1, 2))
    assert registry.parse(config.model_dump(mode="json")) == config
    assert registry.parse("conv") == ConvConfig()
    with pytest.raises(UnknownPartError, match="unknown projector 'cnv'; did you mean 'conv'"):
        registry.parse({"name": "cnv"})
    with pytest.raises(UnknownPartError, match="unknown projector None"):
        registry.parse({})
    with pytest.raises(ValidationError, match="hidden_size"):
        registry.parse("linear")


# --- discovery: real packages in a folder of their own

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
from {__name__} import PartConfig

class TwinConfig(PartConfig):
    name: Literal["conv"] = "conv"

def build(config: TwinConfig) -> object: ...
"""


@pytest.fixture
def package(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes packages of real files that can be imported until the test ends."""
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


def test_a_lookup_discovers(package: Any) -> None:
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
    for _ in range(2):  # a second look must not find a registry that passes for whole
        with pytest.raises(RegistryError) as caught:
            kit.PARTS.names()
        said = str(caught.value)
        assert said.startswith(f"the plugin 'broken' of tiny-audio-broken (plug) failed to load: {reason}"), said
        assert said.endswith("fix it or uninstall tiny-audio-broken")


def test_a_plugin_with_a_taken_name_is_refused_with_both_modules(package: Any, tmp_path: Path) -> None:
    kit = package("kit", ROOT, {"alpha": part("kit", "alpha")})
    (tmp_path / "plug.py").write_text(part("kit", "alpha"))
    distribution(tmp_path, "tiny-audio-twin", "alpha = plug")
    with pytest.raises(RegistryError, match=r"part 'alpha' is defined twice: in kit.alpha and in plug"):
        kit.PARTS.names()


# --- what pydantic makes of a registry


def test_the_union_reads_a_mapping_a_name_and_a_config() -> None:
    model = holder(make())
    assert model.model_validate_json('{"part": {"name": "conv", "stride": 3}}').part == ConvConfig(stride=3)
    assert model.model_validate_json('{"part": "conv"}').part == ConvConfig()
    assert model(part=ConvConfig(stride=3)).part == ConvConfig(stride=3)


def test_a_list_of_a_file_fills_a_tuple_of_a_part() -> None:
    model = holder(make())
    part = model.model_validate_json('{"part": {"name": "conv", "kernels": [1, 2]}}').part
    assert part == ConvConfig(kernels=(1, 2))


def test_a_dump_reads_back() -> None:
    model = holder(make())
    value = model.model_validate_json('{"part": {"name": "linear", "hidden_size": 3}}')
    assert model.model_validate_json(value.model_dump_json()) == value


@pytest.mark.parametrize(
    ("part", "place", "message"),
    [
        ('{"name": "conv", "strid": 3}', ("part", "conv", "strid"), "Extra inputs are not permitted"),
        ('{"name": "conv", "stride": "3"}', ("part", "conv", "stride"), "Input should be a valid integer"),
        ('{"name": "linear"}', ("part", "linear", "hidden_size"), "Field required"),
        ('"linear"', ("part", "[name]", "hidden_size"), "Field required"),
        ('{"name": "cov"}', ("part", "[name]"), "unknown projector 'cov'; did you mean 'conv'? Allowed: conv, linear"),
        ('"cov"', ("part", "[name]"), "unknown projector 'cov'; did you mean 'conv'? Allowed: conv, linear"),
        ("{}", ("part", "[name]"), "projector: `name` is missing; Allowed: conv, linear"),
        ('{"name": {"a": 1}}', ("part", "[name]"), "unknown projector {'a': 1}; Allowed: conv, linear"),
        ("null", ("part", "[name]"), "unknown projector null; Allowed: conv, linear"),
        ("[1]", ("part", "[name]"), "unknown projector [1]; Allowed: conv, linear"),
        ("3", ("part", "[name]"), "unknown projector 3; Allowed: conv, linear"),
    ],
)
def test_mistakes_are_located(part: str, place: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        holder(make()).model_validate_json(f'{{"part": {part}}}')
    (error,) = caught.value.errors()
    assert (error["loc"], error["msg"]) == (place, message)


def test_the_json_schema_carries_every_parts_fields_and_the_shorthand() -> None:
    registry = make()
    model = holder(registry, other=(dict[str, Annotated[PartConfig, registry]], {}))
    schema = model.model_json_schema()
    alone, parts = schema["properties"]["part"]["anyOf"]
    assert alone["enum"] == ["conv", "linear"]
    assert parts["discriminator"]["propertyName"] == "name"
    assert [ref["$ref"] for ref in parts["oneOf"]] == ["#/$defs/ConvConfig", "#/$defs/LinearConfig"]
    conv, linear = schema["$defs"]["ConvConfig"], schema["$defs"]["LinearConfig"]
    assert conv["properties"]["stride"]["description"] == "Frames per embedding."
    assert conv["additionalProperties"] is False
    assert conv["required"] == ["name"]
    assert linear["required"] == ["hidden_size", "name"]
