"""Write transcriptions in the response formats of OpenAI's API."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence

from fastapi.responses import JSONResponse, PlainTextResponse, Response

from tiny_audio.inference.segments import Segment, Transcription
from tiny_audio.inference.subtitles import as_srt, as_vtt, cues
from tiny_audio.serving.parameters import Parameters

_UNKNOWN_LANGUAGE = "unknown"
_LEAST_CONFIDENCE = 1e-10


def response(transcription: Transcription, parameters: Parameters, left_out: Sequence[str]) -> Response:
    """Return the response in the requested format. ``left_out`` are the request's hotwords that were not used."""
    match parameters.response_format:
        case "text":
            return PlainTextResponse(transcription.text + "\n")
        case "srt":
            return Response(as_srt(cues(transcription.segments)), media_type="application/x-subrip; charset=utf-8")
        case "vtt":
            return Response(as_vtt(cues(transcription.segments)), media_type="text/vtt; charset=utf-8")
        case "verbose_json":
            return JSONResponse(_verbose(transcription, parameters, left_out))
        case _:
            return JSONResponse({"text": transcription.text, "usage": _usage(transcription)})


def delta(text: str) -> str:
    """Return the server-sent event for additional text."""
    return _event({"type": "transcript.text.delta", "delta": text})


def done(transcription: Transcription) -> str:
    """Return the server-sent event for the end of a transcription."""
    return _event({"type": "transcript.text.done", "text": transcription.text})


def error_event(body: Mapping[str, object]) -> str:
    """Return the server-sent event for an error that occurs after the response has begun."""
    return _event(body)


def _event(value: Mapping[str, object]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _usage(transcription: Transcription) -> dict[str, str | int]:
    return {"type": "duration", "seconds": math.ceil(transcription.duration_s)}


def _verbose(transcription: Transcription, parameters: Parameters, left_out: Sequence[str]) -> dict[str, object]:
    found: dict[str, object] = {
        "task": "transcribe",
        "language": parameters.language or _UNKNOWN_LANGUAGE,
        "duration": round(transcription.duration_s, 3),
        "text": transcription.text,
    }
    spoken = [segment for segment in transcription.segments if segment.text]
    if "segment" in parameters.granularities:
        found["segments"] = [_segment(index, segment) for index, segment in enumerate(spoken)]
    if parameters.words:
        found["words"] = [
            {"word": word.text, "start": round(word.start_s, 3), "end": round(word.end_s, 3)}
            for segment in spoken
            for word in segment.words or ()
        ]
    if left_out:
        found["hotwords_left_out"] = left_out
    return found | {"usage": _usage(transcription)}


def _segment(index: int, segment: Segment) -> dict[str, object]:
    text = segment.text.encode()
    confidence = 1.0 if segment.confidence is None else segment.confidence
    return {
        "id": index,
        "seek": round(segment.start_s * 100),
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(math.log(max(confidence, _LEAST_CONFIDENCE)), 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": 0.0,
    }
