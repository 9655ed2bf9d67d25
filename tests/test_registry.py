"""Registration and lookup of parts, in a registry that exists only for tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import ValidationError

from tests.support import tiny_registry
from tests.support.tiny_registry import (
    ConvConfig,
    LinearConfig,
    Part,
    PartConfig,
    build_conv,
    build_linear,
    holder,
    make,
)
from tiny_audio.config import Config, RegistryError, UserError
from tiny_audio.registry import Registry, UnknownPartError, did_you_mean

if TYPE_CHECKING:
    from tiny_audio.nowhere import Missing


def test_entries_are_sorted_and_have_their_module_and_summary() -> None:
    registry = make()
    assert registry.names() == ["conv", "linear"]
    entry = registry.entry("conv")
    assert (entry.config, entry.module, entry.summary) == (ConvConfig, tiny_registry.__name__, "A convolution.")


def test_register_returns_the_builder() -> None:
    registry: Registry[PartConfig, Part] = Registry("projector", PartConfig)
    assert registry.register(build_conv) is build_conv


def test_build_passes_config_and_context() -> None:
    part = make().build(ConvConfig(stride=2), "neighbors")
    assert part.config == ConvConfig(stride=2)
    assert part.context == "neighbors"


def test_a_builder_can_accept_a_union_of_configs() -> None:
    registry: Registry[PartConfig, Part] = Registry("projector", PartConfig)

    @registry.register
    def build(config: ConvConfig | LinearConfig, context: object) -> Part:
        return Part(config, context)

    assert registry.names() == ["conv", "linear"]
    assert registry.build(LinearConfig(hidden_size=3), None).config == LinearConfig(hidden_size=3)


def test_registries_are_independent() -> None:
    first, second = make(), Registry("projector", PartConfig)
    assert first.names()
    assert second.names() == []


def test_a_registration_after_the_schema_was_built_is_rejected() -> None:
    registry: Registry[PartConfig, Part] = Registry("projector", PartConfig, entry_points="tests.parts")
    registry.register(build_conv)
    holder(registry)
    with pytest.raises(RegistryError, match=rf"'linear' of {tiny_registry.__name__} .* group 'tests\.parts'"):
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
    with pytest.raises(RegistryError, match=rf'{config.__name__} must have the field `name: Literal\["..."\]'):
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


def test_a_config_that_lacks_a_method_of_its_contract_is_rejected() -> None:
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
def test_names_of_other_types_are_unknown(name: object) -> None:
    with pytest.raises(UnknownPartError, match="unknown projector"):
        make().entry(name)


def test_an_empty_registry_is_named_in_the_error() -> None:
    with pytest.raises(UnknownPartError, match=r"unknown encoder 'x'; Allowed: \(none\)"):
        Registry("encoder", PartConfig).entry("x")


def test_did_you_mean_accepts_any_value() -> None:
    assert did_you_mean(5, ["a"]) == "Allowed: a"
    assert did_you_mean("swigloo", ["conv", "swiglu"]) == "did you mean 'swiglu'? Allowed: conv, swiglu"


def test_parse_reads_dumped_configs() -> None:
    registry, config = make(), ConvConfig(stride=2, kernels=(1, 2))
    assert registry.parse(config.model_dump(mode="json")) == config
    assert registry.parse("conv") == ConvConfig()
    with pytest.raises(UnknownPartError, match="unknown projector 'cnv'; did you mean 'conv'"):
        registry.parse({"name": "cnv"})
    with pytest.raises(UnknownPartError, match="unknown projector None"):
        registry.parse({})
    with pytest.raises(ValidationError, match="hidden_size"):
        registry.parse("linear")
