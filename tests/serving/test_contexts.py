"""Parameters of requests, such as hotwords, become the context that the model reads."""

from __future__ import annotations

import io
from collections.abc import Iterator

import openai
import pytest
import soundfile
import torch

from tests.serving.servers import LONG, Served, bursts, encoded, noise, serving, submit
from tests.support.models import assemble
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.context import ContextSettings
from tiny_audio.model.prompt import Context
from tiny_audio.serving.contexts import RequestContext, context_of
from tiny_audio.serving.engine import Engine
from tiny_audio.serving.errors import ApiError
from tiny_audio.serving.options import Options
from tiny_audio.serving.service import Service

pytestmark = pytest.mark.usefixtures("one_thread", "pauses_by_loudness")
TRAINED = ContextSettings(hotwords=True, languages=("en", "de"))


def transcriber(settings: ContextSettings | None) -> Transcriber:
    return Transcriber(*assemble(context=settings), filter_hallucinations=False)


@pytest.fixture(scope="module")
def trained(one_thread: None) -> Iterator[Served]:
    with serving(engine=Engine(transcriber(TRAINED)), hotwords=("one",)) as served:
        yield served


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (None, Context(("one",))),
        (TRAINED, Context(("one", "two", "three", "four"), "", "en")),
        (ContextSettings(previous_text=True), Context(("one",), "three, four")),
        (ContextSettings(hotwords=True, previous_text=True), Context(("one", "two", "three", "four"))),
    ],
)
def test_only_contexts_that_the_model_was_trained_with_are_used(
    settings: ContextSettings | None, wanted: Context
) -> None:
    with Engine(transcriber(settings or ContextSettings())) as engine:
        given = {"prompt": "three, four", "keywords": ("two",), "language": "en"}
        assert context_of(engine, ("one",), **given).context == wanted  # type: ignore[arg-type]
        assert context_of(engine) == RequestContext(None)


def test_an_unknown_language_is_an_error(trained: Served) -> None:
    with pytest.raises(ApiError, match="'fr'") as caught:
        context_of(trained.engine, language="fr")
    assert caught.value.status == 400


def test_hotwords_that_do_not_fit_are_reported(trained: Served) -> None:
    """The response reports hotwords of the request that were left out, but not hotwords of the server's options."""
    words = tuple(f"one {word}" for word in ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
    with Engine(transcriber(TRAINED.model_copy(update={"max_tokens": 60}))) as engine:
        found = context_of(engine, words[:3], keywords=words[2:], prompt="Ö")
        assert found.context is not None
        assert 0 < len(found.left_out) < len(words)
        assert found.left_out == (*words[-len(found.left_out) + 1 :], "Ö")
        assert context_of(engine, words, keywords=("one",)).left_out == ("one",)
        service = Service(engine, Options("tiny", hotwords=words * 10_000))
        assert service.hotwords == words[: len(service.hotwords)]
        assert 0 < len(service.hotwords) < len(words)
    parameters = {"model": "tiny", "prompt": "two, Ö, É"}
    with trained.client() as client:
        for response_format in ("text", "srt", "verbose_json"):
            found = client.audio.transcriptions.with_raw_response.create(
                file=("a.wav", encoded(noise(0.3))), response_format=response_format, **parameters
            )
            assert found.headers["x-hotwords-left-out"] == "2"
        assert found.http_response.json()["hotwords_left_out"] == ["Ö", "É"]
        with client.audio.transcriptions.with_streaming_response.create(
            file=("a.wav", encoded(noise(0.3))), stream=True, **parameters
        ) as streamed:
            assert streamed.headers["x-hotwords-left-out"] == "2"
            streamed.read()
        found = client.audio.transcriptions.with_raw_response.create(file=("a.wav", encoded(noise(0.3))), model="tiny")
        assert "x-hotwords-left-out" not in found.headers


def test_long_texts_are_rejected(trained: Served) -> None:
    for given in ({"prompt": "a" * 20_001}, {"prompt": "a" * 10_000, "keywords": ("b" * 10_001,)}):
        with pytest.raises(ApiError, match="20,001") as caught:
            context_of(trained.engine, **given)  # type: ignore[arg-type]
        assert caught.value.status == 400


def test_texts_equal_those_of_transcribe_with_the_same_context(trained: Served) -> None:
    waveforms = {"short": noise(1.0), "long": bursts(LONG)}
    contexts = Context(("one", "four", "two"), "", "de")
    with trained.client() as client:
        for waveform in waveforms.values():
            recording = torch.from_numpy(soundfile.read(io.BytesIO(encoded(waveform)), dtype="float32")[0])
            (wanted,) = transcriber(TRAINED).transcribe([recording], contexts=contexts)
            parameters = {"prompt": "two", "language": "de", "extra_body": {"keywords[]": "four"}}
            for stream in (False, True):
                found = client.audio.transcriptions.create(
                    file=("a.wav", encoded(waveform)), model="tiny", stream=stream, **parameters
                )
                assert (list(found)[-1] if stream else found).text == wanted.text
        without = transcriber(TRAINED).transcribe([recording])[0].text
        assert wanted.text != without
        with pytest.raises(openai.BadRequestError, match="'fr'"):
            client.audio.transcriptions.create(file=("a.wav", encoded(noise(1.0))), model="tiny", language="fr")


def test_only_the_first_chunk_has_the_previous_text() -> None:
    recording = torch.from_numpy(bursts(LONG))
    own, context = transcriber(ContextSettings(previous_text=True)), Context((), "one two three")
    (wanted,) = own.transcribe([recording], contexts=context)
    with Engine(own) as engine:
        assert submit(engine, recording, context=context).result(60).text == wanted.text
