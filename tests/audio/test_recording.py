"""Recordings decoded by FFmpeg: positions, tracks and channels. Valid files lose no audio, and no audio is added."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tests.audio.encoded_clips import encoded
from tests.audio.encoded_files import clip, ffmpeg, offset, speech
from tests.support.fast import fast_ones
from tests.support.messages import assert_names
from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.ffmpeg import has_ffmpeg
from tiny_audio.audio.recording import recording_blocks
from tiny_audio.frames import SAMPLE_RATE

pytestmark = pytest.mark.skipif(not has_ffmpeg(), reason="needs FFmpeg")
ONE, TWO = speech(4.0), speech(4.0, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for seed, name in enumerate(("one.wav", "two.wav")):
        (folder / name).write_bytes(clip("wav", 4.0, seed))
    return folder


def encode_both(place: Path, options: Sequence[tuple[str | int, ...]], ending: str) -> None:
    """Encode ``one.wav`` with ``options[0]``, and ``two.wav`` with ``options[1]``.

    One run of FFmpeg is faster than two.
    """
    inputs = ("-i", place / "one.wav", "-i", place / "two.wav")
    names = enumerate(("one", "two"))
    ffmpeg(*inputs, *chain.from_iterable(("-map", i, *options[i], place / f"{name}{ending}") for i, name in names))


def decoded(path: Path, track: int | None = None, channel: int | None = None) -> np.ndarray:
    return np.concatenate([block.numpy() for block in recording_blocks(path, path.name, track=track, channel=channel)])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clean.m4a", ["-c:a", "aac"]),
        pytest.param("clean.mp4", ["-c:a", "libmp3lame"], marks=pytest.mark.slow),
        pytest.param("clean.webm", ["-c:a", "libopus"], marks=pytest.mark.slow),
        pytest.param("clean.mka", ["-c:a", "libvorbis"], marks=pytest.mark.slow),
        pytest.param("clean.wma", ["-c:a", "wmav2"], marks=pytest.mark.slow),
        ("clean51.mov", ["-c:a", "pcm_s16le", "-ac", "6"]),
        pytest.param("clean48.mkv", ["-c:a", "flac", "-ar", "48000"], marks=pytest.mark.slow),
    ],
)
def test_valid_files_are_decoded_completely(
    place: Path, name: str, options: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    ffmpeg("-i", place / "one.wav", *options, place / name)
    ffmpeg("-i", place / name, "-ac", "1", "-ar", SAMPLE_RATE, place / "expected.wav")
    waveform = decoded(place / name)
    assert abs(len(waveform) - (place / "expected.wav").stat().st_size // 2) <= 100  # allows for the WAV header
    assert abs(offset(waveform, ONE, 3.0)) < 0.07
    assert not caplog.records


def test_one_channel_keeps_its_level(place: Path) -> None:
    ffmpeg("-i", place / "one.wav", "-ac", "1", "-c:a", "flac", place / "level.mka")
    assert np.std(decoded(place / "level.mka")) == pytest.approx(np.std(ONE), rel=0.02)


@pytest.mark.parametrize("name", fast_ones(["late.mp4", "late.mkv", "late.mov"], "late.mp4"))
def test_audio_that_starts_after_the_video_keeps_its_position(
    place: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    film = ("-f", "lavfi", "-i", "testsrc=s=64x64:r=5:d=7")
    ffmpeg(*film, "-itsoffset", "3", "-i", place / "one.wav", "-c:v", "mpeg4", "-c:a", "aac", place / name)
    waveform = decoded(place / name)
    assert offset(waveform, ONE, 1.0) == pytest.approx(3.0, abs=0.1)
    assert len(waveform) / SAMPLE_RATE == pytest.approx(7.0, abs=0.15)
    assert not waveform[: 2 * SAMPLE_RATE].any()
    assert_names(caplog.records[0].getMessage(), name)


@pytest.mark.parametrize("name", fast_ones(["alone.m4a", "alone.webm"], "alone.webm"))
def test_audio_without_video_that_starts_late_keeps_its_position(place: Path, name: str) -> None:
    ffmpeg("-itsoffset", "3", "-i", place / "one.wav", place / name)
    assert offset(decoded(place / name), ONE, 1.0) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("name", "codec"), [("late.ts", "aac"), pytest.param("late.mpg", "mp2", marks=pytest.mark.slow)]
)
def test_audio_that_starts_after_the_video_of_a_broadcast_keeps_its_position(
    place: Path, name: str, codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    film = ("-f", "lavfi", "-i", "testsrc=s=64x64:r=25:d=7")
    rate = ("-ar", "48000")
    ffmpeg(*film, "-itsoffset", "3", "-i", place / "one.wav", "-c:v", "mpeg2video", "-c:a", codec, *rate, place / name)
    assert offset(decoded(place / name), ONE, 1.0) == pytest.approx(3.0, abs=0.1)
    assert_names(caplog.records[0].getMessage(), f"{name}: 0.00 2.9")


@pytest.mark.parametrize("suffix", fast_ones(["ts", "aac"], "ts"))
def test_the_channels_of_a_track_change(place: Path, suffix: str) -> None:
    """In a broadcast, a track may change between mono, stereo and surround."""
    outputs = [("-ac", channels, "-ar", "48000", "-c:a", "aac") for channels in ("1", "2")]
    encode_both(place, outputs, f".{suffix}")
    parts = [(place / f"{name}.{suffix}").read_bytes() for name in ("one", "two", "one")]
    (place / f"changes.{suffix}").write_bytes(b"".join(parts))
    waveform = decoded(place / f"changes.{suffix}")
    assert len(waveform) / SAMPLE_RATE == pytest.approx(12.0, abs=0.4)
    assert offset(waveform, TWO, 2.0) == pytest.approx(4.0, abs=0.15)
    assert offset(waveform[7 * SAMPLE_RATE :], ONE, 2.0) == pytest.approx(1.0, abs=0.3)


def test_the_sampling_rate_of_a_track_changes(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    encode_both(place, [("-ar", rate, "-c:a", "aac") for rate in (16_000, 44_100)], "-rate.ts")
    joined = b"".join((place / f"{name}-rate.ts").read_bytes() for name in ("one", "two"))
    (place / "rates.ts").write_bytes(joined)
    assert abs(offset(decoded(place / "rates.ts"), ONE, 2.0)) < 0.1
    assert "rates.ts: its sampling rate changes" in caplog.text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("joined.m4a", ("-c:a", "aac")),
        ("joined.wma", ("-c:a", "wmav2")),
        # These formats are slow to encode. For the fast tests, test_joined.py has files of the same structure, but
        # without audio.
        pytest.param("joined.webm", ("-c:a", "libopus"), marks=pytest.mark.slow),
        pytest.param("live.webm", ("-c:a", "libopus", "-live", "1"), marks=pytest.mark.slow),
        pytest.param("joined.avi", ("-c:a", "libmp3lame"), marks=pytest.mark.slow),
    ],
)
def test_joined_files_are_decoded_completely(
    place: Path, name: str, options: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    encode_both(place, [options, options], f"-{name}")
    (place / name).write_bytes((place / f"one-{name}").read_bytes() + (place / f"two-{name}").read_bytes())
    waveform = decoded(place / name)
    assert len(waveform) / SAMPLE_RATE == pytest.approx(8.0, abs=0.3)
    assert abs(offset(waveform, ONE, 2.0)) < 0.1
    assert offset(waveform, TWO, 2.0) == pytest.approx(4.0, abs=0.2)
    assert_names(caplog.records[0].getMessage(), f"{name}: 2")


def test_a_damaged_file_among_joined_files_is_left_out(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    ffmpeg("-i", place / "one.wav", "-c:a", "aac", place / "whole.m4a")
    whole = (place / "whole.m4a").read_bytes()
    damaged = b"".join((8).to_bytes(4, "big") + kind for kind in (b"ftyp", b"moov", b"mdat"))
    expected = decoded(place / "whole.m4a")
    for number, content in ((2, whole + damaged), (1, damaged + whole)):
        caplog.clear()
        (place / f"damaged{number}.m4a").write_bytes(content)
        assert np.array_equal(decoded(place / f"damaged{number}.m4a"), expected)
        assert_names(caplog.text, f"file {number} is left out")
    (place / "damaged.m4a").write_bytes(2 * damaged)
    with pytest.raises(AudioError):
        decoded(place / "damaged.m4a")


def test_a_repeated_header_in_a_stream_does_not_begin_a_second_file(place: Path) -> None:
    fragments = ("-movflags", "frag_keyframe+empty_moov+default_base_moof", "-frag_duration", "1000000")
    ffmpeg("-i", place / "one.wav", "-c:a", "aac", *fragments, place / "fragments.mp4")
    whole = (place / "fragments.mp4").read_bytes()
    start, middle = whole.index(b"moof") - 4, whole.index(b"moof", len(whole) // 2) - 4
    (place / "repeated.mp4").write_bytes(whole[:middle] + whole[:start] + whole[middle:])
    expected = decoded(place / "fragments.mp4")
    assert len(decoded(place / "repeated.mp4")) == pytest.approx(len(expected), abs=1_600)


def test_tracks_whose_language_has_a_region(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    languages = ("-metadata:s:a:0", "language=en-US", "-metadata:s:a:1", "language=de-DE")
    inputs = ("-i", place / "one.wav", "-i", place / "two.wav", "-map", "0", "-map", "1")
    ffmpeg(*inputs, "-c:a", "pcm_s16le", *languages, place / "regions.mkv")
    assert abs(offset(decoded(place / "regions.mkv"), ONE, 2.0)) < 0.1
    assert_names(caplog.records[0].getMessage(), "regions.mkv: 2 en-US --audio-track")
    assert abs(offset(decoded(place / "regions.mkv", 2), TWO, 2.0)) < 0.1


@pytest.mark.parametrize("rate", fast_ones([16_000, 48_000], 48_000))
def test_mpeg_layer_2(place: Path, rate: int) -> None:
    for suffix in ("mp2", "wav"):
        name = f"layer2-{rate}.{suffix}"
        ffmpeg("-i", place / "one.wav", "-ar", rate, "-c:a", "mp2", place / name)
        waveform = decoded(place / name)
        assert len(waveform) / SAMPLE_RATE == pytest.approx(4.0, abs=0.2)
        assert abs(offset(waveform, ONE, 3.0)) < 0.15


def test_tracks_of_an_ogg_file(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    ffmpeg("-i", place / "one.wav", "-i", place / "two.wav", "-map", "0", "-map", "1", place / "tracks.ogg")
    assert abs(offset(decoded(place / "tracks.ogg"), ONE, 2.0)) < 0.1
    assert_names(caplog.records[0].getMessage(), "tracks.ogg: 2 --audio-track")
    assert abs(offset(decoded(place / "tracks.ogg", 2), TWO, 2.0)) < 0.1


@pytest.mark.parametrize("codec", ["flac", "libvorbis", "libopus"])
@pytest.mark.parametrize("at_page", [False, True])
def test_an_ogg_file_that_is_cut_off(place: Path, codec: str, at_page: bool, caplog: pytest.LogCaptureFixture) -> None:
    name = f"{codec}-{at_page}.ogg"
    ffmpeg("-i", place / "one.wav", "-c:a", codec, "-page_duration", "500000", place / name)
    whole = (place / name).read_bytes()
    (place / name).write_bytes(whole[: whole.index(b"OggS", len(whole) * 2 // 3) - (0 if at_page else 9)])
    waveform = decoded(place / name)
    assert 1.5 < len(waveform) / SAMPLE_RATE < 3.9
    assert abs(offset(waveform, ONE, 0.5)) < 0.1
    assert_names(caplog.records[0].getMessage(), f"{name}:")


@pytest.mark.parametrize(
    ("name", "codec"),
    [("hole.mkv", "pcm_s16le"), ("hole.mp4", "aac"), pytest.param("hole.webm", "libopus", marks=pytest.mark.slow)],
)
def test_audio_after_a_gap_keeps_its_position(place: Path, name: str, codec: str) -> None:
    hole = "[0][1]concat=n=2:v=0:a=1,aselect='lt(t,2)+gte(t,5)'"
    ffmpeg("-i", place / "one.wav", "-i", place / "two.wav", "-filter_complex", hole, "-c:a", codec, place / name)
    waveform = decoded(place / name)
    assert offset(waveform, ONE, 1.0) == pytest.approx(0.0, abs=0.1)
    assert offset(waveform, TWO, 3.0) == pytest.approx(4.0, abs=0.1)


def test_the_default_or_the_selected_track_is_decoded(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    both = ("-map", "0", "-map", "1", "-c:a", "aac", "-disposition:a:0", "0", "-disposition:a:1")
    outputs = (*both, "default", place / "second.mkv", *both, "0", place / "none.mkv")
    ffmpeg("-i", place / "one.wav", "-i", place / "two.wav", *outputs)
    for name, track, expected in (
        ("second.mkv", None, TWO),
        ("second.mkv", 1, ONE),
        ("second.mkv", 2, TWO),
        ("none.mkv", None, ONE),
    ):
        caplog.clear()
        assert abs(offset(decoded(place / name, track), expected, 2.0)) < 0.1
        assert [name in record.getMessage() for record in caplog.records] == [True] * (track is None)
    with pytest.raises(AudioError) as caught:
        decoded(place / "second.mkv", 3)
    assert caught.value.reason == "no_such_track"
    assert_names(caught.value, "second.mkv: 2 3")


def test_channels_are_mixed_or_selected(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place / "opposite.wav").write_bytes(encoded(np.stack([ONE, -ONE], 1)))
    (place / "pair.wav").write_bytes(encoded(np.stack([ONE, TWO], 1)))
    inputs = ("-i", place / "opposite.wav", "-i", place / "pair.wav")
    encoder = ("-c:a", "aac", "-b:a", "128k")
    ffmpeg(*inputs, "-map", "0", *encoder, place / "opposite.m4a", "-map", "1", *encoder, place / "pair.m4a")
    assert abs(offset(decoded(place / "opposite.m4a"), ONE, 2.0)) < 0.1
    assert_names(caplog.records[0].getMessage(), "opposite.m4a: 1")
    for channel, expected in ((1, ONE), (2, TWO)):
        assert abs(offset(decoded(place / "pair.m4a", channel=channel), expected, 2.0)) < 0.1


def test_damage_gives_a_warning(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    ffmpeg("-i", place / "one.wav", "-c:a", "aac", place / "whole.m4a")
    data = bytearray((place / "whole.m4a").read_bytes())
    start = data.index(b"mdat")
    data[start + 8_000 : start + 10_000] = b"\xaa" * 2_000
    (place / "damaged.m4a").write_bytes(data)
    waveform = decoded(place / "damaged.m4a")
    for start_s in (0.3, 3.2):
        assert abs(offset(waveform, ONE, start_s)) < 0.1
    assert_names(caplog.records[0].getMessage(), "damaged.m4a:")


def test_wav_codecs_that_libsndfile_lacks_are_decoded(place: Path) -> None:
    """If libsndfile does not support the codec of a WAV file, FFmpeg decodes the file."""
    codecs: dict[str, tuple[str, ...]] = {"ac3": (), "g726": ("-ar", "8000"), "adpcm_swf": ("-ar", "22050")}
    outputs = (("-c:a", codec, *rate, "-f", "wav", place / f"{codec}.wav") for codec, rate in codecs.items())
    ffmpeg("-i", place / "one.wav", *chain.from_iterable(outputs))
    for codec in codecs:
        assert len(decoded(place / f"{codec}.wav")) / SAMPLE_RATE == pytest.approx(4.0, abs=0.15)


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile one.wav\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{0}</BaseURL></MPD>',
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 49170 RTP/AVP 0\n",
    ],
    ids=["hls", "concat", "dash", "sdp"],
)
def test_files_in_a_playlist_are_not_opened(place: Path, playlist: str) -> None:
    (place / "list.mp4").write_text(playlist.format(place / "one.wav"))
    with pytest.raises(AudioError) as caught:
        decoded(place / "list.mp4")
    assert caught.value.reason in ("undecodable", "not_audio")
