"""Files with wrong headers, tags or additional bytes. All audio is decoded once, and other bytes are not decoded."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.audio.encoded_clips import encoded, flac_claiming, patched
from tests.audio.encoded_files import PCM, chunk, clip, offset, speech, wav_with
from tests.support.messages import assert_names
from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import audio_duration, load_audio
from tiny_audio.frames import SAMPLE_RATE

BYTES = 4 * SAMPLE_RATE * 2


def loaded(data: bytes, name: str = "clip") -> np.ndarray:
    """Return the audio of a clip. Check that ``audio_duration`` returns the duration of this audio, and that
    ``keep_damaged`` does not change the audio."""
    waveform = load_audio(data, max_duration_s=60, name=name)
    assert audio_duration(data, name=name) == pytest.approx(len(waveform) / SAMPLE_RATE, abs=1e-3)
    np.testing.assert_array_equal(load_audio(data, max_duration_s=60, name=name, keep_damaged=True), waveform)
    return waveform.numpy()


@pytest.mark.parametrize(
    "size",
    [0, 0x7FFFF000, 0x7FFFFFFF, 0x7FFFFFDB, 0x80000000, 0x80000024, 0xFFFFFFFF, 0xFFFFFFDB, 0xFFFFFF00, 0xFFFFFFFE],
)
@pytest.mark.parametrize("riff", [None, 0, 36, 0xFFFFFFFF, BYTES + 36])
def test_placeholders_for_the_size_of_a_wav_are_ignored(size: int, riff: int | None) -> None:
    np.testing.assert_array_equal(loaded(wav_with(size, riff)), load_audio(clip("wav"), max_duration_s=9))


@pytest.mark.parametrize("excess", [8, 36, 44, -20, -1_000, -BYTES // 2 + 1, -BYTES + 2])
def test_wrong_sizes_of_a_wav_do_not_change_the_audio(excess: int, caplog: pytest.LogCaptureFixture) -> None:
    name = f"size {excess}"
    np.testing.assert_array_equal(loaded(wav_with(BYTES + excess), name), load_audio(clip("wav"), max_duration_s=9))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (excess < 0), "there is one warning if the stated size would lose audio, else none"
    if warnings:
        assert_names(warnings[0].getMessage(), f"{name}: {(BYTES + excess) / BYTES * 4:.2f} s 4.00 s")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", chunk(b"LIST", 300)),
        (b"", chunk(b"LIST", 301)),
        (b"", chunk(b"LIST", 301)[:-1]),
        (chunk(b"bext", 602), chunk(b"id3 ", 5_000) + chunk(b"cue ", 28)),
        (chunk(b"JUNK", 28), b""),
        (chunk(b"LIST", 27)[:-1], b""),
        (b"", b"TAG" + bytes(125)),
        (b"", b"\0"),
        (b"", b"ID3\4\0\0\0\0\1\0" + bytes(128)),
        (b"", chunk(b"aXYZ", 40)),
    ],
)
@pytest.mark.parametrize("size", [BYTES, 0, 0xFFFFFFFF, BYTES - 4_000])
def test_chunks_around_the_samples_are_not_decoded(before: bytes, after: bytes, size: int) -> None:
    if size != BYTES and after[:4] in (b"\0", b"aXYZ", b"ID3\4"):
        pytest.skip("not distinguishable from samples")
    whole = load_audio(clip("wav"), max_duration_s=9)
    assert abs(len(loaded(wav_with(size, before=before, after=after))) - len(whole)) <= 64


@pytest.mark.parametrize("between", [b"", chunk(b"LIST", 30)])
def test_a_wav_with_two_chunks_of_samples(between: bytes) -> None:
    wav = clip("wav")
    samples = wav[44:]
    second = b"data" + struct.pack("<I", len(samples) - BYTES // 4) + samples[BYTES // 4 :]
    decoded = loaded(wav[:40] + struct.pack("<I", BYTES // 4) + samples[: BYTES // 4] + between + second)
    np.testing.assert_array_equal(decoded, load_audio(wav, max_duration_s=9))


def test_padding_after_a_further_chunk_of_samples_is_not_decoded() -> None:
    wav = clip("ulaw")
    start = wav.index(b"data") + 8
    samples = wav[start:]
    parts = (samples[:1_001], samples[1_001:3_002], samples[3_002:])
    further = b"".join(b"data" + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for part in parts)
    np.testing.assert_array_equal(loaded(wav[: start - 8] + further), load_audio(wav, max_duration_s=9))


@pytest.mark.parametrize("first", [16_000, 16_002])
@pytest.mark.parametrize("last_is_unknown", [False, True])
def test_a_further_chunk_of_samples_in_a_w64(first: int, last_is_unknown: bool) -> None:
    w64 = clip("w64")
    start = w64.index(b"data") + 24
    name, samples = w64[start - 24 : start - 8], w64[start:]
    last_size = (1 << 64) - 1 if last_is_unknown else 24 + len(samples) - first
    blocks = name + struct.pack("<Q", 24 + first) + samples[:first] + bytes(-first % 8)
    blocks += name + struct.pack("<Q", last_size) + samples[first:]
    np.testing.assert_array_equal(loaded(w64[: start - 24] + blocks), load_audio(w64, max_duration_s=9))


def test_a_further_chunk_of_samples_in_a_caf() -> None:
    caf = clip("caf")
    start = caf.index(b"data") + 16
    edits, samples = caf[start - 4 : start], caf[start:]
    parts = (samples[:16_000], samples[16_000:])
    blocks = b"".join(b"data" + struct.pack(">q", 4 + len(part)) + edits + part for part in parts)
    np.testing.assert_array_equal(loaded(caf[: start - 16] + blocks), load_audio(caf, max_duration_s=9))


def test_the_messages_at_the_limit_of_joined_files_do_not_say_that_all_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tiny_audio.audio._containers._MAX_CHUNKS", 3)
    joined = clip("wav", 1.0) * 4
    with pytest.raises(AudioError) as caught:
        load_audio(joined, max_duration_s=9, name="four")
    assert len(load_audio(joined, max_duration_s=9, name="four", keep_damaged=True)) == 3 * SAMPLE_RATE
    (record,) = caplog.records
    for text in (str(caught.value), record.getMessage()):
        assert_names(text, "four: more than 3 joined files not read")


@pytest.mark.parametrize("kind", ["wav", "rf64", "aiff", "flac", "vorbis", "opus"])
@pytest.mark.parametrize("junk", [bytes(512), b"HTTP/1.1 200 OK\r\nContent-Type: audio/x\r\n\r\n", b"\n"])
def test_bytes_before_the_header_are_skipped(kind: str, junk: bytes, caplog: pytest.LogCaptureFixture) -> None:
    name = f"{kind} after {len(junk)} bytes"
    np.testing.assert_array_equal(loaded(junk + clip(kind), name), load_audio(clip(kind), max_duration_s=9))
    assert_names(caplog.records[0].getMessage(), f"{name}: {len(junk)}")


def test_a_header_inside_a_matroska_file_is_not_the_start_of_the_audio() -> None:
    film = b"\x1aE\xdf\xa3" + bytes(60) + clip("flac")
    with pytest.raises(AudioError):
        load_audio(film, max_duration_s=9)


def test_an_empty_wav_is_rejected() -> None:
    for after in (b"", chunk(b"LIST", 20)):
        empty = clip("wav")[:40] + bytes(4) + after
        with pytest.raises(AudioError) as caught:
            load_audio(empty, max_duration_s=9)
        assert caught.value.reason == "empty"


@pytest.mark.parametrize("kind", PCM)
@pytest.mark.parametrize("share", [0.25, 0.9])
def test_audio_beyond_the_stated_size_is_decoded(kind: str, share: float) -> None:
    data, shorter = clip(kind), clip(kind, 4.0 * share)
    width = {"wav24": 3, "float": 4, "ulaw": 1}.get(kind, 2)
    header = len(data) - 4 * SAMPLE_RATE * width
    whole = load_audio(data, max_duration_s=9).numpy()
    np.testing.assert_array_equal(loaded(shorter[:header] + data[header:]), whole)


def test_long_wav_headers_are_read() -> None:
    rf64 = clip("rf64")
    whole = load_audio(rf64, max_duration_s=9).numpy()
    unknown = patched(patched(rf64, 20, b"\xff" * 8), 28, b"\xff" * 8)
    bw64 = b"BW64" + rf64[4:]
    wrong = patched(rf64, 28, struct.pack("<Q", 1_000))
    for data in (unknown, bw64, wrong):
        np.testing.assert_array_equal(loaded(data), whole)


@pytest.mark.parametrize("kind", ["wav", "w64", "aiff", "au", "caf", "flac", "vorbis", "opus", "mp3"])
def test_joined_files_are_decoded_completely(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    joined = clip(kind) + clip(kind, 2.0, 1)
    decoded = loaded(joined, f"two {kind}")
    assert len(decoded) / SAMPLE_RATE == pytest.approx(6.0, abs=0.1)
    assert offset(decoded, speech(4.0), 3.0) == pytest.approx(0.0, abs=0.02)
    assert offset(decoded, speech(2.0, 1), 1.0) == pytest.approx(4.0, abs=0.1)
    if kind not in ("au", "flac"):
        assert_names(caplog.records[0].getMessage(), f"two {kind}: 2")


def test_joined_files_can_have_different_rates() -> None:
    for kind, rate in (("WAV", 8_000), ("FLAC", 48_000), ("MP3", 48_000), ("OGG", 44_100)):
        other = encoded(speech(2.0, 1).repeat(3)[: 2 * rate], rate, kind=kind)
        first = encoded(speech(4.0), kind=kind)
        assert len(loaded(first + other)) / SAMPLE_RATE == pytest.approx(6.0, abs=0.15)


def test_a_flac_without_its_number_of_samples(tmp_path: Path) -> None:
    for total in (0, 9_000):
        np.testing.assert_array_equal(loaded(flac_claiming(total)), load_audio(flac_claiming(16_000), max_duration_s=9))


APE = b"APETAGEX" + struct.pack("<IIII", 2_000, 40_032, 1, 0xA0000000) + bytes(8) + b"x" * 40_000
APE += b"APETAGEX" + struct.pack("<IIII", 2_000, 40_032, 1, 0x80000000) + bytes(8)
LYRICS = b"LYRICSBEGIN" + b"IND0000200" + b"x" * 3_000 + b"003021LYRICS200"
ID3 = b"ID3\4\0\0\0\0\1\0" + b"Information Xing"[:16] + bytes(112)


@pytest.mark.parametrize("tags", [APE, APE + b"TAG" + bytes(125), LYRICS + b"TAG" + bytes(125), b"TAG" + bytes(125)])
@pytest.mark.parametrize("kind", ["mp3", "flac", "vorbis", "wav"])
def test_tags_at_the_end_are_ignored(kind: str, tags: bytes) -> None:
    np.testing.assert_array_equal(loaded(clip(kind) + tags), load_audio(clip(kind), max_duration_s=9))


def test_tags_before_and_between_files_are_ignored() -> None:
    mp3, whole = clip("mp3"), load_audio(clip("mp3"), max_duration_s=9).numpy()
    np.testing.assert_array_equal(loaded(ID3 + mp3), whole)
    untagged = mp3[mp3.index(b"\xff\xf3", 4) :]
    assert len(loaded(ID3 + untagged)) == pytest.approx(len(whole), abs=1_800)
    for tags in (ID3, APE, b"TAG" + bytes(125), APE + ID3):
        decoded = loaded(mp3 + tags + clip("mp3", 2.0, 1))
        assert offset(decoded, speech(2.0, 1), 1.0) == pytest.approx(4.0, abs=0.1)


def test_an_mp3_whose_tag_states_fewer_frames_is_decoded_completely() -> None:
    mp3 = clip("mp3")
    at = mp3.index(b"Info") if b"Info" in mp3[:200] else mp3.index(b"Xing")
    for frames in (1, 50):
        wrong = patched(mp3, at + 8, struct.pack(">I", frames))
        decoded = load_audio(wrong, max_duration_s=9, name=f"{frames} frames", keep_damaged=True).numpy()
        assert len(decoded) / SAMPLE_RATE == pytest.approx(4.0, abs=0.1)
        assert offset(decoded, speech(4.0), 3.0) == pytest.approx(0.0, abs=0.01)
        if frames == 1:
            assert len(loaded(wrong)) == len(decoded)  # the tag implies an impossible bit rate, so every frame is read
        else:
            with pytest.raises(AudioError) as caught:
                load_audio(wrong, max_duration_s=9)
            assert caught.value.reason == "unknown_length"


def test_an_mp3_whose_tag_states_more_bytes_than_there_are() -> None:
    mp3 = clip("mp3")
    decoded = loaded(b"ID3\3\0\0\x7f\x7f\x7f\x7f" + bytes(300) + mp3)
    np.testing.assert_array_equal(decoded, load_audio(mp3, max_duration_s=9))


def test_an_mp3_in_a_wav_is_decoded() -> None:
    mp3 = clip("mp3")
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, SAMPLE_RATE, 4_000, 1, 0, 12, 1, 2, 144, 1, 1_393)
    fact = b"fact" + struct.pack("<II", 4, 4 * SAMPLE_RATE + 1_105)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + fact + b"data" + struct.pack("<I", len(mp3)) + mp3
    decoded = loaded(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert len(decoded) / SAMPLE_RATE == pytest.approx(4.0, abs=0.1)
    assert offset(decoded, speech(4.0), 3.0) == pytest.approx(0.0, abs=0.1)
