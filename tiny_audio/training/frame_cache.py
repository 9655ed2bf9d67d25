"""Cache the frames of a frozen encoder on disk. The frames of a clip are the same in every epoch."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tiny_audio.encoders import Encoder
from tiny_audio.frames import Frames


@dataclass(frozen=True)
class _Entry:
    """Offset in bytes, shape and type of one clip's frames ``[T, D]`` in the file."""

    start: int
    shape: torch.Size
    dtype: torch.dtype


class FrameCache:
    """Caches the frames of clips in a file. The key of a clip is a hash of its waveform.

    Each clip is encoded alone, so that its frames do not depend on the batch. The file is temporary, so the system
    frees its space even if the process is killed. When the file is full, new frames are not stored. Replacing old
    frames would not help, because most clips are needed again only in the next epoch.

    Args:
        encoder: a frozen encoder without dropout.
        limit_bytes: maximum size of the file.
        folder: folder of the file. If this folder does not exist, the file is in the system's temporary folder.
    """

    def __init__(self, encoder: Encoder, limit_bytes: int, folder: Path) -> None:
        self._encoder = encoder
        self._limit_bytes = limit_bytes
        # Bytes that do not fit on the disk would stay in a buffer, and each later seek would fail. So use no buffer.
        self._file = tempfile.TemporaryFile(dir=folder if folder.is_dir() else None, buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._size = 0
        self._entries: dict[bytes, _Entry] = {}
        self.num_encoded = 0
        """Number of times that a clip was encoded."""

    @torch.no_grad()
    def frames(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        """Return the frames of a batch, on the encoder's device.

        Args:
            waveforms: ``[B, S]`` float32 at 16 kHz, on the CPU.
            lengths: ``[B]`` in samples, on the CPU.
        """
        rows = [self._row(row[:length]) for row, length in zip(waveforms, lengths.tolist(), strict=True)]
        sizes = torch.tensor([len(row) for row in rows], device=rows[0].device)
        return Frames(pad_sequence(rows, batch_first=True), sizes, self._encoder.frame_rate)

    def _row(self, waveform: Tensor) -> Tensor:
        device = next(self._encoder.parameters()).device
        key = hashlib.blake2b(waveform.numpy().tobytes(), digest_size=16).digest()
        entry = self._entries.get(key)
        if entry is not None:
            return self._read(entry).to(device)
        self.num_encoded += 1
        length = torch.tensor([len(waveform)], device=device)
        frames: Frames = self._encoder(waveform[None].to(device), length)
        values = frames.row(0).values[0]
        self._keep(key, values.cpu().contiguous())
        return values

    def _read(self, entry: _Entry) -> Tensor:
        self._file.seek(entry.start)
        content = bytearray(self._file.read(entry.shape.numel() * entry.dtype.itemsize))
        values: Tensor = torch.frombuffer(content, dtype=entry.dtype)
        return values.view(entry.shape)

    def _keep(self, key: bytes, values: Tensor) -> None:
        if self._size + values.nbytes > self._limit_bytes:
            return
        try:
            self._file.seek(self._size)
            rest = memoryview(values.view(torch.uint8).numpy().tobytes())
            while rest:  # if the disk is nearly full, a call writes only a part, and the next call raises the error
                rest = rest[self._file.write(rest) :]
        except OSError:  # the disk is full; training continues with the frames that are already in the file
            self._limit_bytes = self._size
            return
        self._entries[key] = _Entry(self._size, values.shape, values.dtype)
        self._size += values.nbytes
