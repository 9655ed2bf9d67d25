"""One live stream: it receives audio over a WebSocket, and sends partial and final texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict

import numpy as np
import torch
from fastapi import WebSocket, WebSocketDisconnect
from torch import Tensor

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.live import Final, LiveStream, Partial
from tiny_audio.inference.segments import Transcription
from tiny_audio.serving.metrics import LOG
from tiny_audio.serving.options import Options
from tiny_audio.serving.opus import CONTAINERS, OpusDecoder, opus_decoder

_BLOCK = SAMPLE_RATE // 10
"""Samples that are processed in one step. Other connections are served between the steps."""
_BURST_S = 2.0
"""The server processes audio at most this many seconds earlier than ``max_speed`` allows. For example, ``max_speed=8``
alone would allow the first 40 s of a stream after 5 s. With this margin of 2 s, they may be processed after 3 s."""
_MAX_TEXT = 100
"""Only this many characters of a text message are parsed. Longer JSON could be nested too deeply for the parser."""
Decode = Callable[[Tensor], Awaitable[Transcription]]


class ClientError(Exception):
    """Closes a stream with an error message.

    Args:
        code: the WebSocket's close code.
        message: what was given, what is allowed, what to do.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class LiveSession:
    """Receives the audio of one stream from a WebSocket, and sends the texts of the stream to the client.

    Args:
        websocket: an accepted connection.
        stream: used for this session only.
        decode: transcribes a waveform ``[S]`` as one recording.
        words: whether final texts include word timestamps.
        options: the server's options.
    """

    def __init__(self, websocket: WebSocket, stream: LiveStream, decode: Decode, words: bool, options: Options) -> None:
        self._websocket, self._stream, self._decode, self._words = websocket, stream, decode, words
        self._limits, self._decode_timeout_s = options.live, options.limits.request_timeout_s
        self._log_transcripts = options.log_transcripts
        self._changed = asyncio.Event()  # set when audio was added or the stream has ended
        self._room = asyncio.Event()  # set when an utterance was transcribed, so that more audio may be added
        self._lock = asyncio.Lock()  # held while the stream is used, because a thread adds the audio
        self._started, self._ended = asyncio.get_running_loop().time(), False
        self._has_data = False  # whether the client has sent compressed audio
        self._rest = b""  # the first byte of a sample whose second byte has not arrived

    async def run(self, encoding: str) -> float:
        """Transcribe until the client ends the stream. Return the duration of its audio in seconds.

        Args:
            encoding: ``pcm16``, or a container of Opus.

        Raises:
            ClientError: the client sent invalid data or sent no audio for too long, an utterance was not transcribed
                in time, or the server is shutting down.
            WebSocketDisconnect: the client has closed the connection.
        """
        try:
            if encoding in CONTAINERS:
                async with opus_decoder(encoding) as decoder, asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._receive_opus(decoder))
                    tasks.create_task(self._read_samples(decoder, encoding))
                    tasks.create_task(self._transcribe())
            else:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._receive_samples())
                    tasks.create_task(self._transcribe())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return self._stream.duration_s

    async def send(self, **message: object) -> None:
        """Send a message to the client.

        Raises:
            WebSocketDisconnect: the client has disconnected, or does not receive the message in time.
        """
        try:
            async with asyncio.timeout(self._limits.send_timeout_s):
                await self._websocket.send_text(json.dumps(message, ensure_ascii=False))
        except TimeoutError:
            raise WebSocketDisconnect(1006, "the client does not receive") from None

    async def _transcribe(self) -> None:
        """Transcribe utterances and send their texts until the stream ends."""
        while True:
            # Clear the event and read `_ended` before sending texts. Audio that arrives meanwhile sets the event again.
            self._changed.clear()
            async with self._lock:
                ended, job = self._ended, self._stream.next_job()
            if job is not None:
                transcription = await self._decoded(job.chunk.waveform)
                async with self._lock:
                    self._stream.finish(job, transcription)
                self._room.set()
            async with self._lock:
                events = self._stream.take_events()
            for event in events:
                await self._send_event(event)
            if job is None:
                if ended:
                    return
                await self._changed.wait()

    async def _decoded(self, waveform: Tensor) -> Transcription:
        try:
            async with asyncio.timeout(self._decode_timeout_s):
                return await self._decode(waveform)
        except TimeoutError:
            raise ClientError(
                1013, f"an utterance was not transcribed within {self._decode_timeout_s:g} s; try again later"
            ) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The job was canceled, but not this task. This happens when the engine is closed.
            raise ClientError(1012, "the server is shutting down") from None

    async def _send_event(self, event: Partial | Final) -> None:
        if isinstance(event, Partial):
            await self.send(type="partial", **asdict(event))
            return
        if self._log_transcripts:
            LOG.info("live, %.2f to %.2f s: %s", event.start_s, event.end_s, event.text)
        message = {"type": "final", **asdict(event)}
        del message["words"]
        if self._words:
            message["words"] = [
                {"word": word.text, "start_s": word.start_s, "end_s": word.end_s} for word in event.words or ()
            ]
        await self.send(**message)

    async def _receive_samples(self) -> None:
        async for data in self._messages():
            await self._add(data)
        self._end()

    async def _receive_opus(self, decoder: OpusDecoder) -> None:
        async for data in self._messages():
            self._has_data = True
            if not await decoder.write(data):
                return
        decoder.end()

    async def _read_samples(self, decoder: OpusDecoder, encoding: str) -> None:
        while data := await decoder.read():
            await self._add(data)
        # FFmpeg also fails if it receives no data. This is not an error of the client, because a stream may be empty.
        if self._has_data and not await decoder.succeeded():
            raise ClientError(
                1007,
                f"the audio cannot be decoded as Opus in {encoding}; send Opus in this container, or change `encoding`",
            )
        self._end()

    async def _messages(self) -> AsyncIterator[bytes]:
        """Yield the client's audio until its end message."""
        while True:
            try:
                async with asyncio.timeout(self._limits.idle_timeout_s):
                    while (data := await self._message()) == b"":
                        pass  # an empty message has no audio
            except TimeoutError:
                raise ClientError(
                    1008, f'no audio for {self._limits.idle_timeout_s:g} s; send audio, or {{"type":"end"}} at the end'
                ) from None
            if data is None:
                return
            yield data

    async def _message(self) -> bytes | None:
        """Return the next message's audio, or None if it is the end message."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        data: bytes | None = message.get("bytes")
        if data is None and not _is_end(message["text"]):
            raise ClientError(1003, 'a text message is not {"type":"end"}; send audio as binary messages')
        if data is not None and len(data) > self._limits.max_message_bytes:
            raise ClientError(
                1009, f"a message has {len(data):,} bytes; send at most {self._limits.max_message_bytes:,}"
            )
        return data

    async def _add(self, data: bytes) -> None:
        """Add 16-bit samples. Wait if they arrive too fast, or if too much earlier audio is not yet transcribed."""
        data = self._rest + data
        whole = len(data) // 2 * 2
        self._rest = data[whole:]
        samples = torch.from_numpy(np.frombuffer(data[:whole], dtype="<i2").astype(np.float32) / 32768)
        for start in range(0, len(samples), _BLOCK):
            while self._stream.waiting_s > self._limits.max_waiting_s:
                self._room.clear()
                await self._room.wait()
            # `add` searches for speech, which takes time. In a thread, it does not block other connections.
            async with self._lock:
                await asyncio.to_thread(self._stream.add, samples[start : start + _BLOCK])
            self._changed.set()
            elapsed_s = asyncio.get_running_loop().time() - self._started
            await asyncio.sleep(max(0.0, self._stream.duration_s / self._limits.max_speed - elapsed_s - _BURST_S))

    def _end(self) -> None:
        self._stream.end()
        self._ended = True
        self._changed.set()


def _is_end(text: str) -> bool:
    try:
        message = json.loads(text[:_MAX_TEXT])
    except ValueError:
        return False
    return isinstance(message, dict) and message.get("type") == "end"
