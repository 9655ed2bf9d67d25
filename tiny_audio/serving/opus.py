"""Decode a stream of Opus audio with the FFmpeg program."""

from __future__ import annotations

import asyncio
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tiny_audio.frames import SAMPLE_RATE

CONTAINERS = {"webm": "matroska", "ogg": "ogg"}
"""Supported containers, and FFmpeg's name for each of them."""


class OpusDecoder:
    """A running FFmpeg process. Created by :func:`opus_decoder`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._input, self._output = process, process.stdin, process.stdout

    async def write(self, data: bytes) -> bool:
        """Send more data to FFmpeg. Wait while FFmpeg still has much data to decode.

        Returns:
            Whether FFmpeg accepts more data. False after data that FFmpeg cannot decode.
        """
        try:
            self._input.write(data)
            await self._input.drain()
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def end(self) -> None:
        """Tell FFmpeg that there is no more data."""
        self._input.close()

    async def read(self) -> bytes:
        """Return the next samples as 16-bit integers in mono at 16 kHz. At the end, the result is empty."""
        return await self._output.read(1 << 16)

    async def succeeded(self) -> bool:
        """Return whether all data was decoded. Call it after the last :meth:`read`."""
        return await self._process.wait() == 0


@asynccontextmanager
async def opus_decoder(container: str) -> AsyncIterator[OpusDecoder]:
    """Run FFmpeg inside the ``with`` block.

    FFmpeg's options forbid it to open files or network addresses, and to use decoders other than Opus.

    Args:
        container: one of :data:`CONTAINERS`.
    """
    program = shutil.which("ffmpeg")
    assert program is not None, "callers check has_ffmpeg"
    process = await asyncio.create_subprocess_exec(
        *(program, "-hide_banner", "-nostdin", "-nostats", "-v", "quiet"),
        *("-protocol_whitelist", "pipe", "-codec_whitelist", "opus,libopus", "-threads", "1"),
        *("-f", CONTAINERS[container], "-i", "pipe:0", "-map", "0:a:0"),
        *("-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le", "pipe:1"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    try:
        yield OpusDecoder(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
