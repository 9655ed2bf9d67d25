"""A file can consist of several joined recordings. ``joined_files`` finds the byte range of each recording.

The test files have valid headers, but contain no audio.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_audio.audio._joined import joined_files

EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


def boxes(*kinds: bytes) -> bytes:
    return b"".join((24).to_bytes(4, "big") + kind + bytes(16) for kind in kinds)


def riff(kind: bytes, size: int = 20) -> bytes:
    return b"RIFF" + size.to_bytes(4, "little") + kind + bytes(16)


def matroska(content: bytes, *, has_size: bool = True) -> bytes:
    size = len(content) | 1 << 28 if has_size else (1 << 29) - 1
    return EBML + b"\x84" + bytes(4) + SEGMENT + size.to_bytes(4, "big") + content


MP4, AVI, SAMPLES = boxes(b"ftyp", b"moov", b"mdat"), riff(b"AVI "), bytes(100)


@pytest.mark.parametrize(
    "files",
    [
        (MP4, boxes(b"ftyp", b"mdat", b"free", b"moov"), MP4),
        (boxes(b"ftyp", b"moov") + bytes([0, 0, 0, 1]) + b"mdat" + (24).to_bytes(8, "big") + bytes(8), MP4),
        (AVI, AVI),
        (riff(b"AVI ", 21) + bytes(2), AVI, MP4),
        (AVI + riff(b"AVIX") + riff(b"AVIX"), AVI),
        (matroska(SAMPLES), matroska(SAMPLES)),
        (matroska(SAMPLES, has_size=False), matroska(SAMPLES, has_size=False), matroska(SAMPLES)),
    ],
)
def test_each_file_is_found(files: tuple[bytes, ...], tmp_path: Path) -> None:
    (tmp_path / "joined").write_bytes(b"".join(files))
    ranges = joined_files(tmp_path / "joined")
    assert [len(part) for part in ranges] == list(map(len, files))
    assert ranges[0].start == 0


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(boxes(b"ftyp", b"moov") + MP4, id="the header of a stream is repeated"),
        pytest.param(boxes(b"ftyp", b"moov", b"moof", b"mdat") + MP4, id="a stream of fragments"),
        pytest.param(AVI + riff(b"AVIX"), id="an AVI file above a gigabyte"),
        pytest.param(matroska(SAMPLES + matroska(SAMPLES) + SAMPLES), id="another file is inside the segment"),
        pytest.param(
            matroska(SAMPLES + EBML + SAMPLES, has_size=False), id="samples equal the first bytes of a header"
        ),
        pytest.param(boxes(b"ftyp", b"moov") + bytes(4) + b"mdat" + MP4, id="the last box has no size"),
        pytest.param(b"", id="empty"),
    ],
)
def test_one_file_stays_one(file: bytes, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(file)
    assert joined_files(tmp_path / "one") == [range(len(file))]
