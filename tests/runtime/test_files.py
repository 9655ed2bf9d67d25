"""Files and folders are replaced atomically."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tiny_audio.config import UserError
from tiny_audio.runtime.files import new_folder, write_atomically


def test_a_text_that_cannot_be_encoded_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_replaces_the_target_of_a_link_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for content in ("first", "second", "third"):
        with new_folder(tmp_path / "link") as aside:
            (aside / "file").write_text(content)
        assert (tmp_path / "target" / "file").read_text() == content
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "target"]
    assert (tmp_path / "link").is_symlink()


def test_a_mount_point_is_rejected_before_the_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = tmp_path / "volume"
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == volume)
    with pytest.raises(UserError, match=r"volume is a mount point, .* give a folder inside it"), new_folder(volume):
        pytest.fail("the folder was filled")
