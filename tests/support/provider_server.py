"""A local server with the providers' APIs. It checks requests against the providers' documentation.

The server checks the method, path, key, and the types and names of fields. It rejects requests that do not match, with
the provider's error format. `tests/providers/test_sdks.py` tests the official clients with the same server. On demand,
the server simulates faults. It uses only the standard library.
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

KEY = "sk-Key0fTheTests"
TEXT = "Hello, world."

# Fields in the providers' reference pages. Fields for tasks other than transcription are left out.
OPENAI_FIELDS = {
    *("file", "model", "language", "languages[]", "prompt", "response_format", "temperature", "stream", "include[]"),
    *("timestamp_granularities[]", "chunking_strategy", "keywords[]"),
}
OPENAI_SUFFIXES = (".flac", ".mp3", ".mp4", ".mpeg", ".mpga", ".m4a", ".ogg", ".wav", ".webm")
DEEPGRAM_FLAGS = {"smart_format", "punctuate", "detect_language", "diarize", "filler_words", "numerals", "utterances"}
DEEPGRAM_FIELDS = DEEPGRAM_FLAGS | {"model", "language", "version", "encoding", "tag", "keyterm", "mip_opt_out"}
ASSEMBLYAI_FIELDS = {
    *("audio_url", "speech_models", "language_code", "language_detection", "punctuate", "format_text", "disfluencies"),
    *("keyterms_prompt", "prompt", "temperature"),
}
ELEVENLABS_FIELDS = {
    *("file", "model_id", "language_code", "tag_audio_events", "timestamps_granularity", "diarize", "num_speakers"),
    *("temperature", "seed", "file_format", "webhook_metadata", "entity_detection", "entity_redaction", "keyterms"),
}


@dataclass(frozen=True)
class Fault:
    """A simulated fault of one request."""

    kind: Literal["status", "stall", "cut", "body"]
    status: int = 500
    """HTTP status of faults of the kinds `status` and `body`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = '{"error": "on purpose"}'


def limited(**headers: str) -> Fault:
    return Fault("status", 429, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass(frozen=True)
class Asked:
    """A received request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Headers by lower-case name."""
    form: dict[str, Any]
    """Fields of the form or JSON, without the file."""
    audio: bytes | None
    at: float
    """Time of the monotonic clock."""


class RefusalError(Exception):
    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


class Vendors:
    """Received requests, prepared responses, and faults."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        """Faults of the next requests, one each."""
        self.texts: dict[bytes, str] = {}
        """Transcripts by the encoded bytes of the clip. All other clips have the transcript TEXT."""
        self.statuses = ["queued", "processing", "completed"]
        """AssemblyAI's status at each poll of a job. Further polls repeat the last status."""
        self.uploads: dict[str, bytes] = {}
        self.jobs: dict[str, tuple[bytes, int]] = {}
        self.lock = threading.Lock()
        self.done = threading.Event()

    def text(self, audio: bytes) -> str:
        return self.texts.get(audio, TEXT)

    def answer(self, asked: Asked) -> dict[str, Any]:
        match asked.method, asked.path.split("/")[1:]:
            case "POST", ["v1", "audio", "transcriptions"]:
                return self._openai(asked)
            case "POST", ["v1", "listen"]:
                return self._deepgram(asked)
            case "POST", ["v1", "speech-to-text"]:
                return self._elevenlabs(asked)
            case "POST", ["v2", "upload"]:
                return self._upload(asked)
            case "POST", ["v2", "transcript"]:
                return self._start(asked)
            case "GET", ["v2", "transcript", job]:
                return self._look(asked, job)
        raise RefusalError(404, f"there is no {asked.method} {asked.path}")

    def _openai(self, asked: Asked) -> dict[str, Any]:
        key = asked.headers.get("authorization")
        check(key in (None, f"Bearer {KEY}"), 401, f"Incorrect API key provided: {(key or '')[7:]}.")
        form = asked.form
        check_fields(form, OPENAI_FIELDS, {"model"})
        check(asked.audio is not None, 400, "the form has no file")
        check(form["filename"].endswith(OPENAI_SUFFIXES), 400, f"Unrecognized file format: {form['filename']}")
        check(form["file_type"].startswith("audio/"), 400, f"Invalid content type {form['file_type']}")
        check(form["model"] != "none", 404, "The model `none` does not exist")
        verbose = form.get("response_format", "json") == "verbose_json"
        check(verbose or form.get("response_format") in (None, "json"), 400, "response_format")
        check(verbose or "timestamp_granularities[]" not in form, 400, "timestamps need verbose_json")
        answer: dict[str, Any] = {"text": self.text(asked.audio or b"")}
        if verbose:
            words = [{"word": word, "start": start, "end": end} for word, start, end in timed(answer["text"])]
            answer |= {"task": "transcribe", "language": "english", "duration": 1.0, "words": words}
        return answer | {"usage": {"type": "duration", "seconds": 1}}

    def _deepgram(self, asked: Asked) -> dict[str, Any]:
        check(asked.headers.get("authorization") == f"Token {KEY}", 401, "Invalid credentials.")
        kind = asked.headers.get("content-type", "")
        check(kind.startswith("audio/") or kind == "application/octet-stream", 400, f"content type {kind}")
        check_fields(asked.query, DEEPGRAM_FIELDS, set())
        for name in DEEPGRAM_FLAGS & asked.query.keys():
            check(asked.query[name] in ("true", "false"), 400, f"{name} must be true or false")
        check(bool(asked.audio), 400, "failed to process audio: corrupt or unsupported data")
        words = [
            {
                "word": word.lower().strip(",."),
                "start": start,
                "end": end,
                "confidence": 0.9,
                "punctuated_word": word,
            }
            for word, start, end in timed(self.text(asked.audio or b""))
        ]
        best = {"transcript": self.text(asked.audio or b""), "confidence": 0.95, "words": words}
        metadata = {
            "transaction_key": "deprecated",
            "request_id": "a847f427-4ad5-4d67-9b95-db801e58251c",
            "sha256": "154e291ecfa8be6ab8343560bcc109008fa7853eb5372533e8efdefc9b504c33",
            "created": "2024-05-12T18:57:13.426Z",
            "duration": 1.0,
            "channels": 1,
            "models": ["30089e05-99d1-4376-b32e-c263170674af"],
            "model_info": {},
        }
        return {"metadata": metadata, "results": {"channels": [{"alternatives": [best]}]}}

    def _elevenlabs(self, asked: Asked) -> dict[str, Any]:
        check(asked.headers.get("xi-api-key") == KEY, 401, "Invalid API key")
        check_fields(asked.form, ELEVENLABS_FIELDS, {"model_id"})
        check(asked.audio is not None, 400, "the form has no file")
        text = self.text(asked.audio or b"")
        words: list[dict[str, Any]] = []
        for word, start, end in timed(text):
            if words:
                words.append({"text": " ", "start": start, "end": start, "type": "spacing", "logprob": 0.0})
            words.append({"text": word, "start": start, "end": end, "type": "word", "logprob": -0.1})
        return {"language_code": "eng", "language_probability": 0.99, "text": text, "words": words}

    def _upload(self, asked: Asked) -> dict[str, Any]:
        check(asked.headers.get("authorization") == KEY, 401, "Authentication error, API token missing/invalid")
        check(bool(asked.audio), 422, "Upload failed, please try again")
        place = f"https://cdn.assemblyai.com/upload/{len(self.uploads)}"
        self.uploads[place] = asked.audio or b""
        return {"upload_url": place}

    def _start(self, asked: Asked) -> dict[str, Any]:
        check(asked.headers.get("authorization") == KEY, 401, "Authentication error, API token missing/invalid")
        check(asked.headers.get("content-type", "").startswith("application/json"), 400, "content type")
        form = asked.form
        check_fields(form, ASSEMBLYAI_FIELDS, {"audio_url"})
        check(form["audio_url"] in self.uploads, 400, "audio_url is nothing that was uploaded")
        models = form.get("speech_models")
        check(isinstance(models, list) and bool(models), 400, '"speech_models" must be a non-empty list')
        check(not ("language_code" in form and form.get("language_detection")), 400, "language_code or detection")
        job = f"job-{len(self.jobs)}"
        self.jobs[job] = (self.uploads[form["audio_url"]], 0)
        return self._job(job, "queued")

    def _look(self, asked: Asked, job: str) -> dict[str, Any]:
        check(asked.headers.get("authorization") == KEY, 401, "Authentication error, API token missing/invalid")
        check(job in self.jobs, 404, "Not found")
        audio, looks = self.jobs[job]
        self.jobs[job] = (audio, looks + 1)
        return self._job(job, self.statuses[min(looks, len(self.statuses) - 1)])

    def _job(self, job: str, status: str) -> dict[str, Any]:
        answer: dict[str, Any] = {"id": job, "status": status, "audio_url": "https://cdn.assemblyai.com/upload/0"}
        answer |= {"text": None, "words": None, "error": "Transcoding failed." if status == "error" else None}
        if status == "completed":
            text = self.text(self.jobs[job][0])
            answer["text"] = text
            answer["words"] = [
                {"text": word, "start": int(1000 * start), "end": int(1000 * end), "confidence": 0.9, "speaker": None}
                for word, start, end in timed(text)
            ]
        return answer


def timed(text: str) -> list[tuple[str, float, float]]:
    """Return words with their start and end in seconds. A word starts every second and lasts half a second."""
    return [(word, float(number), number + 0.5) for number, word in enumerate(text.split())]


def check(holds: bool, status: int, words: str) -> None:
    if not holds:
        raise RefusalError(status, words)


def check_fields(given: Mapping[str, Any], known: set[str], needed: set[str]) -> None:
    names = given.keys() - {"filename", "file_type"}
    check(not names - known, 400, f"undocumented: {', '.join(sorted(names - known))}")
    check(not needed - names, 400, f"missing: {', '.join(sorted(needed - names))}")


def error_body(path: str, refusal: RefusalError) -> dict[str, Any]:
    """Return an error in the provider's format."""
    if path.startswith("/v1/audio"):
        kind = "invalid_request_error"
        return {"error": {"message": refusal.words, "type": kind, "param": None, "code": None}}
    if path == "/v1/listen":
        return {"err_code": "Bad Request", "err_msg": refusal.words, "request_id": "uuid"}
    if path == "/v1/speech-to-text":
        return {"detail": {"status": "invalid", "message": refusal.words}}
    return {"error": refusal.words}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    vendors: Vendors

    def _handle(self) -> None:
        asked = self._read()
        with self.vendors.lock:
            self.vendors.asked.append(asked)
            fault = self.vendors.faults.pop(0) if self.vendors.faults else None
        if fault is not None and fault.kind == "stall":
            self.vendors.done.wait(20)
            self.close_connection = True
            return
        if fault is not None and fault.kind in ("status", "body"):
            self._send(fault.status, fault.body.encode(), fault.headers)
            return
        try:
            with self.vendors.lock:
                status, body = 200, self.vendors.answer(asked)
        except RefusalError as refusal:
            status, body = refusal.status, error_body(asked.path, refusal)
        content = json.dumps(body).encode()
        self._send(status, content, {}, cut=fault is not None)

    do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    def _read(self) -> Asked:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.headers.get("Content-Type", "")
        form: dict[str, Any] = {}
        audio: bytes | None = content or None
        if kind.startswith("multipart/form-data"):
            form, audio = parse_form(kind, content)
        elif kind.startswith("application/json"):
            form, audio = json.loads(content), None
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return Asked(self.command, parts.path, query, headers, form, audio, time.monotonic())

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def parse_form(kind: str, content: bytes) -> tuple[dict[str, Any], bytes | None]:
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + content)
    form: dict[str, Any] = {}
    audio = None
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        value: Any = part.get_payload(decode=True)
        if name == "file":
            audio = value
            form |= {"filename": part.get_filename() or "", "file_type": part.get_content_type()}
        else:
            form[str(name)] = value.decode()
    return form, audio


class Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that have disconnected."""


@contextmanager
def vendors() -> Iterator[Vendors]:
    """Start the APIs of all providers at one address."""
    state = Vendors()
    server = Server(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"vendors": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.done.set()
        server.shutdown()
        server.server_close()
        thread.join()
