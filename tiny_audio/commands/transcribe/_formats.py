"""Write a transcription as text, JSON, a table or subtitles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from tiny_audio.commands._output import json_text
from tiny_audio.commands.transcribe._options import Options
from tiny_audio.inference.segments import Transcription
from tiny_audio.inference.subtitles import as_srt, as_vtt, cues
from tiny_audio.runtime.columns import on_one_line


def rendered(name: str, transcription: Transcription, options: Options) -> str:
    """Return the content of one recording's output file."""
    match options.format:
        case "json":
            return json.dumps(row(name, transcription, None), indent=1, ensure_ascii=False) + "\n"
        case "srt":
            return as_srt(cues(transcription.segments, each_word=options.words))
        case "vtt":
            return as_vtt(cues(transcription.segments, each_word=options.words))
        case "tsv":
            return TSV_HEAD + "".join(_tsv_lines(name, transcription, options.words))
        case _:
            return "".join(f"{' '.join(segment.text.split())}\n" for segment in transcription.segments if segment.text)


class JsonArray:
    """A JSON array that is written row by row, so that finished rows are kept after an interruption."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._started = write, False

    def add(self, row: dict[str, Any]) -> None:
        """Write one row."""
        text = json_text(row).replace("\n", "\n ")
        self._write(f"{',' if self._started else '['}\n {text}")
        self._started = True

    def close(self) -> None:
        """Write the end of the array."""
        self._write("\n]\n" if self._started else "[]\n")


TSV_HEAD = "audio_filepath\tstart_s\tend_s\ttext\n"


def _tsv_lines(name: str, transcription: Transcription, words: bool) -> Iterator[str]:
    title = on_one_line(name)
    for segment in transcription.segments:
        for part in segment.words or () if words else [segment] if segment.text else []:
            yield f"{title}\t{part.start_s:.3f}\t{part.end_s:.3f}\t{' '.join(part.text.split())}\n"


def row(name: str, transcription: Transcription, error: str | None) -> dict[str, Any]:
    """Return a recording as a JSON object. If there is an ``error``, all other fields except the name are null."""
    if error is not None:
        nothing = dict.fromkeys(("duration", "text", "ctc_text", "truncated"))
        return {"audio_filepath": name, **nothing, "error": error, "segments": None}
    return {
        "audio_filepath": name,
        "duration": transcription.duration_s,
        "text": transcription.text,
        "ctc_text": transcription.ctc_text,
        "truncated": transcription.truncated,
        "error": None,
        "segments": [_rounded(asdict(segment)) for segment in transcription.segments],
    }


def _rounded(value: Any) -> Any:
    """Round times and probabilities to four decimal places."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list | tuple) else value
