"""Live text over a WebSocket. docs/live.md describes the protocol."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.datastructures import QueryParams
from torch import Tensor

from tiny_audio.audio.ffmpeg import has_ffmpeg
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.live import ENDPOINT_PAUSE_S, LONGEST_UTTERANCE_S, LiveStream
from tiny_audio.inference.segments import Transcription
from tiny_audio.inference.utterances import Utterances, VoiceActivity
from tiny_audio.inference.voice_activity import SpeechProbabilities, silero
from tiny_audio.serving.access import KEY_PROTOCOL
from tiny_audio.serving.contexts import RequestContext, context_of
from tiny_audio.serving.errors import ApiError
from tiny_audio.serving.live_session import ClientError, LiveSession
from tiny_audio.serving.metrics import LOG
from tiny_audio.serving.opus import CONTAINERS
from tiny_audio.serving.parameters import language_of
from tiny_audio.serving.service import Service

PATH = "/v1/audio/live"
ENCODINGS = ("pcm16", *CONTAINERS)
_PARAMETERS = ("encoding", "words", "prompt", "language")


@dataclass(frozen=True)
class _Query:
    """The parameters of a stream."""

    encoding: str
    words: bool
    context: RequestContext

    @classmethod
    def parse(cls, query: QueryParams, service: Service) -> _Query:
        """Parse the parameters of the WebSocket's address.

        Raises:
            ClientError: a parameter is unknown, or its value is invalid or not supported by this server.
        """
        unknown = [name for name in query if name not in _PARAMETERS]
        if unknown:
            raise ClientError(1008, f"unknown parameter {unknown[0]!r}; use {', '.join(_PARAMETERS)}")
        for name, count in Counter(name for name, _ in query.multi_items()).items():
            if count > 1:
                raise ClientError(1008, f"the parameter {name!r} is given {count} times; send it once")
        encoding, words = query.get("encoding", "pcm16"), query.get("words", "false")
        if encoding not in ENCODINGS:
            raise ClientError(1003, f"encoding is {encoding!r}; use {', '.join(ENCODINGS)}")
        if encoding in CONTAINERS and not has_ffmpeg():
            raise ClientError(1003, f"encoding={encoding} needs the FFmpeg program on the server; send pcm16")
        if words not in ("true", "false"):
            raise ClientError(1008, f"words is {words!r}; use true or false")
        if words == "true" and not service.engine.can_time_words:
            raise ClientError(1008, "words=true needs a model with a CTC head, and this model has none")
        try:
            language = language_of(query.get("language") or None)
            context = context_of(service.engine, service.hotwords, prompt=query.get("prompt"), language=language)
        except ApiError as error:
            raise ClientError(1008, error.message) from error
        return cls(encoding, words == "true", context)


def router(service: Service) -> APIRouter:
    """Return the route of live text."""
    routes, open_streams = APIRouter(), set[WebSocket]()
    max_streams = service.options.live.max_streams
    service.metrics.live_streams.set_function(lambda: len(open_streams))

    @routes.websocket(PATH)
    async def live(websocket: WebSocket) -> None:
        await websocket.accept(_subprotocol(websocket))
        started, code = time.monotonic(), 1000
        try:
            if len(open_streams) >= max_streams:
                raise ClientError(1013, f"{max_streams} streams are open, which is the limit; try again later")
            open_streams.add(websocket)
            await _transcribe(websocket, service)
            await websocket.close()
        except ClientError as error:
            code = error.code
            await _close(websocket, service, code, error.message)
        except WebSocketDisconnect as gone:
            code = gone.code
        except Exception:
            code = 1011
            LOG.exception("a live stream failed")
            await _close(websocket, service, code, "the server failed; its log has the reason")
        finally:
            open_streams.discard(websocket)
            LOG.info("%s %d %.3f s", PATH, code, time.monotonic() - started)

    @routes.api_route(PATH, methods=["GET", "POST"])
    async def without_websocket() -> None:
        raise ApiError(
            426,
            f"{PATH} needs a WebSocket; connect to it as docs/live.md describes, or send a file to "
            "/v1/audio/transcriptions",
            code="upgrade_required",
            headers={"Upgrade": "websocket", "Connection": "Upgrade"},
        )

    return routes


def new_voice_activity() -> VoiceActivity:
    """Return a voice activity detector for a new stream.

    Raises:
        ClientError: silero-vad is not installed.
    """
    network = silero()
    if network is None:
        raise ClientError(1011, "the server cannot find speech in streams; install silero-vad on the server")
    return SpeechProbabilities(network, frames_per_step=1)


async def _transcribe(websocket: WebSocket, service: Service) -> None:
    query = _Query.parse(websocket.query_params, service)
    longest_s = min(LONGEST_UTTERANCE_S, service.engine.max_chunk_s)
    utterances = Utterances(new_voice_activity(), longest_s=longest_s, pause_s=ENDPOINT_PAUSE_S)

    async def decode(waveform: Tensor) -> Transcription:
        return await service.engine.transcribe(waveform, words=query.words, context=query.context.context)

    session = LiveSession(websocket, LiveStream(utterances), decode, query.words, service.options)
    left_out = {"hotwords_left_out": query.context.left_out} if query.context.left_out else {}
    await session.send(type="ready", sample_rate=SAMPLE_RATE, max_delay_s=longest_s + ENDPOINT_PAUSE_S, **left_out)
    duration_s = await session.run(query.encoding)
    await session.send(type="done", duration_s=duration_s)


def _subprotocol(websocket: WebSocket) -> str | None:
    """Return the subprotocol to accept: the first one that does not carry the API key (see :data:`KEY_PROTOCOL`)."""
    offered: list[str] = websocket.scope["subprotocols"]
    return next((one for one in offered if not one.startswith(KEY_PROTOCOL)), None)


async def _close(websocket: WebSocket, service: Service, code: int, message: str) -> None:
    """Send an error, and close the connection. Do nothing if the client has disconnected."""
    try:
        async with asyncio.timeout(service.options.live.send_timeout_s):  # the client may have stopped reading
            await websocket.send_json({"type": "error", "message": message})
            await websocket.close(code)
    except (WebSocketDisconnect, RuntimeError, TimeoutError):
        pass
