"""Fixtures for tests of plans: plans of the model card's recipe, cached dry runs, and a tiny GPU."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.paths import RECIPES
from tiny_audio.plan import Plan, _step, plan_recipe
from tiny_audio.plan._hardware import GPUS, Machine
from tiny_audio.plan._step import Device, DryRunResult, Shape
from tiny_audio.pretrained.published import published_fields
from tiny_audio.recipe import Recipe, load_recipe


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a plan needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


_DONE: dict[Any, DryRunResult] = {}


@pytest.fixture(scope="module", autouse=True)
def dry_runs_of_plans() -> Iterator[None]:
    """Cache dry runs, because many tests plan the same model and batch."""
    plain = _step.dry_run

    def dry_run(recipe: Recipe, shape: Shape, device: Device, **options: Any) -> DryRunResult:
        key = recipe.model_dump_json(exclude={"data": {"train", "evaluation"}}), shape, device, str(options)
        if key not in _DONE:
            _DONE[key] = plain(recipe, shape, device, **options)
        return _DONE[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in ("tiny_audio.plan", "tiny_audio.plan._step"):
            patch.setattr(f"{module}.dry_run", dry_run)
        yield


def plan_card() -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", None)
        return plan_recipe(load_recipe(RECIPES / "tiny_audio.yaml"), gpu="a40")


@pytest.fixture(scope="session")
def card() -> Plan:
    """Return the plan of the model card's recipe."""
    return plan_card()


@pytest.fixture(scope="session")
def shallow_card() -> Plan:
    """Return a plan of the model card's recipe in which each pretrained part has only four layers. Planning it takes a
    fifth of the time of ``card``."""

    def shallow(*checkpoint: Any) -> dict[str, Any]:
        fields = published_fields(*checkpoint)
        assert fields is not None
        return fields | {"num_hidden_layers": 4}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiny_audio.pretrained.checkpoints.published_fields", shallow)
        return plan_card()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], str]:
    """Return a function that adds a GPU with the given memory to the table of GPUs, and returns its name.

    CUDA contexts take no memory here, because a real context is much larger than a tiny model.
    """
    monkeypatch.setattr("tiny_audio.plan._hardware.CONTEXT_BYTES", 0)

    def add(memory_bytes: float) -> str:
        machine = Machine("thimble", int(memory_bytes), 10.0, 5.0, 2.0, 1.5, 9.0)
        monkeypatch.setitem(GPUS, "thimble", machine)
        return "thimble"

    return add
