"""Objects shared by all routes of one server."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from fastapi import Request

from tiny_audio.model.prompt import Context
from tiny_audio.serving.admission import Admission, BusyError, Ticket
from tiny_audio.serving.engine import Engine
from tiny_audio.serving.errors import ApiError, discard_body
from tiny_audio.serving.metrics import Metrics
from tiny_audio.serving.options import Options

_DECODERS = 8
"""Number of uploads that are decoded at the same time. If it were 1, an upload that takes long to decode would delay
all other uploads."""
_LONGEST_RETRY_S = 60


@dataclass
class Service:
    """The engine, the options, and the counters of requests."""

    engine: Engine
    options: Options
    admission: Admission = field(init=False)
    metrics: Metrics = field(init=False)
    decoders: ThreadPoolExecutor = field(init=False)
    hotwords: tuple[str, ...] = field(init=False)
    """The server's hotwords, without those that do not fit into a context or cannot be encoded."""

    def __post_init__(self) -> None:
        self.admission = Admission(self.options.limits)
        self.metrics = Metrics(self.engine, self.admission)
        self.decoders = ThreadPoolExecutor(_DECODERS, "decoding")
        given = Context.of(self.options.hotwords) or Context()
        left_out = frozenset(self.engine.encode_context(given).left_out)
        self.hotwords = tuple(word for word in given.hotwords if word not in left_out)

    async def admit(self, request: Request, stack: AsyncExitStack) -> Ticket:
        """Count a request until ``stack`` is closed.

        Raises:
            ApiError: there are too many requests.
        """
        try:
            return stack.enter_context(self.admission.enter())
        except BusyError as error:
            await discard_body(request.receive)
            raise self.busy(error) from error

    def busy(self, error: BusyError) -> ApiError:
        """Return the error response to a request that exceeds a limit. The response says when to try again."""
        wait_s = min(_LONGEST_RETRY_S, max(1, math.ceil(self.engine.statistics.wait_s)))
        headers = {"Retry-After": str(wait_s)}
        return ApiError(429, f"{error}; try again later", code="rate_limit_exceeded", headers=headers)
