"""Find tags (ID3, APE and Lyrics3) before and after the audio of a file."""

from __future__ import annotations

from tiny_audio.audio._parts import Data

_MAX_TAGS = 16


def after_id3(data: Data, start: int) -> int:
    """Return the end of the ID3v2 tags that begin at ``start``; ``start`` if there are none."""
    for _ in range(_MAX_TAGS):
        head = data.read(start, 10)
        if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 0x7F:
            break
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        start += 10 + size + (10 if head[5] & 0x10 else 0)
    return min(start, data.size)


def before_tags(data: Data, start: int, end: int) -> int:
    """Return the start of the tags before ``end``; ``end`` if there are none."""
    for _ in range(_MAX_TAGS):
        size = _size_of_last(data, start, end)
        if size == 0 or end - size < start:
            break
        end -= size
    return end


def _size_of_last(data: Data, start: int, end: int) -> int:
    tail = data.read(max(start, end - 128), min(128, end - start))
    if tail[-128:-125] == b"TAG" and len(tail) == 128:
        extended = data.read(end - 355, 4) if end - 355 >= start else b""
        return 355 if extended == b"TAG+" else 128
    if tail[-32:-24] == b"APETAGEX":
        size, flags = int.from_bytes(tail[-20:-16], "little"), int.from_bytes(tail[-12:-8], "little")
        return size + (32 if flags & 0x80000000 else 0)  # the stated size does not include the header
    if tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
        return int(tail[-15:-9]) + 15
    if tail[-10:-7] == b"3DI" and max(tail[-4:]) <= 0x7F:
        return 20 + (tail[-4] << 21 | tail[-3] << 14 | tail[-2] << 7 | tail[-1])
    if tail[-9:] == b"LYRICSEND":
        begin = data.find(b"LYRICSBEGIN", max(start, end - 5_200), end)
        return end - begin if begin >= 0 else 0
    return 0


def tag_at(data: Data, start: int, end: int) -> int:
    """Return the size of the tag that begins at ``start``; 0 if there is none."""
    head = data.read(start, 32)
    if head[:3] == b"ID3":
        return after_id3(data, start) - start
    if head[:3] == b"TAG":
        return 227 if head[3:4] == b"+" else 128
    if head[:8] == b"APETAGEX":
        size, flags = int.from_bytes(head[12:16], "little"), int.from_bytes(head[20:24], "little")
        # With this flag, the 32 bytes are the header of a tag, and the content follows. Otherwise, they are a footer.
        return size + 32 if flags & 0x20000000 else 32
    if head[:11] == b"LYRICSBEGIN":
        after = data.find(b"LYRICS", start + 11, min(end, start + 1_000_000))
        return after + 9 - start if after >= 0 else 0
    return 0
