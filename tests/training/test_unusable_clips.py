"""Unusable clips are listed and counted. If there are too many, the run stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import UNUSABLE, Document, changed, manifest_row, tiny_recipe, write_clips, write_odd_clips
from tests.support.training import (
    exported,
    gather,
    make_trainer,
    parse,
    run,
    steps_kept,
)
from tiny_audio.config import UserError
from tiny_audio.data.dropped import DroppedClips, DroppedLog, check_dropped, read_dropped
from tiny_audio.sources import Dropped
from tiny_audio.training.assembly import assemble
from tiny_audio.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Write twelve good clips and one unusable clip of each kind. Some fail only when they are decoded."""
    manifest = write_clips(tmp_path, 12)
    write_odd_clips(tmp_path)
    with manifest.open("a") as file:
        for name in UNUSABLE:
            file.write(manifest_row(tmp_path / name, "yes", 1.0))
        file.write(manifest_row(tmp_path / "clip000.wav", " ", 1.0))
        file.write(manifest_row(tmp_path / "clip001.flac", "no", 99.0))
    return tmp_path


REASONS = {
    **UNUSABLE,
    "one_sample.wav": "duration_differs",  # the manifest says 1 s
    "clip000.wav:19": "text_missing",
    "clip001.flac:20": "too_long",
}


def mixed_recipe(folder: Path, share: float, **changes: Any) -> Document:
    return changed(tiny_recipe(folder), data__max_dropped_share=share, training__warmup_steps=0, **changes)


def test_unusable_clips_below_the_ceiling_are_listed(mixed: Path, tmp_path: Path) -> None:
    settings = {"training__steps": 5, "execution__log_every": 5}
    make_trainer(mixed_recipe(mixed, 0.5, **settings), tmp_path / "run").run()
    listed = {drop.id: drop for drop in read_dropped(tmp_path / "run" / "dropped.jsonl")}
    assert {name: drop.reason for name, drop in listed.items()} == {
        f"clips/{name}": reason for name, reason in REASONS.items()
    }
    assert listed["clips/nan.wav"].detail == "nan.wav: contains NaN or infinite samples"
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["dropped_clips"] == len(REASONS)


def test_too_many_unusable_clips_stop_the_run(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        make_trainer(mixed_recipe(mixed, 0.25), tmp_path / "run").run()
    message = str(refusal.value)
    assert message.startswith("5 of 19 training clips are unusable (26.3%; data.max_dropped_share is 25.0%):\n  ")
    assert "\n  text_missing: 1, such as clips/clip000.wav:19: its transcript is empty; " in message
    listed = [drop.reason for drop in read_dropped(tmp_path / "run" / "dropped.jsonl")]
    assert len(listed) == 6
    assert "too_long" in listed  # listed but not counted


def test_too_many_unusable_clips_in_the_index_stop_before_the_first_step(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^1 of 19 training clips are unusable"):
        make_trainer(mixed_recipe(mixed, 0.04), tmp_path / "run").run()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert len(read_dropped(tmp_path / "run" / "dropped.jsonl")) == 2


@pytest.mark.parametrize("texts", ["", "<noise>"])
def test_clips_without_speech_can_be_trained_on(tmp_path: Path, texts: str) -> None:
    """With ``data.keep_empty``, clips with an empty target text are kept. Therefore, a batch may have no CTC label."""
    rows = [json.loads(line) for line in write_clips(tmp_path, 8).read_text().splitlines()]
    lines = [json.dumps(row | ({"text": texts} if index else {})) for index, row in enumerate(rows)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    settings = {"data__target_text": {"remove_markers": True}, "ctc": {"weight": 0.5}, "batching": {"max_clips": 1}}
    settings |= {"training__steps": 8, "training__warmup_steps": 0, "execution__log_every": 1}
    document = changed(tiny_recipe(tmp_path), **settings, data__keep_empty=True)
    trainer = make_trainer(document, tmp_path / "run")
    encoder, lone = trainer.target_encoder, trainer.target_encoder.encode("", 16_000)
    assert (lone.ids, lone.ctc_labels) == ([encoder.end_id], [])
    trainer.run()
    assert not read_dropped(tmp_path / "run" / "dropped.jsonl")
    logged = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(logged) == 8
    assert all(np.isfinite([row["loss"], row["gradient_norm"]]).all() for row in logged)
    assert sum(row["skipped_steps"] for row in logged) == 0


def test_a_new_start_clears_the_list_of_dropped_clips(mixed: Path, tmp_path: Path) -> None:
    trainer = make_trainer(mixed_recipe(mixed, 0.5, training__steps=1), tmp_path / "run")
    DroppedLog(tmp_path / "run" / "dropped.jsonl").add([Dropped("clips/gone", "empty", "an earlier attempt's")])
    trainer.run()
    assert "clips/gone" not in {drop.id for drop in read_dropped(tmp_path / "run" / "dropped.jsonl")}


def test_each_dropped_clip_is_listed_once(tmp_path: Path) -> None:
    path = tmp_path / "dropped.jsonl"
    DroppedLog(path).add([Dropped("a", "empty", "first"), Dropped("b", "empty", "é\u2028")])
    DroppedLog(path).add([Dropped("a", "too_long", "second"), Dropped("c", "empty", "")])
    assert [(drop.id, drop.detail) for drop in read_dropped(path)] == [("a", "first"), ("b", "é\u2028"), ("c", "")]


def test_the_message_names_an_example_of_each_reason() -> None:
    dropped = [Dropped("a", "empty", "0 bytes"), Dropped("b", "empty", "no samples"), Dropped("c", "channels", "99")]
    # Clips that are too long do not count, because the recipe excludes them.
    dropped += [Dropped(f"d{number}", "too_long", "lasts 99 s") for number in range(100)]
    check_dropped(dropped, 6, 0.5)
    with pytest.raises(UserError) as refusal:
        check_dropped(dropped, 5, 0.5)
    assert str(refusal.value) == (
        "3 of 5 training clips are unusable (60.0%; data.max_dropped_share is 50.0%):\n"
        "  empty: 2, such as b: no samples\n"
        "  channels: 1, such as c: 99\n"
        "Repair the data, or raise data.max_dropped_share."
    )


def test_a_run_without_usable_clips_is_rejected(tmp_path: Path) -> None:
    write_clips(tmp_path, 2)
    recipe = parse(changed(tiny_recipe(tmp_path), data__min_duration_s=5.0))
    with pytest.raises(UserError) as refusal:
        assemble(recipe, gather(recipe), None)
    assert str(refusal.value) == (
        "data.train has no usable clip; 2 dropped, the first: lasts 1.10 s; 5 to 10 s are allowed; check the data, "
        "and data.min_duration_s and data.max_duration_s"
    )
    with pytest.raises(UserError, match=r"^data\.train has no usable clip; 2 dropped, the first: lasts 1\.10 s; "):
        run(changed(tiny_recipe(tmp_path), data__min_duration_s=5.0, data__evaluation={}), tmp_path / "run")


# --- continuing after too many unusable clips


def test_a_run_continues_after_the_ceiling_is_raised(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    manifest = write_clips(folder, 12)
    with manifest.open("a") as file:
        for number in range(4):
            (folder / f"broken{number}.wav").write_bytes(b"no audio")
            file.write(manifest_row(folder / f"broken{number}.wav", "yes", 1.0))
    document = changed(tiny_recipe(folder), data__evaluation={}, training__steps=14, batching__max_clips=1)
    document = changed(document, execution__log_every=1)
    run(changed(document, data__max_dropped_share=0.5), tmp_path / "undisturbed")
    with pytest.raises(UserError, match=r"^3 of 16 training clips are unusable"):
        run(changed(document, data__max_dropped_share=0.15), tmp_path / "run")
    (kept,) = steps_kept(tmp_path / "run")
    assert kept > 0
    callback = run(changed(document, data__max_dropped_share=0.5), tmp_path / "run")
    assert f"continuing from step {kept} (step-{kept:09d})" in callback.notes
    assert exported(tmp_path / "run") == exported(tmp_path / "undisturbed")
    assert len(read_dropped(tmp_path / "run" / "dropped.jsonl")) >= 3


def spoil(manifest: Path, numbers: range) -> dict[Path, bytes]:
    """Damage the files of some clips, and return their original contents."""
    files = [
        manifest.parent / json.loads(manifest.read_text().splitlines()[number])["audio_filepath"] for number in numbers
    ]
    held = {path: path.read_bytes() for path in files}
    for path in files:
        path.write_bytes(b"no audio")
    return held


def test_a_run_continues_after_the_data_is_repaired(tmp_path: Path) -> None:
    folder, listed = tmp_path / "data", tmp_path / "run" / "dropped.jsonl"
    held = spoil(write_clips(folder, 12), range(3))
    document = changed(tiny_recipe(folder), data__evaluation={}, training__steps=14, batching__max_clips=1)
    document = changed(document, data__max_dropped_share=0.2, execution__log_every=1)
    for _ in range(2):  # nothing is repaired before the second start
        with pytest.raises(UserError, match=r"^3 of 12 training clips are unusable"):
            run(document, tmp_path / "run")
    (kept,) = steps_kept(tmp_path / "run")
    (first, content), *others = held.items()
    first.write_bytes(content)
    callback = run(document, tmp_path / "run")
    assert "3 clips could not be used, which is too many; reading them again" in callback.notes
    assert "1 of them can be used now" in callback.notes
    assert f"continuing from step {kept} (step-{kept:09d})" in callback.notes
    assert {drop.id for drop in read_dropped(listed)} == {f"clips/{path.name}" for path, _ in others}
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert rows[-1]["dropped_clips"] == 2


def test_clips_outside_the_duration_bounds_do_not_raise_the_ceiling(tmp_path: Path) -> None:
    """``data.max_dropped_share`` is a share of only the clips whose durations are within the bounds."""
    manifest = write_clips(tmp_path / "data", 10)
    spoil(manifest, range(5))
    with manifest.open("a") as file:
        for _ in range(90):
            file.write(manifest_row(tmp_path / "data" / "clip009.wav", "yes", 99.0))
    document = changed(tiny_recipe(tmp_path / "data"), data__evaluation={}, training__steps=10)
    with pytest.raises(UserError, match=r"^\d of 10 training clips are unusable"):
        run(changed(document, data__max_dropped_share=0.05), tmp_path / "run")


@pytest.mark.parametrize(
    ("seconds", "detail"), [(15.0, "15.00 s of audio; at most 10 s is allowed"), (0.01, "160 samp")]
)
def test_a_clip_with_a_wrong_duration_in_the_index_counts_as_unusable(
    tmp_path: Path, seconds: float, detail: str
) -> None:
    """The index lists an allowed duration, but the decoded audio is too long or too short."""
    manifest = write_clips(tmp_path / "data", 6)
    path = tmp_path / "data" / "other.wav"
    soundfile.write(path, np.full(int(16_000 * seconds), 0.1), 16_000)
    with manifest.open("a") as file:
        file.write(manifest_row(path, "yes", 1.0))
    document = changed(tiny_recipe(tmp_path / "data"), data__evaluation={}, training__steps=10)
    with pytest.raises(UserError, match=r"^1 of 7 training clips are unusable") as refusal:
        run(changed(document, data__max_dropped_share=0.0), tmp_path / "run")
    assert f"duration_differs: 1, such as clips/other.wav: other.wav: {detail}" in str(refusal.value)
    assert "; the index lists 1.00 s; correct the index\n" in str(refusal.value)


# --- dropped.jsonl


def test_an_incomplete_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "dropped.jsonl"
    DroppedLog(path).add([Dropped("a", "empty", "first"), Dropped("b", "empty", "")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert [drop.id for drop in read_dropped(path)] == ["a"]
    log = DroppedLog(path)
    log.add([Dropped("a", "empty", "again"), Dropped("b", "empty", ""), Dropped("b", "empty", "twice")])
    assert path.read_bytes() == whole
    log.add([])
    assert path.read_bytes() == whole


def test_lines_are_appended_without_rewriting_the_file(tmp_path: Path) -> None:
    path = tmp_path / "dropped.jsonl"
    log = DroppedLog(path)
    assert not path.exists()
    log.add([Dropped("a", "empty", "first")])
    inode = path.stat().st_ino
    log.add([Dropped("b", "empty", "é\u2028")])
    assert path.stat().st_ino == inode
    assert [drop.detail for drop in read_dropped(path)] == ["first", "é\u2028"]


def test_each_clip_counts_once() -> None:
    dropped = DroppedClips(10, 0.2)
    assert [drop.detail for drop in dropped.add([Dropped("a", "empty", "1"), Dropped("b", "too_long", "2")])] == [
        "1",
        "2",
    ]
    assert dropped.add([Dropped("a", "empty", "3")]) == []
    dropped.add([Dropped("c", "empty", "")])
    assert len(dropped) == 3
    dropped.check()
    dropped.add([Dropped("d", "empty", "")])
    with pytest.raises(UserError, match=r"^3 of 10 training clips are unusable"):
        dropped.check()
