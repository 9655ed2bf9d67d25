"""The Projector contract, for all registered projectors."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.registered_parts import check_config, names, parts
from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig
from tiny_audio.registry import Entry
from tiny_audio.testing import PROJECTOR_CHECKS

PARTS = parts(PROJECTORS)


@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_config(entry: Entry[ProjectorConfig, Projector]) -> None:
    check_config(entry)


@pytest.mark.parametrize("check", PROJECTOR_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_contract(entry: Entry[ProjectorConfig, Projector], check: Callable[[ProjectorConfig], None]) -> None:
    check(entry.config.tiny())
