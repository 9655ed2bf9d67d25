"""`evaluate` with hotwords for all clips or for each clip, compared with the same model without hotwords."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import write_clips
from tests.evaluation.outputs import Output, rows_in
from tests.support.models import assemble
from tiny_audio.audio.load import load_audio
from tiny_audio.config import UserError
from tiny_audio.data.clips import Clip
from tiny_audio.evaluation.contexts import ClipContexts, ContextOptions
from tiny_audio.evaluation.resolve import resolve_target
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.context import ContextSettings
from tiny_audio.model.prompt import Context
from tiny_audio.sources import Utterance

pytestmark = pytest.mark.usefixtures("one_thread")

KNOWN = ContextSettings(max_tokens=40, hotwords=True, languages=("en",))


@pytest.fixture(scope="module")
def place(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model, a file of hotwords, and clips. Only the first clip has hotwords in the column ``names``."""
    folder = tmp_path_factory.mktemp("place")
    export_model(*assemble(context=KNOWN), folder / "model")
    manifest = write_clips(folder, 3)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0]["names"] = "six, two"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "names.txt").write_text("zero\nfive\n")
    return folder


def texts(folder: Path) -> list[str]:
    return [row["pred_text"] for row in rows_in(folder / "manifest")]


def test_texts_with_hotwords_equal_those_of_the_transcriber(call: Output, place: Path, tmp_path: Path) -> None:
    model, names = place / "model", place / "names.txt"
    targets = [model, f"{model}:hotwords={names},language=en", f"{model}:hotwords_column=names"]
    code, out, err = call(*targets, "--data", place / "manifest.jsonl", "--output-dir", tmp_path, "--json")
    assert (code, "trained" in err) == (0, False)
    assert all("comparison" in sets["manifest"] for sets in list(json.loads(out).values())[1:])
    folders = sorted(tmp_path.glob("*/manifest"), key=lambda path: len(path.parent.name))
    plain, column, shared = (texts(path.parent) for path in folders)
    rows = rows_in(folders[0])
    clips = [load_audio(Path(row["audio_filepath"]), max_duration_s=60.0) for row in rows]
    found = Transcriber(*assemble(context=KNOWN), filter_hallucinations=False)
    own = [Context(("six", "two")) if row["metadata"].get("names") else None for row in rows]
    for given, contexts in (
        (plain, None),
        (column, own),
        (shared, Context(("zero", "five"), language="en")),
    ):
        assert given == [one.text for one in found.transcribe(clips, contexts=contexts)]
    assert plain != shared


def test_a_missing_column_is_an_error(call: Output, place: Path, tmp_path: Path) -> None:
    target = f"{place / 'model'}:hotwords_column=nams"
    code, _, err = call(target, "--data", place / "manifest.jsonl", "--output-dir", tmp_path)
    assert code == 2
    assert "'nams'" in err
    assert "names" in err


def test_a_context_with_a_special_token_names_the_clip(call: Output, place: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (place / "manifest.jsonl").read_text().splitlines()]
    rows[1]["before"] = "so <|end|> it"
    manifest = place / "special.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = f"{place / 'model'}:previous_text_column=before"
    code, _, err = call(target, "--data", manifest, "--output-dir", tmp_path)
    assert code == 2
    assert f"error: special/{rows[1]['audio_filepath']}: the context contains the special token '<|end|>'" in err
    (file,) = tmp_path.glob("*/special/hypotheses.jsonl")
    assert file.read_text() == ""  # the error is reported before any clip is transcribed


def test_an_evaluation_continues_with_clips_that_lack_the_column(call: Output, place: Path, tmp_path: Path) -> None:
    command = (f"{place / 'model'}:hotwords_column=names", "--data", place / "manifest.jsonl", "--output-dir", tmp_path)
    assert call(*command)[0] == 0
    (file,) = tmp_path.glob("*/manifest/hypotheses.jsonl")
    whole = file.read_text().splitlines(keepends=True)
    file.write_text(whole[0])  # keep the first clip, the only one with the column
    assert call(*command)[0] == 0
    texts = [[json.loads(line)["pred_text"] for line in lines] for lines in (whole, file.read_text().splitlines())]
    assert texts[0] == texts[1]


def test_targets_with_different_hotwords_have_different_identities(place: Path) -> None:
    plain = resolve_target(str(place / "model"))
    found = [resolve_target(f"{place / 'model'}:hotwords={place / name}") for name in ("names.txt", "names.txt")]
    assert "context" not in plain.identity
    assert found[0].identity == found[1].identity != plain.identity
    (place / "others.txt").write_text("six")
    other = resolve_target(f"{place / 'model'}:hotwords={place / 'others.txt'}")
    assert other.identity["context"] != found[0].identity["context"]
    assert len({plain.label, found[0].label, other.label}) == 3


def test_hotwords_and_a_column_cannot_be_combined(place: Path) -> None:
    with pytest.raises(UserError, match="hotwords and hotwords_column"):
        resolve_target(f"{place / 'model'}:hotwords={place / 'names.txt'},hotwords_column=names")
    assert ClipContexts.of(ContextOptions()) is None


def context_of(names: str) -> Context | None:
    contexts = ClipContexts.of(ContextOptions(hotwords_column="names"))
    assert contexts is not None
    utterance = Utterance("u1", 1.0, "six", None, {"names": names})
    clip = Clip(None, utterance, "set/u1")  # type: ignore[arg-type]  # no audio is read
    return contexts.of_clips([clip])[0]


@pytest.mark.parametrize("names", ["Ada Lovelace, Babbage", '["Ada Lovelace", "Babbage"]'], ids=["text", "list"])
def test_hotwords_of_a_clip_can_be_a_text_or_a_list(names: str) -> None:
    assert context_of(names) == Context(("Ada Lovelace", "Babbage"))


def test_a_text_that_only_looks_like_a_list_is_a_text() -> None:
    assert context_of("[six, two") == Context(("[six", "two"))


def test_a_list_with_other_values_than_texts_names_the_clip() -> None:
    with pytest.raises(UserError, match=r"set/u1.*names"):
        context_of('["six", 2]')
