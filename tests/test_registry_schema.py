"""What pydantic creates from a registry: a union of the parts' configs, its errors, and its JSON schema."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import ValidationError

from tests.support.tiny_registry import (
    ConvConfig,
    PartConfig,
    holder,
    make,
)


def test_the_union_accepts_a_mapping_a_name_or_a_config() -> None:
    model = holder(make())
    assert model.model_validate_json('{"part": {"name": "conv", "stride": 3}}').part == ConvConfig(stride=3)
    assert model.model_validate_json('{"part": "conv"}').part == ConvConfig()
    assert model(part=ConvConfig(stride=3)).part == ConvConfig(stride=3)


def test_a_list_in_a_file_becomes_a_tuple() -> None:
    model = holder(make())
    part = model.model_validate_json('{"part": {"name": "conv", "kernels": [1, 2]}}').part
    assert part == ConvConfig(kernels=(1, 2))


def test_a_dump_can_be_read() -> None:
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
def test_errors_are_located(part: str, place: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        holder(make()).model_validate_json(f'{{"part": {part}}}')
    (error,) = caught.value.errors()
    assert (error["loc"], error["msg"]) == (place, message)


def test_the_json_schema_has_every_parts_fields_and_the_short_form() -> None:
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
