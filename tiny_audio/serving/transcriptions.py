"""The route ``POST /v1/audio/transcriptions``, as in OpenAI's API."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.chunking import Chunk
from tiny_audio.inference.segments import Segment, Transcription
from tiny_audio.model.prompt import Context
from tiny_audio.serving import formats
from tiny_audio.serving.admission import BusyError, Ticket
from tiny_audio.serving.contexts import RequestContext, context_of
from tiny_audio.serving.errors import ApiError, failure
from tiny_audio.serving.metrics import LOG
from tiny_audio.serving.parameters import Parameters, parse_parameters
from tiny_audio.serving.service import Service
from tiny_audio.serving.uploads import decode, receive_form

T = TypeVar("T")
SEND_S = 30.0
"""Maximum time that a client may take to receive an event."""


def router(service: Service) -> APIRouter:
    """Return the route of transcriptions."""
    routes = APIRouter()

    @routes.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> Response:
        try:
            async with AsyncExitStack() as stack:
                return await _respond(service, request, stack)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody receives it

    return routes


async def _respond(service: Service, request: Request, stack: AsyncExitStack) -> Response:
    """Respond to a request. ``stack`` holds the resources of the request. A streamed response takes them over."""
    limits = service.options.limits
    ticket = await service.admit(request, stack)
    form = await receive_form(request, limits)
    stack.push_async_callback(form.close)
    parameters = parse_parameters(form, service.options.model_name)
    if parameters.words and not service.engine.can_time_words:
        raise ApiError(
            400,
            "the times of words need a CTC head, and this model has none; send timestamp_granularities[]=segment",
            param="timestamp_granularities[]",
        )
    context = context_of(
        service.engine,
        service.hotwords,
        prompt=parameters.prompt,
        keywords=parameters.keywords,
        language=parameters.language,
    )
    deadline = time.monotonic() + limits.request_timeout_s
    chunks, duration_s = await _while_connected(request, _chunks(service, parameters, ticket), deadline)
    if parameters.stream:
        events = _events(service, request, chunks, duration_s, context.context, deadline)
        return _with_left_out(_Events(events, stack.pop_all()), context)
    words = parameters.words or (parameters.response_format in ("srt", "vtt") and service.engine.can_time_words)
    job = service.engine.enqueue(chunks, duration_s, words=words, context=context.context)
    transcription = await _while_connected(request, _result(job.future), deadline)
    _log(service, request, transcription)
    return _with_left_out(formats.response(transcription, parameters, context.left_out), context)


def _with_left_out(response: Response, context: RequestContext) -> Response:
    """Add a header with the number of hotwords that were not used. Most response formats have no field for it."""
    if context.left_out:
        response.headers["x-hotwords-left-out"] = str(len(context.left_out))
    return response


async def _chunks(service: Service, parameters: Parameters, ticket: Ticket) -> tuple[list[Chunk], float]:
    """Decode the upload, and return its chunks and its duration."""
    stopped = threading.Event()

    def work() -> tuple[list[Chunk], float]:
        blocks = decode(parameters.file.file, service.options.limits, ticket, stopped)
        return service.engine.chunks(blocks, stopped.is_set), ticket.samples / SAMPLE_RATE

    try:
        return await asyncio.get_running_loop().run_in_executor(service.decoders, work)
    except BusyError as error:
        raise service.busy(error) from error
    finally:
        stopped.set()


async def _result(future: Future[Transcription]) -> Transcription:
    """Wait for a job. If the asyncio task that awaits this result is canceled, the job is canceled too."""
    return await asyncio.wrap_future(future)


async def _while_connected(request: Request, work: Coroutine[Any, Any, T], deadline: float) -> T:
    """Return the result of ``work``. Cancel ``work`` if the client disconnects or the deadline passes.

    Raises:
        ClientDisconnect: the client has closed the connection.
        ApiError: the deadline has passed.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        remaining = max(0.0, deadline - time.monotonic())
        await asyncio.wait({task, gone}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise _timeout()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timeout() -> ApiError:
    # Without this header, OpenAI's client would send the whole upload again.
    headers = {"x-should-retry": "false"}
    return ApiError(504, "the transcription took too long; send a shorter recording", code="timeout", headers=headers)


def _log(service: Service, request: Request, transcription: Transcription) -> None:
    if service.options.log_transcripts:
        LOG.info("%s %.2f s: %s", request.state.request_id, transcription.duration_s, transcription.text)


class _Events(StreamingResponse):
    """A stream of server-sent events that holds the resources of its request until the stream ends."""

    def __init__(self, events: AsyncIterator[str], resources: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(SEND_S):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None  # a client that does not read would keep its resources forever

        async with self._resources:
            await super().__call__(scope, receive, send_in_time)


async def _events(
    service: Service,
    request: Request,
    chunks: list[Chunk],
    duration_s: float,
    context: Context | None,
    deadline: float,
) -> AsyncIterator[str]:
    """Transcribe, and yield an event for each segment. Later events never change the text of earlier ones."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Queue[Segment | None] = asyncio.Queue()
    job = service.engine.enqueue(
        chunks,
        duration_s,
        context=context,
        on_segment=lambda segment: loop.call_soon_threadsafe(ready.put_nowait, segment),
    )
    job.future.add_done_callback(lambda _: loop.call_soon_threadsafe(ready.put_nowait, None))
    before = ""
    try:
        while True:
            # Keep the `yield` outside of the timeout. Inside, the timeout would cancel the task that sends the event.
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                segment = await ready.get()
            if segment is None:
                break
            if segment.text:
                yield formats.delta(before + segment.text)
                before = " "
        transcription = job.result(0)
        _log(service, request, transcription)
        yield formats.done(transcription)
    except TimeoutError:
        yield formats.error_event(_timeout().body)
    except Exception:
        LOG.exception("%s failed", request.state.request_id)
        yield formats.error_event(failure().body)
    finally:
        job.cancel()
