"""Decode formats that libsndfile does not read (m4a, mp4, aac, wma, webm, amr) with the FFmpeg program."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from tiny_audio.audio._adts import with_lost_frames
from tiny_audio.audio._containers import wav_samples
from tiny_audio.audio._joined import asf_size, joined_files
from tiny_audio.audio._parts import MAX_SILENCE_S, Data, Spliced
from tiny_audio.audio.channels import DownMix
from tiny_audio.audio.errors import DAMAGED, AudioError, warn_of_gaps, warn_once
from tiny_audio.audio.load import MIN_DURATION_S
from tiny_audio.frames import SAMPLE_RATE

_BLOCK_BYTES = 1 << 22
"""Bytes read from FFmpeg at a time: a little more than a minute of mono float samples at 16 kHz."""
_SILENCE_SAMPLES = 1 << 20
_FIRST_FRAME = ("-frames:a", "1", "-af", "ashowinfo", "-f", "null", "-")
"""FFmpeg options that decode one audio frame and write its time to the log."""
_MAX_LOG_BYTES = 1 << 22
_MAX_MESSAGE = 300
"""A message contains at most this many characters of FFmpeg's error output, taken from its end."""
_TRACK = re.compile(r"^\s*Stream #0:\d+(?:\[\w+\])?(?:\(([^()\n]+)\))?: Audio: (.*)$", re.MULTILINE)
_START = re.compile(r"^Input #0, (?:mov|matroska).*?^ *Duration: [^\n]*start: ([0-9.]+)", re.MULTILINE | re.DOTALL)
_MAX_START_S = 3600.0
"""A later start of a track is ignored. The file is probably a recording of a live stream. The times of a live stream
may begin at any value."""
_STREAM_START = re.compile(r"^Input #0, mpeg(?:ts)?,.*?^ *Duration: [^\n]*start: (-?[0-9.]+)", re.MULTILINE | re.DOTALL)
_MONO = re.compile(r"\bmono\b|\b1 channels\b")
_DURATION = re.compile(r"^ *Duration: (\d+):(\d+):([0-9.]+),", re.MULTILINE)
_LEAST_CUT_S = 0.2
_HEAD_BYTES = 8_192
_PLACEHOLDER = 0x7FFF0000
"""A size this large may be a placeholder for an unknown size."""
_PROBLEM = re.compile(r"(?:\[error\]|\[fatal\]|(?=Packet corrupt)) ?(.*)")
_ADDED = re.compile(r"adding \d+ audio samples of silence")
_FRAME = re.compile(r"pts_time:(\S+) .*?rate:(\d+) nb_samples:(\d+)")
_RATE = re.compile(r"\bsamplerate:(\d+)")
_LEAST_GAP_S = 0.1
"""Shorter gaps between timestamps are rounding errors. FFmpeg's ``aresample`` filter has the same limit."""

_DEMUXERS = (
    "aa,aac,aax,ac3,act,adx,aiff,amr,amrnb,amrwb,ape,asf,asf_o,au,avi,avr,caf,dsf,dts,dtshd,dv,eac3,flac,flv,"
    "g722,gsm,gxf,iff,ircam,live_flv,loas,matroska,mlp,mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nsv,nut,"
    "ogg,oma,paf,pvf,qcp,rm,sbc,sds,sox,tak,truehd,tta,voc,w64,wav,wsd,wtv,wv,xwma"
)
"""Formats that FFmpeg may read. Playlists (HLS, DASH, concat and others) are left out, because they can name any other
file."""

HINT = (
    "for m4a, mp4, aac, wma, webm and amr install the FFmpeg program (apt install ffmpeg; brew install ffmpeg; winget "
    "install ffmpeg)"
)


@dataclass(frozen=True)
class Track:
    """An audio track of a file."""

    description: str
    """Language, codec and channels, as FFmpeg prints them."""
    is_default: bool


def has_ffmpeg() -> bool:
    """Whether the FFmpeg program is installed."""
    return shutil.which("ffmpeg") is not None


def ffmpeg_blocks(
    path: Path, name: str, *, track: int | None = None, channel: int | None = None
) -> Iterator[torch.Tensor]:
    """Yield an audio track of a file as mono float32 blocks at 16 kHz.

    Silence is inserted if a track begins late, has a gap or is damaged, and a warning with the positions is logged. If
    the file refers to other files or to network addresses, FFmpeg does not open them.

    Args:
        name: the file's name in messages.
        track: the audio track, counted from 1. If None, the default track is used, or else the first.
        channel: see :class:`tiny_audio.audio.channels.DownMix`.

    Raises:
        AudioError: the file cannot be decoded, is too short, has no such track or channel, or contains a sample that
            is NaN, infinite or out of range.
    """
    files = joined_files(path)
    if len(files) == 1:
        with with_lost_frames(path) as (whole, num_lost_bytes):
            yield from _blocks(whole, name, track, channel, num_lost_bytes)
        return
    warn_once(f"{name}: {len(files)} joined files; they are decoded one after another")
    failed: dict[int, AudioError] = {}
    for number, part in enumerate(files, start=1):
        try:
            with _copy(path, part) as file:
                yield from _blocks(file, name, track, channel, 0)
        except AudioError as error:
            failed[number] = error
    if len(failed) == len(files):
        raise failed[1]
    for number, problem in failed.items():
        warn_once(f"{name}: joined file {number} is left out: {str(problem).removeprefix(f'{name}: ')}")


@contextmanager
def _copy(path: Path, part: range) -> Iterator[Path]:
    """Yield the path of a temporary file that contains these bytes of the file."""
    with tempfile.TemporaryDirectory() as folder, path.open("rb") as source:
        copy = Path(folder) / f"part{path.suffix}"
        with copy.open("wb") as target:
            shutil.copyfileobj(Spliced(Data(source.fileno()), [part]), target)
        yield copy


def _blocks(
    path: Path, name: str, track: int | None, channel: int | None, num_lost_bytes: int
) -> Iterator[torch.Tensor]:
    headers = _headers(path)
    tracks = _tracks(headers)
    chosen = _choose(tracks, track, name)
    selected = ("-map", f"0:a:{chosen}")
    absolute = ("-copyts",) if _begins_late(headers) else ()
    # The number of channels may change within a track, but not in the output. If no channel is chosen, let FFmpeg mix
    # to mono or stereo, because FFmpeg knows the speaker position of each channel.
    mono = bool(tracks) and _MONO.search(tracks[chosen].description) is not None
    layouts = [] if channel is not None else [f"aformat=channel_layouts={'mono' if mono else 'stereo'}"]
    # The first timestamp is often the encoder's delay. FFmpeg has already removed this delay from the samples, so a
    # first timestamp below `_LEAST_GAP_S` becomes 0.
    start = f"asetpts=if(lt(STARTT\\,{_LEAST_GAP_S})\\,PTS-STARTPTS\\,PTS)"
    filters = ",".join([start, f"aresample={SAMPLE_RATE}:async=1", *layouts])
    output = ("-c:a", "pcm_f32le", "-map_metadata", "-1", "-bitexact", "-f", "wav", "pipe:1")
    command = [*_input(path, "level+verbose"), *absolute, *selected, "-af", filters, *output, *selected, *_FIRST_FRAME]
    late_s = _late_s(path, headers, selected)
    samples = silent = 0
    with tempfile.TemporaryDirectory() as folder:
        messages = Path(folder) / "messages"
        with messages.open("wb") as errors:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        try:
            for block in _samples(process.stdout, DownMix(name, channel)):
                if samples == 0:
                    # Insert silence before a late track here, because FFmpeg would repeat the silence wherever the
                    # track's format changes.
                    late_s = _first_time_s(_text(messages)) or late_s
                    samples = round(min(late_s, MAX_SILENCE_S) * SAMPLE_RATE)
                    for at in range(0, samples, _SILENCE_SAMPLES):
                        yield torch.zeros(min(_SILENCE_SAMPLES, samples - at))
                samples += len(block)
                silent = 0 if bool(block.any()) else silent + len(block)
                if silent > MAX_SILENCE_S * SAMPLE_RATE:
                    raise AudioError(
                        "undecodable", f"{name}: more than 6 hours of silence, probably because of wrong timestamps"
                    )
                yield block
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        # Remove the file's name from FFmpeg's messages, because it may be the name of a temporary copy.
        log = _text(messages).replace(f"file:{path.absolute()}: ", "")
    problems = [*_PROBLEM.findall(log), *_shorter_than_stated(path, headers, samples / SAMPLE_RATE)]
    if num_lost_bytes:
        problems.append(f"{num_lost_bytes:,} bytes are not AAC frames")
    cause = " ".join(" ".join(problems or [f"status {code}" if code else "no samples"]).split())[-_MAX_MESSAGE:]
    if samples == 0:
        raise AudioError("undecodable", f"{name}: FFmpeg cannot decode it: {cause}")
    if len(set(_RATE.findall(log))) > 1:
        # FFmpeg 5.1 computes wrong times after the sampling rate changes.
        warn_once(
            f"{name}: its sampling rate changes, so later times may be wrong; convert it to WAV with FFmpeg first"
        )
    if problems or code != 0 or late_s or _ADDED.search(log):
        _warn_of_gaps(path, [*absolute, *selected], name, late_s, cause if problems or code != 0 else None)
    if samples < MIN_DURATION_S * SAMPLE_RATE:
        raise AudioError(
            "too_short", f"{name}: {samples / SAMPLE_RATE:.3f} s of audio; at least {MIN_DURATION_S} s is needed"
        )


def _input(path: Path, level: str) -> list[str]:
    program = shutil.which("ffmpeg")
    assert program is not None, "callers check has_ffmpeg"
    options = ("-hide_banner", "-nostdin", "-nostats", "-v", level, "-protocol_whitelist", "file")
    formats = ("-format_whitelist", _DEMUXERS)
    return [program, *options, *formats, "-vn", "-sn", "-dn", "-i", f"file:{path.absolute()}"]


def _headers(path: Path) -> str:
    """Return FFmpeg's description of a file, without decoding it."""
    done = subprocess.run(_input(path, "info"), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.stderr.decode(errors="replace")


def _text(messages: Path) -> str:
    with messages.open("rb") as file:
        return file.read(_MAX_LOG_BYTES).decode(errors="replace")


def _first_time_s(log: str) -> float:
    """Return the time in seconds of the first frame in the log; 0 if it is unknown or less than ``_LEAST_GAP_S``."""
    found = _FRAME.search(log)
    first_s = 0.0 if found is None or found[1] == "NOPTS" else float(found[1])
    return first_s if first_s >= _LEAST_GAP_S else 0.0


def _late_s(path: Path, headers: str, selected: Sequence[str]) -> float:
    """Return how many seconds after the start of an MPEG file a track begins; 0 for other formats.

    The times in MPEG files (MPEG-PS and MPEG-TS) may begin at any value.
    """
    start = _STREAM_START.search(headers)
    if start is None or headers.count("Stream #0:") < 2:
        return 0.0
    command = [*_input(path, "info"), "-copyts", *selected, *_FIRST_FRAME]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    late_s = _first_time_s(done.stderr.decode(errors="replace")) - float(start[1])
    return late_s if _LEAST_GAP_S <= late_s <= _MAX_START_S else 0.0


def _tracks(log: str) -> list[Track]:
    """Return the audio tracks of a file; empty if FFmpeg cannot read it."""
    return [
        Track(", ".join(filter(None, (match[1], match[2].split(" (default)")[0]))), "(default)" in match[2])
        for match in _TRACK.finditer(log)
    ]


def _begins_late(log: str) -> bool:
    """Whether all tracks of a file begin late, in a format whose times should begin at 0.

    By default, FFmpeg removes the gap before such tracks.
    """
    start = _START.search(log)
    return start is not None and _LEAST_GAP_S <= float(start[1]) <= _MAX_START_S


def _shorter_than_stated(path: Path, log: str, found_s: float) -> Iterator[str]:
    """Yield a message if the file has less audio than its headers state.

    The duration of a video is not checked, because its audio may be shorter than its images.
    """
    stated = _DURATION.search(log)
    if stated and "Estimating duration" not in log and ": Video: " not in log:
        stated_s = int(stated[1]) * 3600 + int(stated[2]) * 60 + float(stated[3])
        if stated_s - found_s > _LEAST_CUT_S:
            yield f"the header says {stated_s:.2f} s, but there are {found_s:.2f} s"
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    size, there = asf_size(head), path.stat().st_size
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        size = int.from_bytes(head[4:8], "little") + 8
    if there < size < _PLACEHOLDER:
        yield f"the header says {size:,} bytes, but there are {there:,}"


def _choose(tracks: Sequence[Track], track: int | None, name: str) -> int:
    """Return the index of the track to decode."""
    if track is not None:
        if not 1 <= track <= max(1, len(tracks)):
            has = f"has {len(tracks)} audio track{'s' * (len(tracks) != 1)}"
            raise AudioError("no_such_track", f"{name}: {has}; track {track} does not exist")
        return track - 1
    chosen = next((index for index, one in enumerate(tracks) if one.is_default), 0)
    if len(tracks) > 1:
        why = "the default track" if tracks[chosen].is_default else "because none is the default"
        warn_once(
            f"{name}: has {len(tracks)} audio tracks; track {chosen + 1} is used, {why} "
            f"({tracks[chosen].description}); choose another track with --audio-track"
        )
    return chosen


def _samples(stream: IO[bytes], mix: DownMix) -> Iterator[torch.Tensor]:
    """Yield mono blocks of a WAV file while FFmpeg writes it."""
    held = stream.read(_BLOCK_BYTES)
    start, frame_bytes = wav_samples(Data(io.BytesIO(held))) or (len(held), 4)
    held = held[start:]
    while held:
        whole = len(held) // frame_bytes * frame_bytes
        block = torch.from_numpy(np.frombuffer(held[:whole], dtype="<f4").copy())
        if len(block):
            yield mix(block.reshape(-1, frame_bytes // 4))
        data = stream.read(_BLOCK_BYTES)
        if not data:
            return
        held = held[whole:] + data


def _warn_of_gaps(path: Path, track: Sequence[str], name: str, late_s: float, cause: str | None) -> None:
    """Decode the file again to find the sections without sound, and log a warning with their positions."""
    command = [*_input(path, "info"), *track, "-af", "ashowinfo", "-f", "null", "-"]
    gaps, end_s, shift_s = [], 0.0, None
    null = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=null, stdout=null, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            found = _FRAME.search(line)
            if found is None or found[1] == "NOPTS":
                continue
            shift_s = late_s - float(found[1]) if shift_s is None else shift_s
            start_s = float(found[1]) + shift_s
            if start_s - end_s > _LEAST_GAP_S:
                gaps.append((end_s, start_s))
            end_s = max(end_s, start_s + int(found[3]) / max(1, int(found[2])))
    if gaps:
        warn_of_gaps(name, gaps, "no sound" if cause is None else DAMAGED, cause and f"FFmpeg: {cause}")
    elif cause is not None:
        warn_once(f"{name}: damaged or cut off; FFmpeg: {cause}")
