"""Turn off transformers' progress bars and warnings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any


@contextmanager
def errors_only() -> Iterator[None]:
    """Inside the ``with`` block, show only errors of transformers, and show its progress bars only in a terminal."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with nullcontext() if sys.stderr.isatty() else _without_bars():
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside the ``with`` block, show only errors of transformers, and never show its progress bars."""
    with errors_only(), _without_bars():
        yield


@contextmanager
def _without_bars() -> Iterator[None]:
    from transformers.utils import logging

    def without_bar(factory: Any, args: Any, kwargs: Any) -> Any:
        return factory(*args, **{**kwargs, "disable": True})

    # Do not use transformers' `disable_progress_bar`. Its inverse, `enable_progress_bar`, also turns on the bars of
    # huggingface_hub.
    hook = logging.set_tqdm_hook(without_bar)
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
