"""The transformers pipeline of an exported model, with every kind of input, alone and in batches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from tests.conftest import write_odd_clips
from tests.support.models import assemble
from tests.support.remote_code import fresh_python, offline, run, run_here
from tiny_audio.audio.load import load_audio
from tiny_audio.config import UserError
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.export.load import load_model
from tiny_audio.inference.pipeline import TinyAudioPipeline
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.context import ContextSettings
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.prompt import Context

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TASK = "automatic-speech-recognition"


def voice(seconds: float, pitch: float, rate: int = 16_000) -> np.ndarray[Any, Any]:
    """Create a sound that the filters accept: a gliding pitch with changing overtones, between short silences."""
    rng = np.random.default_rng(0)
    samples, step = int(seconds * rate), int(0.15 * rate)
    time = np.arange(samples) / rate
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.2 * np.sin(2 * np.pi * 3.1 * time))) / rate
    sound = 0.003 * rng.standard_normal(samples)
    for overtone in range(1, 30):
        loudness = np.repeat(rng.uniform(0, 1, samples // step + 1) ** 2, step)[:samples]
        sound += 0.1 * loudness / overtone**0.5 * np.sin(overtone * phase) * (0.55 + 0.45 * np.sin(8 * np.pi * time))
    edge = np.zeros(rate // 4)
    return np.concatenate([edge, sound, edge]).astype(np.float32)


def talkative() -> tuple[TinyAudioModel, Any]:
    """Return a tiny random model whose CTC head accepts every text."""
    model, tokenizer = assemble(prompt="{audio}")
    assert model.ctc_head is not None
    with torch.no_grad():
        model.ctc_head.weight.zero_()
        model.ctc_head.bias.zero_()
        model.ctc_head.bias[2] = 0.001
    return model, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an exported model, and sounds in four file formats with different sampling rates."""
    folder = tmp_path_factory.mktemp("pipeline")
    model, tokenizer = talkative()
    export_model(model, tokenizer, folder / "model")
    soundfile.write(folder / "a.wav", voice(0.9, 110), 16_000)
    soundfile.write(folder / "b.flac", np.stack([voice(1.6, 150, 44_100)] * 2, axis=1), 44_100)
    soundfile.write(folder / "c.mp3", voice(1.2, 200, 22_050), 22_050)
    soundfile.write(folder / "d.ogg", voice(0.6, 90, 8_000), 8_000)
    return folder


FILES = ("a.wav", "b.flac", "c.mp3", "d.ogg")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    pipe = pipeline(TASK, model=str(folder / "model"), trust_remote_code=True, device="cpu")
    assert type(pipe).__module__.startswith("transformers_modules.")
    return pipe


@cache
def expected(folder: Path, **settings: Any) -> list[str]:
    """Return the text that ``tiny-audio transcribe`` gives for each file."""
    model, tokenizer = load_model(folder / "model")
    model.config.generation |= settings
    waveforms = [load_audio(folder / name, max_duration_s=60.0) for name in FILES]
    return [one.text for name in waveforms for one in Transcriber(model, tokenizer).transcribe([name])]


def test_files_can_be_given_alone_in_lists_and_in_batches(folder: Path, pipe: Any) -> None:
    paths = [str(folder / name) for name in FILES]
    texts = expected(folder)
    assert any(texts), "all texts are empty, so their equality proves little"
    assert [pipe(path) for path in paths] == [{"text": text} for text in texts]
    assert pipe(paths) == [{"text": text} for text in texts]
    for batch_size in (3, 4):
        assert pipe(paths, batch_size=batch_size) == [{"text": text} for text in texts]
    assert pipe(tuple(paths[:2])) == [{"text": text} for text in texts[:2]]
    assert list(pipe(path for path in paths[:2])) == [{"text": text} for text in texts[:2]]
    assert pipe([]) == []


def test_a_recording_can_be_given_in_every_form(folder: Path, pipe: Any) -> None:
    samples, rate = soundfile.read(folder / "b.flac", dtype="float32")
    text = pipe(str(folder / "b.flac"))
    channels, samples_16k = samples.T, load_audio(folder / "b.flac", max_duration_s=60).numpy()
    forms = {
        "path": folder / "b.flac",
        "bytes": (folder / "b.flac").read_bytes(),
        "bytearray": bytearray((folder / "b.flac").read_bytes()),
        "raw": {"raw": samples[:, 0], "sampling_rate": rate},
        "array": {"array": samples[:, 0].astype(np.float64), "sampling_rate": rate, "path": "elsewhere.wav"},
        "a rate of numpy's": {"raw": samples[:, 0], "sampling_rate": np.int64(rate)},
        "channels": {"raw": channels, "sampling_rate": rate},
        "reversed": samples_16k[::-1].copy()[::-1],
        "big-endian": {"raw": channels.astype(">f4"), "sampling_rate": rate},
        "read-only": np.frombuffer(samples_16k.tobytes(), np.float32),
        "long double": samples_16k.astype(np.longdouble),
        "a list": {"array": samples_16k.tolist(), "sampling_rate": 16_000},
        "a tensor": {"raw": torch.tensor(samples[:, 0]), "sampling_rate": rate},
        "a data set's bytes": {"bytes": (folder / "b.flac").read_bytes(), "path": None},
        "a data set's path": {"bytes": None, "path": str(folder / "b.flac")},
        "samples at 16 kHz": samples_16k,
    }
    for form, recording in forms.items():
        assert pipe(recording) == text, form
    assert pipe(list(forms.values()), batch_size=4) == [text] * len(forms)


class Decoder:
    """Imitates torchcodec's AudioDecoder. In ``datasets`` 4 and later, the audio of a row is an AudioDecoder."""

    def __init__(self, path: Path) -> None:
        samples, self._rate = soundfile.read(path, dtype="float32", always_2d=True)
        self._samples = torch.from_numpy(np.ascontiguousarray(samples.T))

    @property
    def metadata(self) -> SimpleNamespace:
        return SimpleNamespace(sample_rate=self._rate, num_channels=len(self._samples))

    def get_all_samples(self) -> SimpleNamespace:
        return SimpleNamespace(data=self._samples, sample_rate=self._rate)

    def __getitem__(self, key: str) -> object:
        return {"array": self._samples.mean(0).numpy(), "sampling_rate": self._rate, "path": None}[key]


def test_rows_of_datasets_can_be_transcribed(folder: Path, pipe: Any) -> None:
    names = FILES[:2]
    texts = [{"text": text} for text in expected(folder)[:2]]
    assert texts[0] != texts[1]
    decoders = [Decoder(folder / name) for name in names]
    assert [pipe(decoder) for decoder in decoders] == texts
    assert pipe(decoders, batch_size=2) == texts
    rows = [{"audio": decoder, "text": "a reference"} for decoder in decoders]
    assert pipe(rows[1]) == texts[1]
    assert pipe({"audio": str(folder / "b.flac")}) == texts[1]
    files = [{"audio": {"path": name, "bytes": (folder / name).read_bytes()}} for name in names]
    data = Dataset.from_list(files)
    assert list(pipe(data)) == list(pipe(data.to_iterable_dataset())) == texts
    assert pipe(data["audio"]) == texts, "a column of a data set is a list of recordings"
    assert list(pipe(KeyDataset(rows, "audio"))) == texts


def test_filters_can_be_turned_off(folder: Path, pipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    hum = np.sin(2 * np.pi * 440 * np.arange(2 * 16_000) / 16_000).astype(np.float32)
    assert pipe(hum) == {"text": ""}
    assert "a transcript is empty: the sound is " in caplog.text
    text = pipe(hum, filter_hallucinations=False)["text"]
    assert text
    own = pipeline(TASK, model=str(folder / "model"), trust_remote_code=True, device="cpu", filter_hallucinations=False)
    assert own(hum)["text"] == text
    assert own(hum, filter_hallucinations=True)["text"] == ""


def test_a_recording_can_be_given_as_url(folder: Path, pipe: Any) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert pipe(f"{url}/a.wav") == pipe(str(folder / "a.wav"))
        with pytest.raises(ValueError, match=r"/none.wav: cannot be fetched: .*404"):
            pipe(f"{url}/none.wav")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    with pytest.raises(ValueError, match=r"/a.wav: cannot be fetched: "):
        pipe(f"{url}/a.wav")


def test_settings_can_be_given_to_a_call_or_to_the_pipeline(folder: Path, pipe: Any) -> None:
    path = str(folder / "b.flac")
    short = expected(folder, max_new_tokens=1)[1]
    assert short != expected(folder)[1]
    assert pipe(path, max_new_tokens=1)["text"] == short
    assert pipe(path, generate_kwargs={"max_new_tokens": 1})["text"] == short
    assert pipe(path)["text"] == expected(folder)[1]
    own = pipeline(TASK, model=str(folder / "model"), trust_remote_code=True, device="cpu", max_new_tokens=1)
    assert own(path)["text"] == short
    assert own(path, max_new_tokens=8)["text"] == expected(folder)[1]
    assert own(path, draft="none")["text"] == short  # a call replaces only the settings that it names
    assert pipe(path, chunk_length_s=30, stride_length_s=(4, 2))["text"] == expected(folder)[1]


def test_a_call_can_have_a_context(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = assemble(context=ContextSettings(max_tokens=32, hotwords=True, languages=("en",)))
    pipe = TinyAudioPipeline(model, tokenizer, device="cpu")
    clips = [voice(0.9, 110), voice(1.2, 200)]
    context = Context(("zero", "six"), language="en")
    own = Transcriber(model, tokenizer, filter_hallucinations=False)
    wanted = [one.text for one in own.transcribe([torch.from_numpy(clip) for clip in clips], contexts=context)]
    assert wanted != [one.text for one in own.transcribe([torch.from_numpy(clip) for clip in clips])]
    settings: dict[str, Any] = {"filter_hallucinations": False, "hotwords": "zero, six"}
    assert [one["text"] for one in pipe(clips, language="en", **settings)] == wanted
    assert pipe(clips[0], **settings, generate_kwargs={"language": "en"})["text"] == wanted[0]
    own_context = TinyAudioPipeline(model, tokenizer, device="cpu", **settings)
    assert own_context(clips[0], language="en")["text"] == wanted[0]
    assert own_context(clips[0], hotwords="")["text"] == pipe(clips[0], filter_hallucinations=False)["text"]
    with caplog.at_level("WARNING"):
        pipe(clips[0], **settings | {"hotwords": ["one"] + [f"two {number}" for number in ("one", "six", "four")] * 2})
        pipe(clips[0], hotwords=["one two three", "six six six", "zero zero zero", "four five six"])
    assert "left out" in caplog.text


def test_concurrent_calls_use_their_own_settings(folder: Path, pipe: Any) -> None:
    path, before = str(folder / "b.flac"), dict(pipe.model.config.generation)
    texts = {limit: expected(folder, max_new_tokens=limit)[1] for limit in (1, 5)}
    assert len(set(texts.values())) == 2
    with ThreadPoolExecutor(4) as pool:
        texts_found = list(pool.map(lambda limit: (limit, pipe(path, max_new_tokens=limit)["text"]), [1, 5] * 6))
    assert all(text == texts[limit] for limit, text in texts_found)
    assert pipe.model.config.generation == before


def test_timestamps_of_segments_and_words(folder: Path, pipe: Any) -> None:
    path = str(folder / "b.flac")
    words = pipe(path, return_timestamps="word")
    assert [chunk["text"] for chunk in words["chunks"]] == words["text"].split()
    starts = [chunk["timestamp"][0] for chunk in words["chunks"]]
    assert starts == sorted(starts)
    assert all(0 <= start <= end <= 2.2 for start, end in (chunk["timestamp"] for chunk in words["chunks"]))
    found = pipe([path, str(folder / "a.wav")], return_timestamps=True, batch_size=2)
    assert " ".join(chunk["text"] for chunk in found[0]["chunks"]) == found[0]["text"] == words["text"]
    assert "chunks" not in pipe(path, return_timestamps=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"return_timestamps": "char"}, "return_timestamps='char'"),
        ({"speaker": "en", "task": "x"}, "speaker, task: .*batch_size, return_timestamps"),
        ({"language": "en"}, "language 'en': this model was not trained"),
        ({"hotwords": ["one"]}, "trained on transcripts without context"),
        ({"filter_hallucinations": "no"}, "filter_hallucinations='no'"),
        ({"search_cuts": 0}, "search_cuts=0: choose True or False"),
        ({"max_new_tokens": 0}, "generation settings: max_new_tokens"),
        ({"ctc_weight": 0.5}, "generation settings: .*ctc_weight 0.5 .*num_beams is 1"),
    ],
)
def test_invalid_arguments_are_rejected(settings: dict[str, Any], message: str) -> None:
    model, tokenizer = assemble()
    with pytest.raises(UserError, match=message):
        TinyAudioPipeline(model, tokenizer, device="cpu")(np.zeros(16_000, dtype=np.float32), **settings)


def test_unusable_recordings_are_rejected(tmp_path: Path) -> None:
    write_odd_clips(tmp_path)
    model, tokenizer = assemble()
    pipe = TinyAudioPipeline(model, tokenizer, device="cpu")
    for recording, message in (
        (str(tmp_path / "nowhere.wav"), "nowhere.wav: no such file"),
        (str(tmp_path / "text.wav"), "text.wav: "),
        (b"no audio", "audio of 8 bytes: "),
        ({"raw": np.zeros(9000, dtype=np.float32)}, "sampling_rate is None"),
        ({"raw": np.zeros(9000, dtype=np.int16), "sampling_rate": 8000}, "int16"),
        ({"raw": ["a"], "sampling_rate": 8000}, "not an array of numbers"),
        ({"raw": [[0.1], [0.2, 0.3]], "sampling_rate": 8000}, "not an array of numbers"),
        (np.zeros(9000, dtype=">i2"), "int16"),
        ({"text": "hello"}, "a dict"),
        (3, "an? int"),
    ):
        with pytest.raises(UserError, match=message):
            pipe(recording)
        with pytest.raises(UserError, match=message):
            pipe([recording, recording], batch_size=2)


def test_a_tokenizer_without_padding_works(folder: Path) -> None:
    model, tokenizer = talkative()
    tokenizer.pad_token = None
    pipe = TinyAudioPipeline(model, tokenizer, device="cpu")
    paths = [str(folder / name) for name in FILES]
    assert pipe(paths, batch_size=2) == pipe(paths)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_works(folder: Path, dtype: torch.dtype) -> None:
    pipe = pipeline(TASK, model=str(folder / "model"), trust_remote_code=True, device="cpu", dtype=dtype)
    assert pipe.dtype == dtype
    assert isinstance(pipe(str(folder / "a.wav"))["text"], str)


def test_a_pipeline_can_be_saved(folder: Path, tmp_path: Path, pipe: Any) -> None:
    pipe.save_pretrained(tmp_path / "again")
    shutil.copy(folder / "model" / "modeling_tiny_audio.py", tmp_path / "again")
    model, tokenizer = load_model(tmp_path / "again")
    again = TinyAudioPipeline(model, tokenizer, device="cpu")
    assert again(str(folder / "b.flac")) == pipe(str(folder / "b.flac"))


# The following tests use environments in which this package cannot be imported.

TRANSCRIBE = """
import json, os, shutil, sys
folder, *paths = sys.argv[1:]
import importlib.util
assert importlib.util.find_spec("tiny_audio") is None
assert shutil.which("ffmpeg") is None
import soundfile
from transformers import pipeline

task = "automatic-speech-recognition"
pipe = pipeline(task, model=folder, trust_remote_code=True)
samples, rate = soundfile.read(paths[1], dtype="float32")
results = {
    "alone": [pipe(path)["text"] for path in paths],
    "batches": [row["text"] for row in pipe(paths, batch_size=8)],
    "raw": pipe({"raw": samples.T, "sampling_rate": rate}, max_new_tokens=2)["text"],
    "words": [chunk["text"] for chunk in pipe(paths[1], return_timestamps="word")["chunks"]],
}
pipe.model.save_pretrained(folder + "-again")
pipe.tokenizer.save_pretrained(folder + "-again")
again = pipeline(model=folder + "-again", trust_remote_code=True)
results["again"] = [row["text"] for row in again(paths[:2], batch_size=2)]
again.save_pretrained(folder + "-third")
third = pipeline(task, model=folder + "-third", trust_remote_code=True)
results["third"] = third(paths[1])["text"]
# Load the model from the cache, as after a download from the hub, where names may have dots and dashes.
hub = pipeline(task, model="some-body/a.model", trust_remote_code=True)
results["hub"] = hub(paths[1])["text"]
assert "tiny_audio" not in sys.modules
print(json.dumps(results))
"""


def check_texts(folder: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    """Check that a pipeline gives the expected texts without this package, and without programs such as FFmpeg."""
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    shutil.copytree(folder / "model", tmp_path / "a-model.v1")
    repository = tmp_path / "hub" / "models--some-body--a.model"
    shutil.copytree(folder / "model", repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    texts = expected(folder)
    paths = [folder / name for name in FILES]
    environment = {**offline(tmp_path), "PATH": str(nothing), "HF_HUB_CACHE": str(tmp_path / "hub")}
    found = run(TRANSCRIBE, tmp_path / "a-model.v1", *paths, cwd=nothing, **environment)
    assert found == {
        "alone": texts,
        "batches": texts,
        "raw": expected(folder, max_new_tokens=2)[1],
        "words": texts[1].split(),
        "again": texts[:2],
        "third": texts[1],
        "hub": texts[1],
    }
    config = json.loads((tmp_path / "a-model.v1-again" / "config.json").read_text())
    assert config["custom_pipelines"][TASK]["impl"] == "pipeline_tiny_audio.TinyAudioPipeline"


def test_a_pipeline_works_without_this_package_and_ffmpeg(folder: Path, tmp_path: Path) -> None:
    check_texts(folder, tmp_path, run_here)


@pytest.mark.slow
def test_a_pipeline_works_in_a_new_environment(
    folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_texts(folder, tmp_path, partial(run, fresh_python(tmp_path_factory), ["-I"]))
