"""Options and limits of the server."""

from __future__ import annotations

from dataclasses import dataclass, field

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Limits that protect the server from large, slow or numerous requests."""

    max_upload_bytes: int = 100 * MEGABYTE
    """Maximum size of a request body."""
    max_duration_s: float = 7200.0
    """Maximum duration of a recording."""
    max_requests: int = 128
    """Maximum number of requests at a time: those being received, waiting and running. Further requests get status
    429."""
    max_audio_s: float = 4 * 3600.0
    """Maximum seconds of decoded audio in memory, over all requests. Further requests get status 429. One hour of
    audio needs 230 MB, or up to 310 MB if chunks overlap."""
    upload_timeout_s: float = 120.0
    """Maximum time that a request body may take to arrive."""
    request_timeout_s: float = 600.0
    """Maximum time from the end of the upload to the response."""


@dataclass(frozen=True)
class LiveLimits:
    """Limits of live streams."""

    max_streams: int = 32
    """Maximum number of streams at the same time."""
    max_message_bytes: int = 1 << 20
    """Maximum size of a message. The default is about 32 seconds of 16-bit samples."""
    max_waiting_s: float = 30.0
    """Maximum seconds of one stream's audio that wait to be transcribed. Above this, the server stops receiving."""
    max_speed: float = 8.0
    """Maximum speed at which audio is received, as a multiple of real time. This limits the computation for voice
    activity detection. The first ``2 * max_speed`` seconds of a stream's audio may arrive at any speed."""
    idle_timeout_s: float = 30.0
    """Maximum time without audio from the client."""
    send_timeout_s: float = 30.0
    """Maximum time that the client may take to receive a message."""


@dataclass(frozen=True)
class Options:
    """Options of the server."""

    model_name: str
    """The model's name in requests and responses."""
    created: int = 0
    """Unix time at which the model was exported."""
    api_keys: tuple[str, ...] = ()
    """Accepted API keys. If there are none, no key is needed."""
    allowed_origins: tuple[str, ...] = ()
    """Origins such as ``https://example.com`` whose web pages may use the server."""
    host: str = "127.0.0.1"
    """The name or address on which the server listens."""
    hotwords: tuple[str, ...] = ()
    """Names and rare words that any recording may contain. They are added to the hotwords of every request."""
    log_transcripts: bool = False
    """Write transcripts to the log."""
    limits: Limits = field(default_factory=Limits)
    live: LiveLimits = field(default_factory=LiveLimits)
