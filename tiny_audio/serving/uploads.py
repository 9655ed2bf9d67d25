"""Receive and decode the file of a request. The file's name is never used as a path."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from torch import Tensor

from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.recording import recording_blocks
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.serving.admission import Ticket
from tiny_audio.serving.errors import ApiError, discard_body
from tiny_audio.serving.options import MEGABYTE, Limits

MAX_FIELDS, MAX_FIELD_BYTES = 300, 1 << 14
_CHARSETS = ("utf-8", "utf8", "us-ascii", "iso-8859-1")
IDLE_S = 20.0
"""Maximum time without data from the client."""
LABEL = "file"
"""Name of an upload in messages. The client's file name may be private or contain any characters."""


async def receive_form(request: Request, limits: Limits) -> FormData:
    """Receive a form with at most one file. The caller must close the form.

    Raises:
        ApiError: the body is too large, arrives too slowly, or is not a form.
        ClientDisconnect: the client has closed the connection.
    """
    body = _Body(request, limits)
    try:
        return await body.form()
    except ApiError as error:
        if body.more and error.status != 408:
            await discard_body(request.receive)
        raise


class _Body(MultiPartParser):
    """The body of a request."""

    def __init__(self, request: Request, limits: Limits) -> None:
        super().__init__(
            request.headers, self._parts(), max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
        )
        self._request, self._limits = request, limits
        self._is_complete = False
        self.more = True
        """Whether more of the body will arrive."""

    def on_end(self) -> None:
        """Record that the last boundary was found. Without it, the file may be incomplete."""
        self._is_complete = True

    async def form(self) -> FormData:
        """Receive and parse the body."""
        name, options = parse_options_header(self.headers.get("content-type", ""))
        kind, charset = name.decode("latin-1"), options.get(b"charset", b"utf-8").decode("latin-1")
        if kind != "multipart/form-data":
            raise ApiError(
                400, f"the content type is {kind or 'missing'!r}; send multipart/form-data with `file` and `model`"
            )
        # Other charsets, such as UTF-7, can contain lone surrogates, which the tokenizer cannot encode.
        if charset.lower() not in _CHARSETS:
            raise ApiError(400, f"the form's charset is {charset!r}; send the texts as UTF-8")
        stated = self.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self._limits.max_upload_bytes:
            raise _too_large(self._limits)
        try:
            async with asyncio.timeout(self._limits.upload_timeout_s):
                return await self.parse()
        except TimeoutError:
            message = f"the upload stopped, or did not arrive within {self._limits.upload_timeout_s:g} s"
            raise ApiError(408, message, code="upload_timeout") from None
        except MultiPartException as error:
            raise ApiError(400, f"the form cannot be read: {error.message}") from error

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        size = 0
        while self.more:
            async with asyncio.timeout(IDLE_S):
                message = await self._request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            size += len(message["body"])
            self.more = message.get("more_body", False)
            if size > self._limits.max_upload_bytes:
                raise _too_large(self._limits)
            yield message["body"]
        if not self._is_complete:
            raise MultiPartException("the last boundary is missing")


def _too_large(limits: Limits) -> ApiError:
    megabytes = limits.max_upload_bytes / MEGABYTE
    return ApiError(
        413,
        f"the upload is larger than {megabytes:g} MB; compress the audio (flac, mp3, opus), or send a shorter file",
        param="file",
        code="file_too_large",
    )


def decode(file: BinaryIO, limits: Limits, ticket: Ticket, stopped: threading.Event) -> Iterator[Tensor]:
    """Decode an upload, and yield it in blocks ``[samples]`` at 16 kHz. Only a few blocks are in memory.

    Args:
        file: the upload.
        limits: the server's limits.
        ticket: counts the decoded audio.
        stopped: set if the rest is no longer needed.

    Raises:
        ApiError: the file cannot be decoded, or is too long.
        BusyError: there is no room for the decoded audio.
    """
    # Decoders read from a path, so copy the upload to a file with a fixed name.
    with tempfile.TemporaryDirectory(prefix="tiny-audio-") as folder:
        path = Path(folder) / "upload"
        with path.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        try:
            for block in recording_blocks(path, LABEL):
                ticket.add_audio(len(block))
                if ticket.samples > limits.max_duration_s * SAMPLE_RATE:
                    raise ApiError(
                        400,
                        f"the recording is longer than {limits.max_duration_s:g} s; cut it",
                        param="file",
                        code="too_long",
                    )
                if stopped.is_set():
                    return
                yield block
        except AudioError as error:
            raise ApiError(400, str(error), param="file", code=error.reason) from error
