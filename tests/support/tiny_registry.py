"""A registry of two parts that exist only for tests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, PositiveInt, create_model

from tiny_audio.config import Config
from tiny_audio.registry import Registry


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
