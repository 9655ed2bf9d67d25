"""Silence for transformers' progress bars and advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Show errors only and no progress bars inside the block, then restore the caller's settings."""
    from transformers.utils import logging

    def without_bar(factory: Any, args: Any, kwargs: Any) -> Any:
        return factory(*args, **{**kwargs, "disable": True})

    verbosity = logging.get_verbosity()
    # transformers' own switch would also turn on the bars of huggingface_hub at the end.
    hook = logging.set_tqdm_hook(without_bar)
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.set_tqdm_hook(hook)
