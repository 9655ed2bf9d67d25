"""`tiny-audio evaluate` with all kinds of targets, with interruptions, and with results of earlier evaluations."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluation.outputs import FIELDS, Output, deepgram, rows_in
from tests.support.provider_server import KEY, Fault, Vendors
from tiny_audio.cli import main
from tiny_audio.evaluation.data import read_data
from tiny_audio.evaluation.resolve import resolve_target
from tiny_audio.providers import ProviderRefusedError, ProviderTranscript

pytestmark = pytest.mark.usefixtures("one_thread")


# --- targets


def test_a_run_gets_the_scores_of_its_report(call: Output, trained: Path, tmp_path: Path) -> None:
    for number, target in enumerate((trained / "run", trained / "run" / "model")):
        output = tmp_path / str(number)
        arguments = [target, "--data", trained / "manifest.jsonl", "--group-by", "speaker", "--output-dir", output]
        code, out, err = call(*arguments, "--json")
        assert code == 0, err
        assert err.startswith("run: ready after ")
        scores = json.loads(out)["run"]["manifest"]
        report = json.loads((trained / "run" / "report.json").read_text())["evaluation"]["held_out"]
        assert scores["wer"] == report["wer"]
        assert (scores["num_clips"], scores["num_failed"], scores["num_groups"]) == (8, 0, 3)
        assert scores == json.loads((output / "run" / "manifest" / "scores.json").read_text())
        rows = rows_in(output / "run" / "manifest")
        run = [json.loads(line) for line in (trained / "run/evaluation/held_out.jsonl").read_text().splitlines()]
        assert [(row["text"], row["pred_text"], row["ctc_text"]) for row in rows] == [
            (row["text"], row["pred_text"], row["ctc_text"]) for row in run
        ]
        assert [list(row) for row in rows] == [FIELDS] * 8
        assert {row["metadata"]["speaker"] for row in rows} == {"s0", "s1", "s2"}
        assert scores["audio_s"] == pytest.approx(sum(row["duration"] for row in rows))
        assert scores["rtfx"] == pytest.approx(scores["audio_s"] / sum(row["time"] for row in rows))
        assert scores["load_s"] > 0
        assert scores["cost_usd"] is None
        assert scores["compared_with_training"][:2] == ["clip", "sound"]
        assert [(one["by"], one["num_shared"]) for one in scores["shared_with_training"]] == [("clip", 8)]


def test_training_data_of_several_runs_is_compared_once(call: Output, trained: Path, tmp_path: Path) -> None:
    runs = [trained / "run", tmp_path / "again", tmp_path / "other"]
    for run in runs[1:]:
        (run / "model").mkdir(parents=True)
        for path in (trained / "run" / "model").iterdir():
            (run / "model" / path.name).symlink_to(path)
    recipe = (trained / "run" / "recipe.yaml").read_text()
    (runs[1] / "recipe.yaml").write_text(recipe)
    assert "min_duration_s: " in recipe
    (runs[2] / "recipe.yaml").write_text(re.sub(r"min_duration_s: \S+", "min_duration_s: 1.0", recipe))
    code, out, err = call(*runs, "--data", trained / "manifest.jsonl", "--output-dir", tmp_path / "out", "--json")
    assert code == 0, err
    compared = "comparing with the training data of "
    assert [line.removeprefix(compared) for line in err.splitlines() if line.startswith(compared)] == ["run", "other"]
    shared = [scores["manifest"]["shared_with_training"][0]["num_shared"] for scores in json.loads(out).values()]
    assert shared == [8, 8, 4]


def test_clips_without_speech_are_scored(call: Output, trained: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (trained / "manifest.jsonl").read_text().splitlines()][:4]
    rows = [row | {"audio_filepath": str(trained / row["audio_filepath"])} for row in rows]
    for row, text in zip(rows, (rows[0]["text"], "", "  ", None), strict=True):
        row["text"] = text
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = call(trained / "run", "--data", tmp_path / "m.jsonl", "--output-dir", tmp_path, "--json")
    assert code == 0, err
    scores = json.loads(out)["run"]["m"]
    assert scores["num_clips"] == 3
    assert [drop["reason"] for drop in scores["dropped"]] == ["text_missing"], "null is no reference"
    written = [row for row in rows_in(tmp_path / "run" / "m") if not row["text"]]
    words = sum(len(row["pred_text"].split()) for row in written)
    hours = sum(row["duration"] for row in written) / 3600
    assert words, "the tiny model writes something"
    assert scores["non_speech_insertions_per_hour"] == pytest.approx(words / hours, rel=0.2)


def test_targets_of_all_kinds_are_compared(
    call: Output,
    server: Vendors,
    trained: Path,
    ctc_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    targets = [trained / "run", ctc_model, deepgram(server)]
    code, out, err = call(*targets, "--data", trained / "manifest.jsonl", "--output-dir", tmp_path)
    assert code == 0, err
    header, *table = out.splitlines()
    for head in ("set", "target", "WER", "95 % interval", "CER", "sub", "del", "ins", "exact", "clips", "RTFx", "USD"):
        assert head in header
    assert [line.split()[:2] for line in table[:2]] == [["manifest", "run"], ["manifest", "tiny-wav2vec2"]]
    assert table[2].split()[1].startswith("deepgram-base_url=http-127.0.0.1")
    assert "normalizer: whisper_english" in table
    # The last line of stderr contains the `rescore` command that writes the page. This command gives the same verdicts.
    command = shlex.split(err.splitlines()[-1].partition(": ")[2])
    assert command[:2] == ["tiny-audio", "rescore"]
    capsys.readouterr()
    assert main([*command[1:], "--json"]) == 0
    differences = json.loads(capsys.readouterr().out)["differences"]
    code, out, _ = call(*targets, "--data", trained / "manifest.jsonl", "--output-dir", tmp_path, "--json")
    assert code == 0
    found = [sets["manifest"]["comparison"] for sets in list(json.loads(out).values())[1:]]
    for key in ("difference", "interval", "p_value", "p_adjusted", "verdict"):
        assert [entry[key] for entry in found] == [entry[key] for entry in differences]
    (page,) = tmp_path.glob("manifest.html")
    assert "MAPSSWE" in page.read_text()
    assert page.read_text().count("tiny-wav2vec2") > 0
    assert all(folder.is_dir() for folder in (tmp_path / "run", tmp_path / "tiny-wav2vec2"))
    rows = rows_in(tmp_path / "tiny-wav2vec2" / "manifest")
    assert any(row["pred_text"] for row in rows)
    assert {row["ctc_text"] for row in rows} == {None}


def test_models_without_an_attention_mask_get_clips_one_by_one(ctc_model: Path) -> None:
    target: Any = resolve_target(str(ctc_model))
    target.load()
    assert not target._pipeline.feature_extractor.return_attention_mask
    clips = [0.1 * torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in (80_000, 16_000)]
    together = [one.text for one in target.transcribe_batch(clips)]
    assert together == [target.transcribe_batch([clip])[0].text for clip in clips]
    assert all(together)
    with pytest.MonkeyPatch.context() as patch:  # in a batch, padding would change the texts
        patch.setattr(target, "_takes_batches", lambda: True)
        assert [one.text for one in target.transcribe_batch(clips)] != together


def test_a_missing_key_is_an_error_before_clips_are_transcribed(
    call: Output, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEEPGRAM_API_KEY", raising=False)
    targets = [trained / "run", "provider:deepgram"]
    code, out, err = call(*targets, "--data", trained / "manifest.jsonl", "--output-dir", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error: provider deepgram needs a key, but the environment variable DEEPGRAM_API_KEY is not")
    assert not list(tmp_path.rglob("hypotheses.jsonl"))


def test_the_cost_of_a_provider_is_reported(call: Output, server: Vendors, trained: Path, tmp_path: Path) -> None:
    target = deepgram(server, usd_per_hour=3600)
    code, out, _ = call(target, "--data", trained / "manifest.jsonl", "--output-dir", tmp_path, "--json")
    assert code == 0
    ((scores,),) = (one.values() for one in json.loads(out).values())
    assert scores["cost_usd"] == pytest.approx(scores["audio_s"])
    assert scores["price"] == {"usd_per_hour": 3600, "source": "usd_per_hour"}
    assert len(server.asked) == 8


# --- failures


def test_failed_clips_have_no_hypothesis_and_are_retried(
    call: Output, server: Vendors, trained: Path, tmp_path: Path
) -> None:
    arguments = [deepgram(server, concurrency=1), "--data", trained / "manifest.jsonl", "--output-dir", tmp_path]
    server.faults = [Fault("status", 400), Fault("body", 200, body="{}")]
    code, out, _ = call(*arguments)
    assert code == 0
    assert out.splitlines()[1].split()[-2:] == ["6", "2"]
    assert "not transcribed by deepgram-" in out
    assert "answered 400: " in out
    (folder,) = (path.parent for path in tmp_path.rglob("hypotheses.jsonl"))
    failed = [row for row in rows_in(folder) if row["error"]]
    assert [(row["pred_text"], row["time"], row["truncated"]) for row in failed] == [(None, None, None)] * 2
    scores = json.loads((folder / "scores.json").read_text())
    assert (scores["num_utterances"], scores["num_failed"], scores["failure_rate"]) == (6, 2, 0.25)
    assert [one["id"] for one in scores["failures"]] == [row["id"] for row in failed]

    server.asked.clear()
    code, out, err = call(*arguments)
    assert code == 0
    assert len(server.asked) == 2
    assert "6 of 8 are done" in err
    assert [row["error"] for row in rows_in(folder)] == [None] * 8
    assert out.splitlines()[1].split()[-2:] == ["8", "0"]

    server.asked.clear()
    code, _, err = call(*arguments)
    assert (code, err, server.asked) == (0, "", [])
    assert json.loads((folder / "scores.json").read_text())["load_s"] is None


def test_an_interrupted_evaluation_continues(call: Output, server: Vendors, trained: Path, tmp_path: Path) -> None:
    arguments = [deepgram(server, concurrency=1), "--data", trained / "manifest.jsonl", "--output-dir", tmp_path]
    server.faults = [Fault("body", 200, body=server_text())] * 3 + [Fault("status", 401)]
    code, _, err = call(*arguments)
    assert code == 2
    assert "answered 401: " in err
    (path,) = tmp_path.rglob("hypotheses.jsonl")
    assert len(path.read_text().splitlines()) == 3
    with path.open("a") as file:
        file.write('{"id": "manifest/clip')  # an incomplete line, as a killed process leaves it
    server.asked.clear()
    code, _, err = call(*arguments)
    assert code == 0
    assert "3 of 8 are done" in err
    assert len(server.asked) == 5
    assert len(rows_in(path.parent)) == 8


def server_text() -> str:
    return json.dumps({"results": {"channels": [{"alternatives": [{"transcript": "yes"}]}]}})


def test_a_provider_that_always_fails_is_an_error(call: Output, server: Vendors, trained: Path, tmp_path: Path) -> None:
    server.faults = [Fault("status", 500)] * 100
    arguments = ["--data", trained / "manifest.jsonl", "--output-dir", tmp_path / "8"]
    code, out, err = call(deepgram(server), *arguments)
    assert (code, out) == (1, "")
    assert "on manifest: none of 8 clips was transcribed; the first: manifest/clip0" in err
    clips = (trained / "manifest.jsonl").read_text()
    (trained / "many.jsonl").write_text(
        "".join(
            json.dumps(json.loads(line) | {"audio_filepath": "./" * number + json.loads(line)["audio_filepath"]}) + "\n"
            for number in range(4)
            for line in clips.splitlines()
        )
    )
    server.faults = [Fault("status", 500)] * 100
    server.asked.clear()
    code, _, err = call(deepgram(server, concurrency=2), "--data", trained / "many.jsonl", "--output-dir", tmp_path)
    assert code == 1
    assert "20 clips in a row" in err
    assert "deepgram: POST " in err
    assert len(server.asked) <= 24


def test_running_requests_are_kept_when_a_key_is_rejected(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPGRAM_API_KEY", KEY)
    target: Any = resolve_target("provider:deepgram:concurrency=3")
    all_asked, calls = threading.Barrier(3), itertools.count()

    class Account:
        def transcribe(self, audio: bytes) -> ProviderTranscript:
            number = next(calls)
            all_asked.wait(10)
            if number == 0:
                raise ProviderRefusedError("deepgram: the account is empty")
            time.sleep(0.1)
            return ProviderTranscript("yes")

    target._provider = Account()
    (data,) = read_data([str(trained / "manifest.jsonl")], None)
    received = []
    with pytest.raises(ProviderRefusedError, match="the account is empty"):
        received.extend(target.transcribe(data.clips))  # extend keeps the results that come before the error
    assert next(calls) == 3
    assert len(received) == 2


def test_an_interrupt_keeps_running_requests(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPGRAM_API_KEY", KEY)
    target: Any = resolve_target("provider:deepgram:concurrency=2")
    all_asked = threading.Barrier(2)

    class Slow:
        def transcribe(self, audio: bytes) -> ProviderTranscript:
            if all_asked.wait(10) == 0:
                signal.raise_signal(signal.SIGINT)
            time.sleep(0.2)
            return ProviderTranscript("yes")

    target._provider = Slow()
    (data,) = read_data([str(trained / "manifest.jsonl")], None)
    received = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the test process may ignore SIGINT
    try:
        with pytest.raises(KeyboardInterrupt):
            received.extend(target.transcribe(data.clips))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(received) == 2


def test_a_failed_target_does_not_affect_other_targets(
    call: Output, server: Vendors, trained: Path, tmp_path: Path
) -> None:
    server.faults = [Fault("status", 401)] * 100
    targets = [deepgram(server), trained / "run"]
    arguments = [*targets, "--data", trained / "manifest.jsonl", "--output-dir", tmp_path]
    code, out, err = call(*arguments)
    assert code == 2
    assert out.splitlines()[1].split()[:2] == ["manifest", "run"]
    assert err.splitlines()[-1].startswith("error: deepgram: POST ")
    server.faults = [Fault("status", 500)] * 100
    code, out, err = call(*arguments, "--json")
    assert (code, list(json.loads(out))) == (1, ["run"])
    assert err.splitlines()[-1].startswith("failed: deepgram-base_url=")


def test_a_target_without_a_complete_recording_does_not_affect_other_targets(
    call: Output, server: Vendors, trained: Path, tmp_path: Path
) -> None:
    def manifest(name: str, *clips: str) -> Path:
        chunk = {"duration": 1.1, "text": "yes", "parent_id": "call"}
        rows = [chunk | {"audio_filepath": str(trained / clip), "chunk_index": i} for i, clip in enumerate(clips)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    server.faults = [Fault("body", 200, body=server_text()), Fault("status", 400)]
    targets = [deepgram(server, concurrency=1), trained / "run"]
    data = manifest("call.jsonl", "clip000.wav", "clip003.wav")
    code, out, err = call(*targets, "--data", data, "--output-dir", tmp_path)
    assert (code, out.splitlines()[1].split()[:2]) == (1, ["call", "run"])
    assert f"the first: call/{trained}/clip003.wav: " in err.splitlines()[-1]
    assert (tmp_path / "run" / "call" / "scores.json").exists()
    code, _, err = call(
        trained / "run", "--data", manifest("nan.jsonl", "clip000.wav", "nan.wav"), "--output-dir", tmp_path
    )
    assert (code, err.splitlines()[-1].startswith("error: run on nan: ")) == (2, True)
    assert f"the first: nan/{trained}/nan.wav: " in err


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ValueError("oops"), "deepgram: ValueError: oops"),
        ("yes", "deepgram: returned 'yes' instead of a ProviderTranscript with a text"),
        (
            ProviderTranscript(None),
            "deepgram: returned ProviderTranscript(text=None, words=None) instead of a ProviderTranscript with a text",
        ),  # type: ignore[arg-type]
    ],
)
def test_an_invalid_result_of_a_provider_fails_only_its_clip(
    answer: Any, message: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPGRAM_API_KEY", KEY)
    target: Any = resolve_target("provider:deepgram:concurrency=1")
    answers = [answer]

    class Odd:
        def transcribe(self, audio: bytes) -> ProviderTranscript:
            given = answers.pop() if answers else ProviderTranscript("yes")
            if isinstance(given, Exception):
                raise given
            return given

    target._provider = Odd()
    (data,) = read_data([str(trained / "manifest.jsonl")], None)
    first, *others = target.transcribe(data.clips)
    assert (first.error, first.transcript) == (message, None)
    assert [one.transcript.text for one in others] == ["yes"] * 7


def test_fields_that_do_not_affect_results_are_not_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPGRAM_API_KEY", KEY)
    ways = "concurrency=1,usd_per_hour=2.0,timeout_s=5.0,max_retries=1,retry_wait_s=1.0,max_wait_s=3.0"
    plain, other, another = (
        resolve_target(f"provider:deepgram{suffix}").identity for suffix in ("", f":{ways}", ":model=nova-2")
    )
    assert plain == other
    assert plain != another


def test_unreadable_clips_are_reported(call: Output, trained: Path, tmp_path: Path) -> None:
    rows = [
        {"audio_filepath": str(trained / name), "duration": 1.1, "text": "yes"} for name in ("clip000.wav", "nan.wav")
    ]
    manifest = tmp_path / "mixed.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"audio_filepath": "no.wav", "text": "a"}]))
    code, out, _ = call(trained / "run", "--data", manifest, "--output-dir", tmp_path / "out")
    assert code == 0
    name = trained / "nan.wav"
    assert f"not transcribed by run: mixed/{name}: non_finite: {name}: contains NaN or infinite samples" in out
    assert "not in the set: mixed/mixed.jsonl:3: audio_missing: " in out
    manifest.write_text(json.dumps(rows[1]) + "\n")
    code, _, err = call(trained / "run", "--data", manifest, "--output-dir", tmp_path / "other")
    assert code == 2
    assert "none of 1 clips was transcribed; the first: mixed/" in err


def test_clips_without_a_common_hypothesis_are_not_compared(
    call: Output, server: Vendors, trained: Path, tmp_path: Path
) -> None:
    server.faults = [Fault("status", 400)] * 5
    targets = [trained / "run", deepgram(server, concurrency=1)]
    code, out, _ = call(*targets, "--data", trained / "manifest.jsonl", "--output-dir", tmp_path)
    assert code == 0
    assert "2 more clips of manifest" in out
    assert "manifest: " in out
