"""Turn off transformers' progress bars and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def errors_only() -> Iterator[None]:
    """Show only errors of transformers inside the ``with`` block, then restore the previous setting."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Like :func:`errors_only`, but also show no progress bars."""
    from transformers.utils import logging

    def without_bar(factory: Any, args: Any, kwargs: Any) -> Any:
        return factory(*args, **{**kwargs, "disable": True})

    # Do not use transformers' own switch, because turning bars on again would also turn on those of huggingface_hub.
    hook = logging.set_tqdm_hook(without_bar)
    try:
        with errors_only():
            yield
    finally:
        logging.set_tqdm_hook(hook)
