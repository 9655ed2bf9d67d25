"""The form fields of transcription requests, parsed without a server."""

from __future__ import annotations

import io

import pytest
from starlette.datastructures import FormData, UploadFile

from tiny_audio.serving.errors import ApiError
from tiny_audio.serving.parameters import parse_parameters

FILE = ("file", UploadFile(io.BytesIO(b""), filename="a.wav"))
OTHER_FILE = UploadFile(io.BytesIO(b""), filename="../../etc/passwd")


def test_fields_have_defaults() -> None:
    found = parse_parameters(FormData([FILE]), "tiny")
    assert (found.response_format, found.stream, found.words, found.language) == ("json", False, False, None)


def test_names_can_have_brackets() -> None:
    fields = [FILE, ("timestamp_granularities", "word"), ("timestamp_granularities[]", "segment")]
    found = parse_parameters(FormData([*fields, ("response_format", "verbose_json"), ("keywords[]", "ann")]), "tiny")
    assert found.granularities == {"word", "segment"}
    assert found.keywords == ("ann",)


@pytest.mark.parametrize(
    ("value", "wanted"), [("true", True), ("True", True), ("1", True), ("false", False), ("", False)]
)
def test_flags_accept_several_spellings(value: str, wanted: bool) -> None:
    assert parse_parameters(FormData([FILE, ("stream", value)]), "tiny").stream is wanted


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ([], "file", 400),
        ([("file", "a.wav")], "file", 400),
        ([FILE, FILE], "file", 400),
        ([FILE, ("model", OTHER_FILE)], "model", 400),
        ([FILE, ("model", "tiny"), ("model", "tiny")], "model", 400),
        ([FILE, ("model", "/etc/passwd")], "model", 404),
        ([FILE, ("model", "http://127.0.0.1/")], "model", 404),
        ([FILE, ("model[]", "tiny")], "model[]", 400),
        ([FILE, ("url", "http://127.0.0.1/a.wav")], "url", 400),
        ([FILE, ("path", "/etc/passwd")], "path", 400),
        ([FILE, ("", "")], "", 400),
        ([FILE, ("[]", "")], "[]", 400),
        ([FILE, ("temperature", "nan")], "temperature", 400),
        ([FILE, ("temperature", "cold")], "temperature", 400),
        ([FILE, ("temperature", "1")], "temperature", 400),
        ([FILE, ("stream", "maybe")], "stream", 400),
        ([FILE, ("language", "en\nde")], "language", 400),
        ([FILE, ("language", "english please")], "language", 400),
        ([FILE, ("response_format", "JSON")], "response_format", 400),
        ([FILE, ("chunking_strategy[type]", "server_vad")], "chunking_strategy", 400),
        ([FILE, ("chunking_strategy", '{"type": "server_vad"}')], "chunking_strategy", 400),
        ([FILE, ("include[]", "logprobs")], "include", 400),
        ([FILE, ("known_speaker_references[]", "data:audio/wav;base64,AAAA")], "known_speaker_references", 400),
        ([FILE, ("timestamp_granularities[]", "word")], "timestamp_granularities[]", 400),
        (
            [FILE, ("response_format", "verbose_json"), ("timestamp_granularities[]", "letter")],
            "timestamp_granularities[]",
            400,
        ),
    ],
)
def test_errors_name_the_field(fields: list[tuple[str, str | UploadFile]], param: str, status: int) -> None:
    with pytest.raises(ApiError) as caught:
        parse_parameters(FormData(fields), "tiny")
    assert (caught.value.status, caught.value.param) == (status, param)
