"""Data and targets that `tiny-audio evaluate` accepts and rejects."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.evaluation.outputs import Output, deepgram
from tests.support.provider_server import Vendors
from tiny_audio.config import UserError
from tiny_audio.evaluation.data import read_data
from tiny_audio.evaluation.leaderboard import GROUPS, SETS
from tiny_audio.evaluation.resolve import resolve_target
from tiny_audio.sources import SOURCES

pytestmark = pytest.mark.usefixtures("one_thread")


# --- data


def test_a_sample_of_the_clips_is_always_the_same(call: Output, server: Vendors, trained: Path, tmp_path: Path) -> None:
    few, more = (read_data([str(trained / "manifest.jsonl")], count)[0].clips for count in (3, 5))
    assert {clip.id for clip in few} < {clip.id for clip in more}
    assert (len(few), len(more)) == (3, 5)
    arguments = [deepgram(server), "--data", trained / "manifest.jsonl", "--output-dir", tmp_path]
    assert call(*arguments, "--max-samples", 5)[0] == 0
    assert call(*arguments, "--max-samples", 3)[0] == 0
    assert len(server.asked) == 5
    assert call(*arguments)[0] == 0
    assert len(server.asked) == 8


def test_data_can_be_sources_and_yaml_files(trained: Path, tmp_path: Path) -> None:
    manifest = trained / "manifest.jsonl"
    one = read_data([f"manifest:path={manifest}"], None)
    assert len(one[0].clips) == 8
    source = f"{{name: manifest, path: {manifest}}}"
    path = tmp_path / "sets.yaml"
    path.write_text(f"clean: {source}\nother: {source}\n")
    assert [(data.name, len(data.clips)) for data in read_data([str(path)], 2)] == [("clean", 2), ("other", 2)]
    path.write_text(f"name: manifest\npath: {manifest}\n")
    assert [data.name for data in read_data([str(path)], None)] == ["sets"]


def test_sets_of_a_yaml_file_need_different_folders(tmp_path: Path) -> None:
    source = "{name: synthetic, size: 2}"
    (tmp_path / "sets.yaml").write_text(f"test clean: {source}\ntest-clean: {source}\n")
    with pytest.raises(UserError, match="there are two sets called 'test-clean'"):
        read_data([str(tmp_path / "sets.yaml")], None)


def test_references_marked_as_not_scored_are_left_out(trained: Path) -> None:
    rows = [
        {"audio_filepath": "clip000.wav", "duration": 1.1, "text": text}
        for text in ("yes", "ignore_time_segment_in_scoring")
    ]
    (trained / "marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [clip.utterance.text for clip in read_data([str(trained / "marked.jsonl")], None)[0].clips] == ["yes"]


@pytest.mark.parametrize(
    ("indexes", "message"),
    [
        ((0, 0), "are both chunk 0 of the recording 'call'"),
        ((0, 2), "chunk 1 of the recording 'call' is missing"),
        ((-1, 0), 'chunk_index should be a whole number of at least 0, not "-1"'),
        ((0, "one"), 'chunk_index should be a whole number of at least 0, not "one"'),
    ],
)
def test_chunks_that_cannot_be_joined_are_rejected_before_they_are_transcribed(
    call: Output, server: Vendors, trained: Path, tmp_path: Path, indexes: tuple[object, ...], message: str
) -> None:
    row = {"audio_filepath": "clip000.wav", "duration": 1.1, "text": "yes", "parent_id": "call"}
    path = trained / "chunks.jsonl"
    path.write_text("".join(json.dumps(row | {"chunk_index": index}) + "\n" for index in indexes))
    code, _, err = call(deepgram(server), "--data", path, "--output-dir", tmp_path)
    assert (code, server.asked) == (2, [])
    assert err.startswith(f"error: --data {path}: ")
    assert message in err


def test_presets_are_sources() -> None:
    assert {name: len(sets) for name, sets in GROUPS.items()} == {
        "leaderboard": 7,
        "leaderboard_long": 10,
        "leaderboard_multilingual": 13,
    }
    assert len(SETS) == 35
    for each in SETS.values():
        if each.parent is None:
            config = SOURCES.parse(each.source(Path("cache")))
            assert config.repo == each.repo  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing.jsonl", "nothing.jsonl does not exist"),
        ("nothing.yaml", "nothing.yaml"),
        (
            "libri",
            "--data libri: there is no file, source or preset with this name; did you mean 'librispeech'?",
        ),
        ("leaderboard/amy", "did you mean 'leaderboard/ami'?"),
        ("librispeech:split=test", "--data librispeech:split=test: split: Input should be"),
        ("librispeech:splt=test.clean", "splt: unknown field; did you mean 'split'?"),
        (
            "librispeech:split",
            "librispeech:split: 'split' is not of the form field=value; commas separate fields",
        ),
        ("hub", "--data hub: repo: is missing and has no default"),
        (".", "--data . is a folder; for the audio files in it write --data folder:path=."),
    ],
)
def test_unknown_data_is_rejected(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_data([text], None)
    assert message in str(caught.value)


def test_unusable_data_is_rejected(trained: Path, tmp_path: Path) -> None:
    manifest = str(trained / "manifest.jsonl")
    with pytest.raises(
        UserError, match="there are two sets called 'manifest'; rename one of them, or give the set only once"
    ):
        read_data([manifest, manifest], None)
    path = tmp_path / "sets.yaml"
    path.write_text("clean: librispeech\n")
    with pytest.raises(UserError, match=r"'clean' is not a source"):
        read_data([str(path)], None)


# --- invalid targets


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("provider:deepgrm", "unknown provider 'deepgrm'; did you mean 'deepgram'?"),
        (
            "provider:deepgram:modle=nova-3",
            "provider:deepgram:modle=nova-3: modle: unknown field; did you mean 'model'?",
        ),
        ("provider:openai:base_url=nowhere", "base_url: 'nowhere'"),
        ("provider:openai_compatible:model=a", "base_url: is missing and has no default"),
        (
            "deepgram:model=nova-3",
            "there is no folder of that name; for the provider write provider:deepgram:model=nova-3",
        ),
        ("runs/not/there", "runs/not/there is neither a folder nor a model on the hub (owner/model)"),
        ("file", "file is a file; give the folder of a run or of a model"),
        ("empty", "empty: there is no config.json"),
        ("unfinished", "unfinished: this run has no model yet"),
        ("no_json", "not valid JSON"),
        ("no_type", "has no model_type"),
        ("bert:langage=en", "langage: unknown field; did you mean 'language'?"),
    ],
)
def test_unknown_targets_are_rejected(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {"no_json": "{", "no_type": "{}", "bert": '{"model_type": "bert"}'}
    for name in ("empty", "unfinished", *contents):
        (tmp_path / name).mkdir()
    for name, content in contents.items():
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "unfinished" / "state.json").write_text("{}")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        resolve_target(text)
    assert message in str(caught.value)


def test_models_that_cannot_be_loaded_are_rejected(
    call: Output, trained: Path, ctc_model: Path, tmp_path: Path
) -> None:
    def rejection_of(folder: Path) -> str:
        code, out, err = call(folder, "--data", trained / "manifest.jsonl", "--output-dir", tmp_path / "out")
        assert (code, out) == (2, "")
        return err

    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    assert (
        "its config.json has model_type 'bert', and transformers has no speech recognizer of that type"
        in rejection_of(tmp_path / "bert")
    )
    shutil.copytree(ctc_model, tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    assert "half: transformers cannot load it: " in rejection_of(tmp_path / "half")
    shutil.copytree(trained / "run" / "model", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cut: the weights cannot be read" in rejection_of(tmp_path / "cut")


def test_a_model_on_an_unavailable_hub_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="and the model cannot be downloaded from the Hugging Face hub: "):
        resolve_target("nobody/nothing-at-all")


def test_targets_must_have_different_names(call: Output, trained: Path, tmp_path: Path) -> None:
    targets = [trained / "run", trained / "run" / "model"]
    code, _, err = call(*targets, "--data", trained / "manifest.jsonl", "--output-dir", tmp_path)
    assert code == 2
    assert "there are two targets called 'run'; rename a folder" in err


def test_invalid_options_of_our_models_are_rejected(trained: Path) -> None:
    with pytest.raises(UserError, match=r"num_beams: unknown field; Allowed: hotwords, hotwords_column, language"):
        resolve_target(f"{trained / 'run'}:num_beams=2")
    with pytest.raises(UserError, match=r"hotwords: .*nowhere\.txt cannot be read"):
        resolve_target(f"{trained / 'run'}:hotwords=nowhere.txt")


def test_ctc_models_reject_options_of_decoders(call: Output, trained: Path, ctc_model: Path, tmp_path: Path) -> None:
    target = f"{ctc_model}:num_beams=4,language=de"
    code, out, err = call(target, "--data", trained / "manifest.jsonl", "--output-dir", tmp_path)
    assert (code, out) == (2, "")
    assert "a CTC model has no decoder, so it cannot use language and num_beams; remove these options" in err
    resolve_target(f"{ctc_model}:num_beams=1").check()


def test_a_missing_key_is_an_error(
    call: Output, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEEPGRAM_API_KEY", raising=False)
    code, out, err = call("provider:deepgram", "--data", trained / "manifest.jsonl", "--output-dir", tmp_path)
    assert (code, out) == (2, "")
    assert err == (
        "error: provider deepgram needs a key, but the environment variable DEEPGRAM_API_KEY is not set; get a key "
        "from the provider and run: export DEEPGRAM_API_KEY=...\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group-by", "accent"], "error: --group-by: no clip has a value for the column 'accent'; "),
        (["--normalizer", "upper"], "error: "),
        (["--max-samples", "0"], "Invalid value for '--max-samples'"),
    ],
)
def test_wrong_options_are_rejected(
    call: Output, trained: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    arguments = [trained / "run", "--data", trained / "manifest.jsonl", "--output-dir", tmp_path]
    code, out, err = call(*arguments, *options)
    assert (code, out) == (2, "")
    assert message in err
