"""The official clients send the same requests as our providers, and can use the tests' server.

The clients are not dependencies of this project. To run these tests, install them:

    pip install openai assemblyai deepgram-sdk elevenlabs

Last run with openai 3.57.0, assemblyai 1.8.2, deepgram-sdk 7.17.0 and elevenlabs 2.78.0.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.provider_server import KEY, TEXT, Asked, Vendors, vendors
from tiny_audio.providers import PROVIDERS, ProviderTranscript, encode

AUDIO = encode(torch.zeros(16_000))

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendors]:
    for variable in ("OPENAI_API_KEY", "ASSEMBLYAI_API_KEY", "DEEPGRAM_API_KEY", "ELEVENLABS_API_KEY"):
        monkeypatch.setenv(variable, KEY)
    with vendors() as state:
        yield state


def ours(server: Vendors, **config: Any) -> tuple[ProviderTranscript, list[Asked]]:
    """Return the result of our provider, and its requests."""
    provider = PROVIDERS.build(PROVIDERS.parse(config))
    before = len(server.asked)
    transcript = provider.transcribe(AUDIO)
    provider.close()
    return transcript, server.asked[before:]


def same(theirs: list[Asked], ours: list[Asked]) -> None:
    """Check that client and provider made equal requests: method, path, query, form, audio and key."""
    assert len(theirs) == len(ours)
    for one, other in zip(theirs, ours, strict=True):
        assert (one.method, one.path, one.query) == (other.method, other.path, other.query)
        # A client may send null for a field that its caller omits.
        left = {key: value for key, value in one.form.items() if value != "null"}
        assert left == other.form or "audio_url" in left
        assert left.keys() == other.form.keys()
        assert one.audio == other.audio
        for name in ("authorization", "xi-api-key"):
            assert one.headers.get(name) == other.headers.get(name)


@pytest.mark.parametrize("with_words", [False, True])
def test_openai(server: Vendors, with_words: bool) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(api_key=KEY, base_url=f"{server.url}/v1")
    extra: dict[str, Any] = {"response_format": "json"}
    if with_words:
        extra = {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
    file = ("clip.flac", AUDIO, "audio/flac")
    answer = client.audio.transcriptions.create(model="whisper-1", file=file, language="en", **extra)
    client.close()
    theirs = list(server.asked)
    fields = {"base_url": f"{server.url}/v1", "model": "whisper-1", "word_timestamps": with_words}
    transcript, own = ours(server, name="openai", **fields)
    assert answer.text == transcript.text == TEXT
    if with_words:
        assert [(word.word, word.start, word.end) for word in answer.words] == [
            (word.text, word.start_s, word.end_s) for word in transcript.words or ()
        ]
    same(theirs, own)


def test_assemblyai(server: Vendors, tmp_path: Path) -> None:
    assemblyai = pytest.importorskip("assemblyai")
    path = tmp_path / "clip.flac"
    path.write_bytes(AUDIO)
    settings = assemblyai.Settings(api_key=KEY, base_url=server.url, polling_interval=0.01)
    client = assemblyai.Client(settings=settings)
    transcriber = assemblyai.Transcriber(client=client)
    config = assemblyai.TranscriptionConfig(speech_models=["universal-2"], language_code="en")
    answer = transcriber.transcribe(str(path), config)
    client.http_client.close()
    theirs = list(server.asked)
    transcript, own = ours(server, name="assemblyai", base_url=server.url, poll_every_s=0.01)
    assert answer.text == transcript.text == TEXT
    assert [(word.text, word.start, word.end) for word in answer.words] == [
        (word.text, 1000 * word.start_s, 1000 * word.end_s) for word in transcript.words or ()
    ]
    assert [asked.path.rpartition("/")[0] for asked in theirs] == [asked.path.rpartition("/")[0] for asked in own]
    same(theirs[:2], own[:2])
    assert theirs[1].form.keys() == own[1].form.keys()


def test_deepgram(server: Vendors) -> None:
    deepgram = pytest.importorskip("deepgram")
    import httpx
    from deepgram.environment import DeepgramClientEnvironment

    hosts = [name for name in inspect.signature(DeepgramClientEnvironment.__init__).parameters if name != "self"]
    environment = DeepgramClientEnvironment(**dict.fromkeys(hosts, server.url))
    http = httpx.Client()
    client = deepgram.DeepgramClient(api_key=KEY, environment=environment, httpx_client=http)
    answer = client.listen.v1.media.transcribe_file(request=AUDIO, model="nova-3", smart_format=True, language="en")
    http.close()
    theirs = list(server.asked)
    transcript, own = ours(server, name="deepgram", base_url=server.url)
    best = answer.results.channels[0].alternatives[0]
    assert best.transcript == transcript.text == TEXT
    assert [word.punctuated_word for word in best.words] == [word.text for word in transcript.words or ()]
    same(theirs, own)


def test_elevenlabs(server: Vendors) -> None:
    elevenlabs = pytest.importorskip("elevenlabs")
    import httpx

    http = httpx.Client()
    client = elevenlabs.ElevenLabs(api_key=KEY, base_url=server.url, httpx_client=http)
    answer = client.speech_to_text.convert(
        file=("clip.flac", AUDIO, "audio/flac"),
        model_id="scribe_v2",
        language_code="en",
        tag_audio_events=False,
        timestamps_granularity="word",
    )
    http.close()
    theirs = list(server.asked)
    transcript, own = ours(server, name="elevenlabs", base_url=server.url)
    assert answer.text == transcript.text == TEXT
    assert [word.text for word in answer.words if word.type == "word"] == [word.text for word in transcript.words or ()]
    same(theirs, own)
