"""transformers without its progress bars and advice, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors only, and no progress bars; the caller's settings come back at the end, whatever happens."""
    from transformers.utils import logging

    def without_bar(factory: Any, args: Any, kwargs: Any) -> Any:
        return factory(*args, **{**kwargs, "disable": True})

    verbosity = logging.get_verbosity()
    # transformers' own switch would turn the bars of huggingface_hub on at the end, wherever they had been off.
    hook = logging.set_tqdm_hook(without_bar)
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.set_tqdm_hook(hook)
