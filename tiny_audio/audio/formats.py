"""Recognize audio files by the suffixes of the formats that libsndfile or FFmpeg decodes."""

from __future__ import annotations

import os

SNDFILE: dict[str, tuple[str, ...]] = {
    "WAV": (".wav", ".wave", ".bwf"),
    "RF64": (".rf64",),
    "W64": (".w64",),
    "FLAC": (".flac",),
    "OGG": (".ogg", ".oga", ".opus"),
    "MP3": (".mp3", ".mp2", ".mpga"),
    "AIFF": (".aif", ".aiff", ".aifc"),
    "AU": (".au", ".snd"),
    "CAF": (".caf",),
    "NIST": (".nist", ".sph"),
    "VOC": (".voc",),
    "SVX": (".8svx", ".svx"),
    "IRCAM": (".sf",),
    "AVR": (".avr",),
    "PAF": (".paf",),
    "PVF": (".pvf",),
    "HTK": (".htk",),
    "SDS": (".sds",),
    "XI": (".xi",),
}
"""Suffixes by libsndfile's name of the format. RAW, MAT4 and MAT5 (``.mat``), SD2, MPC2K and WVE are left out, because
they have no header or share their suffix with other kinds of files."""

FFMPEG = (
    *(".m4a", ".m4b", ".m4r", ".aac", ".amr", ".awb", ".3ga", ".wma", ".weba", ".mka", ".ac3", ".eac3", ".dts"),
    *(".ape", ".wv", ".tta", ".mpc", ".spx", ".gsm", ".qcp", ".ra", ".dsf", ".tak", ".adts", ".loas", ".g722"),
    *(".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".3gp", ".3g2", ".avi", ".wmv", ".asf", ".flv", ".f4v"),
    *(".mpg", ".mpeg", ".vob", ".m2ts", ".ogv", ".ogx", ".rm", ".rmvb", ".mxf"),
)
"""Suffixes of the formats that need FFmpeg: audio, then video."""

SUFFIXES = frozenset(suffix for suffixes in (*SNDFILE.values(), FFMPEG) for suffix in suffixes)


def is_audio_name(name: str) -> bool:
    """Whether a file's name has the suffix of a format with audio."""
    return os.path.splitext(name)[1].lower() in SUFFIXES
