"""Every option of a recipe is documented, and used by the code."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import tiny_audio
from tests.recipe.configs import FIELDS, configs
from tests.support.attribute_reads import AttributeReads
from tiny_audio.ctc import CtcConfig
from tiny_audio.data.augmentation import AugmentationConfig
from tiny_audio.data.augmentation.section import FeatureAugmentation, WaveformAugmentation
from tiny_audio.recipe import EvaluationConfig, ExecutionConfig, TrainingConfig

SPEAK_FOR_THEMSELVES = {"dropout", "hidden_dim", "kind", "pretrained", "rank"}
"""Fields that need no description: their names are clear, or a part redeclares them only to change the default."""


def test_every_field_is_documented() -> None:
    assert [f"{config.__name__}.{name}" for config, name in FIELDS if not is_described(config, name)] == []


def is_described(config: type[BaseModel], name: str) -> bool:
    field = config.model_fields[name]
    is_section = any(isinstance(item, type) and issubclass(item, BaseModel) for item in _flat(field.annotation))
    return bool(field.description) or is_section or name in SPEAK_FOR_THEMSELVES


def _flat(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _flat(argument)


def test_fields_that_can_be_null_are_null_by_default() -> None:
    """In a recipe that extends another recipe, ``null`` removes the field, so the field gets its default. The result
    must be the same as if the field were null."""
    fields = [(config, name, config.model_fields[name]) for config, name in FIELDS]
    nullable = [(config, name, field) for config, name, field in fields if type(None) in get_args(field.annotation)]
    assert nullable
    assert [f"{config.__name__}.{name}" for config, name, field in nullable if field.default is not None] == []


def test_every_section_and_part_is_documented() -> None:
    assert [config.__name__ for config in configs() if not config.__doc__] == []


# --- dead options

SENT_AS = {"SyntheticConfig": "Job"}
"""For a config, the class that carries its fields to another process. Code there reads the fields from this class."""


@pytest.fixture(scope="module")
def reads() -> AttributeReads:
    gc.disable()  # the syntax trees have a million objects, and garbage collection would take half of the time
    try:
        return AttributeReads.of_package(Path(tiny_audio.__file__).parent)
    finally:
        gc.enable()


def is_read(reads: AttributeReads, config: type[BaseModel], name: str) -> bool:
    """Whether some code reads this field of this config. Fields with the same name in other classes do not count."""
    classes = {base for known in configs() for base in known.__mro__ if issubclass(base, BaseModel)} | {config}
    family = {
        other.__name__
        for other in classes
        if (issubclass(other, config) or issubclass(config, other)) and name in other.model_fields
    }
    for base, reader in ((WaveformAugmentation, "sections"), (FeatureAugmentation, "of_features")):
        if config is AugmentationConfig and any(
            isinstance(kind, type) and issubclass(kind, base) for kind in get_args(config.model_fields[name].annotation)
        ):
            return reads.is_read({config.__name__}, reader)  # the method `reader` reads all fields of this type
    return reads.is_read({*family, SENT_AS.get(config.__name__, config.__name__)}, name)


def test_there_are_no_dead_options(reads: AttributeReads) -> None:
    """Every field is read outside its class, or by a public method of its class."""
    assert [f"{config.__name__}.{name}" for config, name in FIELDS if not is_read(reads, config, name)] == []


@pytest.mark.parametrize(
    ("config", "name"),
    [(EvaluationConfig, "steps"), (ExecutionConfig, "seed"), (CtcConfig, "dropout"), (TrainingConfig, "normalizer")],
)
def test_a_dead_option_is_found_although_its_name_is_used_elsewhere(
    reads: AttributeReads, config: type[BaseModel], name: str
) -> None:
    """Code reads a field of this name in other classes, but not in this config. If the config had such a field, it
    would be a dead option."""
    assert any(read.attribute == name for read in reads.reads)
    assert name not in config.model_fields
    assert not is_read(reads, config, name)


SOURCE = """
class Speed(Config):
    steps: int = 1
    unused: int = 2
    checked: int = 3
    asked: int = 4

    def _check(self) -> None:
        assert self.checked

    def factor(self) -> int:
        return self.asked

class Other:
    unused: int

class Holder:
    def __init__(self, other: Other, speeds: dict[str, Speed]) -> None:
        self._other, self._speeds = other, speeds

    def use(self) -> int:
        for name, speed in self._speeds.items():
            print(name, speed.steps, self._other.unused)
"""


def test_reads_are_distinguished_by_type() -> None:
    reads = AttributeReads([SOURCE])
    fields = ("steps", "unused", "checked", "asked")
    assert [reads.is_read({"Speed"}, name) for name in fields] == [True, False, False, True]
    assert reads.is_read({"Other"}, "unused")
