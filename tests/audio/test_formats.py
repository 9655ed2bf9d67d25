"""The list of audio suffixes, compared with the formats that libsndfile can read and write."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from tiny_audio.audio.formats import FFMPEG, SNDFILE, is_audio_name
from tiny_audio.audio.load import load_audio

AMBIGUOUS = {"RAW", "MAT4", "MAT5", "SD2", "MPC2K", "WVE", "WAVEX"}


def test_every_format_of_libsndfile_has_a_suffix() -> None:
    assert set(soundfile.available_formats()) - AMBIGUOUS <= SNDFILE.keys()


@pytest.mark.parametrize("name", sorted(SNDFILE.keys() - {"SDS", "HTK", "MP3", "XI", "SVX"}))
def test_formats_can_be_read(name: str) -> None:
    file = io.BytesIO()
    try:
        soundfile.write(file, 0.1 * np.sin(np.arange(16_000) * 0.1), 16_000, format=name)
    except soundfile.LibsndfileError:
        pytest.skip("this version of libsndfile cannot write the format")
    assert len(load_audio(file.getvalue(), max_duration_s=2)) == 16_000


@pytest.mark.parametrize("name", ["a.wav", "b.WAVE", "c.Mp3", "d.e.aifc", "f.MOV", "g.mka", "h.3gp", "i.opus"])
def test_audio_files_are_recognized_by_name(name: str) -> None:
    assert is_audio_name(name)


@pytest.mark.parametrize("name", ["a.txt", "wav", ".wav", "b.wav.part", "c.ts", "d.mat", "e.json", "f.srt", "g.png"])
def test_other_files_are_not_recognized(name: str) -> None:
    assert not is_audio_name(name)


def test_no_suffix_is_in_both_lists() -> None:
    suffixes = [suffix for group in SNDFILE.values() for suffix in group]
    assert len({*suffixes, *FFMPEG}) == len(suffixes) + len(FFMPEG)
