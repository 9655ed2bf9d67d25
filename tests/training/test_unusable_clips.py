"""Clips that cannot be used: listed, counted, and too many stop the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import UNUSABLE, Document, changed, manifest_row, tiny_recipe, write_clips, write_odd_clips
from tests.support.training import (
    gather,
    make_trainer,
    parse,
)
from tiny_audio.config import UserError
from tiny_audio.data.dropped import DroppedLog, check_dropped, read_dropped
from tiny_audio.sources import Dropped
from tiny_audio.training.assembly import assemble
from tiny_audio.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Twelve good clips and one of each that cannot be used; some show only when they are decoded."""
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
    "manifest.jsonl:19": "text_missing",
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
    assert listed["clips/nan.wav"].detail == "nan.wav: holds NaN or infinite samples"
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["dropped_clips"] == len(REASONS)


def test_too_many_unusable_clips_stop_the_run(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        make_trainer(mixed_recipe(mixed, 0.25), tmp_path / "run").run()
    message = str(refusal.value)
    assert message.startswith("5 of 19 training clips are unusable (26.3%; data.max_dropped_share is 25.0%):\n  ")
    assert "\n  text_missing: 1, such as clips/manifest.jsonl:19: " in message
    listed = [drop.reason for drop in read_dropped(tmp_path / "run" / "dropped.jsonl")]
    assert len(listed) == 6
    assert "too_long" in listed  # and not counted


def test_what_the_index_shows_stops_before_the_first_step(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^1 of 19 training clips are unusable"):
        make_trainer(mixed_recipe(mixed, 0.04), tmp_path / "run").run()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert len(read_dropped(tmp_path / "run" / "dropped.jsonl")) == 2


def test_after_a_start_over_only_what_is_dropped_now_is_listed(mixed: Path, tmp_path: Path) -> None:
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
    dropped += [Dropped(f"d{number}", "too_long", "lasts 99 s") for number in range(100)]  # as the recipe wants it
    check_dropped(dropped, 6, 0.5)
    with pytest.raises(UserError) as refusal:
        check_dropped(dropped, 5, 0.5)
    assert str(refusal.value) == (
        "3 of 5 training clips are unusable (60.0%; data.max_dropped_share is 50.0%):\n"
        "  empty: 2, such as b: no samples\n"
        "  channels: 1, such as c: 99\n"
        "Mend the data, or raise data.max_dropped_share."
    )


def test_no_clip_at_all(tmp_path: Path) -> None:
    write_clips(tmp_path, 2)
    recipe = parse(changed(tiny_recipe(tmp_path), data__min_duration_s=5.0))
    with pytest.raises(UserError) as refusal:
        assemble(recipe, gather(recipe), None)
    assert str(refusal.value) == (
        "data.train has no usable clip; 2 dropped, the first: lasts 1.10 s, and data allows 5 to 10 s; check the data, "
        "and data.min_duration_s and data.max_duration_s"
    )
