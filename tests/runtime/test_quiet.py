"""When progress bars and warnings of transformers are hidden."""

from __future__ import annotations

import sys

import pytest
from transformers.utils import logging

from tiny_audio.runtime.quiet import errors_only, quiet_transformers


def is_shown() -> bool:
    bar = logging.tqdm(range(1))
    shown = not bar.disable
    bar.close()
    return shown


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_bars_are_shown_only_in_a_terminal(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr(logging, "_tqdm_active", True)  # bars may be off before this test
    monkeypatch.setattr(logging, "_tqdm_hook", None)
    before = logging.get_verbosity()
    with errors_only():
        assert logging.get_verbosity() == logging.ERROR
        assert is_shown() == is_terminal
        with quiet_transformers():
            assert not is_shown()
        assert is_shown() == is_terminal
    assert is_shown()
    assert logging.get_verbosity() == before
