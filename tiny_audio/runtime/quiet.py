"""Silence for transformers' progress bars and advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def errors_only() -> Iterator[None]:
    """Show only errors of transformers inside the block, then restore the caller's setting."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Like :func:`errors_only`, and show no progress bars."""
    from transformers.utils import logging

    def without_bar(factory: Any, args: Any, kwargs: Any) -> Any:
        return factory(*args, **{**kwargs, "disable": True})

    # transformers' own switch would also turn on the bars of huggingface_hub at the end.
    hook = logging.set_tqdm_hook(without_bar)
    try:
        with errors_only():
            yield
    finally:
        logging.set_tqdm_hook(hook)
