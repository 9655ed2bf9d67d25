"""The wording of errors about exports.

Other tests check the class of each error, and the file and the values that its message names.

To regenerate ``messages.txt``, run ``REGENERATE=1 pytest tests/export/test_messages.py`` and read the difference.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from tests.support.golden import check_golden, raised
from tests.support.models import assemble, change_config
from tiny_audio import __version__
from tiny_audio.export._bundle import bundle
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.export.load import load_model
from tiny_audio.model.processor import TinyAudioProcessor

GOLDEN = Path(__file__).with_name("messages.txt")


def loading(exported: Path, folder: Path) -> Iterator[str]:
    """Damage copies of the export in various ways, load them, and yield the error messages."""

    def after(title: str, change: Callable[[Path], object], load: Callable[[Path], object] = load_model) -> str:
        shutil.rmtree(folder / "copy", ignore_errors=True)
        shutil.copytree(exported, folder / "copy")
        change(folder / "copy")
        return raised(title, load, folder / "copy")

    def rename_weights(copy: Path) -> None:
        weights = load_file(copy / "model.safetensors")
        weights["projector.left.weight"] = weights.pop("projector.down.weight")
        weights["ctc_head.bias"] = torch.zeros(99)
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})

    def change_generation(copy: Path, **fields: Any) -> None:
        path = copy / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    yield raised("no folder", load_model, folder / "nowhere")
    yield after("no config", lambda copy: (copy / "config.json").unlink())
    yield after("a model of another kind", lambda copy: (copy / "config.json").write_text('{"model_type": "llama"}'))
    yield after("a config that is not JSON", lambda copy: (copy / "config.json").write_text("{"))
    yield after("no section", lambda copy: change_config(copy, projector=None))
    yield after("an unknown part", lambda copy: change_config(copy, projector={"name": "swigloo"}))
    other = {"projector": {"name": "swiglu", "wings": 2}}
    yield after("an unknown field", lambda copy: change_config(copy, **other))
    yield after("another version", lambda copy: change_config(copy, **other, tiny_audio_version="9.9"))
    yield after("empty weights", lambda copy: (copy / "model.safetensors").write_bytes(b""))
    yield after("other keys", rename_weights)
    yield after("other keys, by AutoModel", rename_weights, AutoModel.from_pretrained)
    yield after("no vocabulary", lambda copy: (copy / "tokenizer.json").unlink())
    yield after("no tokenizer", lambda copy: (copy / "tokenizer_config.json").unlink())
    yield after("sampling", lambda copy: change_generation(copy, do_sample=True))
    yield after("a wrong setting", lambda copy: change_generation(copy, num_beams=0))
    yield after("settings that are not JSON", lambda copy: (copy / "generation_config.json").write_text("["))


def saving(exported: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    model, tokenizer = assemble()
    (exported / "notes.md").touch()
    yield raised("another file in an export", export_model, model, tokenizer, exported)
    yield raised("a folder of something else", export_model, model, tokenizer, folder)
    yield raised("a part in a notebook", bundle, ["__main__"])
    yield raised("a part without source", bundle, ["math"])
    (folder / "messageplug").mkdir()
    part = folder / "messageplug" / "part.py"
    monkeypatch.syspath_prepend(str(folder))
    for name in ("__init__", "other"):
        (folder / "messageplug" / f"{name}.py").touch()
    for title, line in (
        ("an import of a package", "import messageplug.other"),
        ("an import in the middle of a line", "x = 1; from messageplug.other import y"),
    ):
        part.write_text(line + "\n")
        yield raised(title, bundle, ["messageplug.part"])


def processing() -> Iterator[str]:
    processor = TinyAudioProcessor(assemble()[1])
    yield raised("another rate", processor, np.ones(9), sampling_rate=44_100)
    yield raised("another kind of tensor", processor, np.ones(9), return_tensors="np")
    yield raised("no clip", processor, [])
    yield raised("a path", processor, ["a.wav"])
    yield raised("stereo", processor, np.ones((2, 9)))
    yield raised("integers", processor, np.ones(9, dtype=np.int16))
    yield raised("an empty clip", processor, np.ones(0))
    yield raised("NaN", processor, np.array([np.nan]))


def test_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model")
    paragraphs = [
        *loading(tmp_path / "model", tmp_path),
        *saving(tmp_path / "model", tmp_path, monkeypatch),
        *processing(),
    ]
    check_golden(GOLDEN, "\n".join(paragraphs).replace(str(tmp_path), "FOLDER").replace(__version__, "VERSION"))
