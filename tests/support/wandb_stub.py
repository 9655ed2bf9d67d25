"""A substitute for the package wandb, most of which needs an account or a network."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class Error(Exception):
    """Replaces ``wandb.errors.Error``."""


@dataclass
class Service:
    """Records the calls, and can fail."""

    online: bool = True
    """Whether the service can be reached."""
    fails_after: int = sys.maxsize
    """Number of points after which logging fails."""
    opened: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, float]] = field(default_factory=list)
    finished: int = 0

    def init(self, *, mode: str | None = None, **options: Any) -> SimpleNamespace:
        if not self.online and mode != "offline":
            raise Error("no network\nand no more")
        self.opened.append(options | {"mode": mode})
        return SimpleNamespace(define_metric=lambda *_, **__: None, log=self.log, finish=self.finish)

    def log(self, point: dict[str, float]) -> None:
        if len(self.points) >= self.fails_after:
            raise BrokenPipeError("the process is gone")
        self.points.append(point)

    def finish(self) -> None:
        self.finished += 1


def install(patch: pytest.MonkeyPatch, service: Service) -> None:
    """Make ``import wandb`` return a module with this service."""
    module: Any = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    module.init, module.Settings, module.teardown = service.init, SimpleNamespace, lambda: None
    module.errors = SimpleNamespace(Error=Error)
    patch.setitem(sys.modules, "wandb", module)
