"""Metrics for Prometheus, and a log line for each request."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiny_audio.serving.admission import Admission
from tiny_audio.serving.engine import Engine

LOG = logging.getLogger("tiny_audio.serving")
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one server."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "tiny_audio_requests",
            "Finished requests.",
            ("path", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "tiny_audio_request_seconds",
            "Time from the start of a request to the end of its response.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.live_streams = Gauge("tiny_audio_live_streams", "Live streams that are open.", registry=self._registry)
        self._registry.register(_OfTheEngine(engine, admission))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _OfTheEngine(Collector):
    """Reads the engine's values when Prometheus asks for them."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._engine, self._admission = engine, admission

    def collect(self) -> Iterator[Metric]:
        found = self._engine.statistics
        for name, help_text, value in (
            ("tiny_audio_batches", "Batches that were transcribed.", found.batches),
            ("tiny_audio_chunks", "Chunks that were transcribed. A recording has one or more chunks.", found.chunks),
            ("tiny_audio_audio_seconds", "Seconds of audio that were transcribed.", found.audio_s),
            ("tiny_audio_busy_seconds", "Seconds in which a batch was running.", found.busy_s),
        ):
            yield CounterMetricFamily(name, help_text, value=value)
        for name, help_text, value in (
            (
                "tiny_audio_active_requests",
                "Requests for transcription or subtitles that are being uploaded, are waiting, or are running.",
                self._admission.requests,
            ),
            ("tiny_audio_queued_chunks", "Chunks that wait for a batch.", found.waiting_chunks),
            ("tiny_audio_queued_audio_seconds", "Seconds of audio that wait for a batch.", found.waiting_s),
        ):
            yield GaugeMetricFamily(name, help_text, value=value)


class Observer:
    """ASGI middleware that counts and logs requests, and gives each response a request id.

    The log contains the path but not the query, because a query may contain a prompt.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and measure it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, request_id = time.monotonic(), uuid.uuid4().hex
        status = 499  # nginx's code for a client that disconnects before the response; replaced when a response starts
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_measured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_measured)
        except ClientDisconnect:
            pass  # there is no client to respond to
        except Exception:
            status = 500
            raise
        finally:
            seconds = time.monotonic() - started
            route = scope.get("route")
            # Unknown paths share one label. Otherwise clients could create any number of labels.
            path = getattr(route, "path", "other")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            LOG.info("%s %s %s %d %.3f s", request_id, scope["method"], path, status, seconds)
