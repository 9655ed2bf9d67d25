"""Objects shared by all routes of one server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tiny_audio.serving.admission import Admission
from tiny_audio.serving.engine import Engine
from tiny_audio.serving.metrics import Metrics
from tiny_audio.serving.options import Options

_DECODERS = 8
"""Number of uploads that are decoded at the same time, so that a slow upload does not delay others."""


@dataclass
class Service:
    """The engine, the options, and the counters of requests."""

    engine: Engine
    options: Options
    admission: Admission = field(init=False)
    metrics: Metrics = field(init=False)
    decoders: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.options.limits)
        self.metrics = Metrics(self.engine, self.admission)
        self.decoders = ThreadPoolExecutor(_DECODERS, "decoding")
