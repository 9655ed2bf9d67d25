"""The routes of the web page: its files, the model's card, and subtitles."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field, ValidationError

from tiny_audio.config import problems
from tiny_audio.inference.segments import Segment
from tiny_audio.inference.subtitles import as_srt, as_vtt, cues
from tiny_audio.inference.word_times import Word
from tiny_audio.serving.errors import ApiError
from tiny_audio.serving.page.card import Card
from tiny_audio.serving.service import Service

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".html": "text/html"}
_HEADERS = {
    # The page loads nothing from other hosts and runs no code from strings.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; media-src blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_MAX_BYTES, _TIMEOUT_S = 4_000_000, 20.0
"""Limits of a transcript that a client sends. The transcript of two hours of speech has about one megabyte."""
Seconds = Annotated[float, Field(ge=0, le=1e7)]


class TimedWord(BaseModel):
    """A word of a transcript, as in ``verbose_json``."""

    word: str
    start: Seconds
    end: Seconds


class TimedSegment(BaseModel):
    """A segment of a transcript."""

    start: Seconds
    end: Seconds
    text: str
    words: tuple[TimedWord, ...] | None = None


class TimedText(BaseModel):
    """The body of a request for subtitles: a transcript that the client already has."""

    segments: tuple[TimedSegment, ...]


def files_router() -> APIRouter:
    """Return the routes of the page's files."""
    router = APIRouter(include_in_schema=False)
    folder = files("tiny_audio.serving.page")
    known = {entry.name: entry.read_bytes() for entry in folder.iterdir() if Path(entry.name).suffix in _TYPES}

    def answer(name: str) -> Response:
        return Response(known[name], media_type=_TYPES[Path(name).suffix], headers=_HEADERS)

    @router.get("/")
    async def index() -> Response:
        return answer("index.html")

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in known:
            raise HTTPException(404, f"there is no file {name!r}")
        return answer(name)

    return router


def router(service: Service, card: Card) -> APIRouter:
    """Return the routes of the data that the page shows."""
    router = APIRouter()

    @router.get("/v1/card")
    async def show_card() -> Card:
        """Return the model's name, parts and word error rates."""
        return card

    @router.post("/v1/subtitles/{format}")
    async def subtitles(format: Literal["srt", "vtt"], request: Request) -> PlainTextResponse:
        """Convert the client's transcript to subtitles."""
        async with AsyncExitStack() as stack:
            await service.admit(request, stack)
            body = await _small_body(request)
            work = asyncio.get_running_loop().run_in_executor(service.decoders, _subtitles, format, body)
            return PlainTextResponse(await work)

    return router


async def _small_body(request: Request) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            async for block in request.stream():
                body += block
                if len(body) > _MAX_BYTES:
                    raise ApiError(413, f"the transcript has more than {_MAX_BYTES:,} bytes")
    except TimeoutError:
        raise ApiError(408, f"the transcript did not arrive within {_TIMEOUT_S:g} s") from None
    return body


def _subtitles(format: str, body: bytes) -> str:
    try:
        text = TimedText.model_validate_json(body)
    except ValidationError as error:
        raise ApiError(400, f"the request body is not a transcript with segments: {problems(error)}") from error
    shown = cues(_segment(segment) for segment in text.segments)
    return as_srt(shown) if format == "srt" else as_vtt(shown)


def _segment(timed: TimedSegment) -> Segment:
    words = None
    if timed.words is not None:
        # Some clients send spaces around words, or words that are empty.
        texts = [" ".join(word.word.split()) for word in timed.words]
        words = tuple(
            Word(text, word.start, word.end, None) for text, word in zip(texts, timed.words, strict=True) if text
        )
    return Segment(timed.start, timed.end, timed.text, None, False, None, words, None)
