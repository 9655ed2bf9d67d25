"""Exports can be loaded without this package."""

from __future__ import annotations

import json
import textwrap
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import JOINT, assemble, outputs
from tests.support.remote_code import fresh_python, offline, run, run_alone, run_here
from tests.support.tutorial import python
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.projectors import PROJECTORS

LOAD = """
import importlib.util, json, pathlib, sys
folders = sys.argv[1:]
import numpy as np
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor, AutoTokenizer
from transformers.dynamic_module_utils import check_imports

for absent in ("tiny_audio", "speechplug", "datasets", "jiwer"):
    assert importlib.util.find_spec(absent) is None, absent
generator = np.random.default_rng(0)
clips = [generator.normal(0, 0.1, size).astype(np.float32) for size in (16_000, 9_001)]


def outputs(folder, auto):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = auto.from_pretrained(folder, trust_remote_code=True)
    # transformers imports the config's file and the model's file from a local folder as two packages, so the two
    # classes are not the same object. Compare only their names.
    assert type(config).__name__ == model.config_class.__name__ == "TinyAudioConfig"
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    batch = processor(clips, sampling_rate=16_000, return_tensors="pt")
    ids = model.generate(**batch)
    transcripts = model.transcribe(**batch, tokenizer=tokenizer)
    assert len(processor.batch_decode(ids, skip_special_tokens=True)) == 2
    found = {"ids": ids.tolist(), "transcripts": [[t.text, t.ctc_text, t.truncated] for t in transcripts]}
    return found, model, processor


results = []
for folder in folders:
    for file in sorted(pathlib.Path(folder).glob("*.py")):
        check_imports(file)  # transformers checks every file that it loads from the hub, but not every local file
    found, model, processor = outputs(folder, AutoModel)
    results.append(found)
# The last model gives the same outputs with another auto class, and after it is saved and loaded again.
assert outputs(folder, AutoModelForSpeechSeq2Seq)[0] == found
again = folder + "-again"
model.save_pretrained(again)
processor.save_pretrained(again)
assert outputs(again, AutoModel)[0] == found
assert "tiny_audio" not in sys.modules
print(json.dumps(results))
"""

PLUGIN = {
    "__init__.py": "",
    "parts/__init__.py": "RMS = 0.5\n",
    "parts/layers.py": """
        from __future__ import annotations
        from torch import nn
        class Scale(nn.Linear):
            pass
        """,
    "parts/meaning.py": """
        from __future__ import annotations
        from typing import Literal, Self
        from pydantic import PositiveInt
        from tiny_audio.frames import Frames
        from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig, ProjectorContext
        from . import RMS, layers
        class MeaningConfig(ProjectorConfig):
            '''Every second frame.'''
            name: Literal["meaning"] = "meaning"
            stride: PositiveInt = 2
            def min_frames(self) -> int:
                return 1
            @classmethod
            def tiny(cls) -> Self:
                return cls()
        @PROJECTORS.register
        def build_meaning(config: MeaningConfig, context: ProjectorContext) -> Projector:
            return Meaning(context.in_dim, context.out_dim, config.stride)
        class Meaning(Projector):
            def __init__(self, in_dim, out_dim, stride):
                super().__init__()
                self.scale = layers.Scale(in_dim, out_dim)
                self.stride = stride
            def max_embeddings(self, num_frames):
                return (num_frames + self.stride - 1) // self.stride
            def forward(self, frames: Frames):
                return self.scale(frames.values[:, :: self.stride]) * RMS, self.max_embeddings(frames.lengths)
        """,
}

EXPORT_PLUGIN = """
import json, sys
from pathlib import Path
import speechplug.parts.meaning  # no part can be registered after the import of tiny_audio.recipe
import tiny_audio.recipe
from tests.support.models import assemble, outputs
from tiny_audio.export.formats.huggingface import export_model
model, tokenizer = assemble(projector="meaning")
export_model(model, tokenizer, Path(sys.argv[1]))
print(json.dumps(outputs(model, tokenizer)))
"""


def export_several(tmp_path: Path, most: int | None = None) -> dict[Path, Any]:
    """Export models of this package's parts, and one model with a part of another package. Return outputs by folder.

    If ``most`` is None, the models contain every part. Otherwise, only ``most`` models of this package's parts are
    exported.
    """
    expected: dict[Path, Any] = {}
    names = [ENCODERS.names(), DECODERS.names(), PROJECTORS.names()]
    kinds = [{"generation": JOINT}, {"lora": True}, {"ctc": False}]
    count = max(map(len, [*names, kinds])) if most is None else most
    rows = zip(*(islice(cycle(column), count) for column in [*names, kinds]), strict=True)
    for index, (encoder, decoder, projector, kind) in enumerate(rows):
        model, tokenizer = assemble(encoder, decoder, projector, **kind)
        # On the hub, names can contain dots and dashes.
        folder = tmp_path / f"{index}-{encoder}.{decoder}"
        export_model(model, tokenizer, folder)
        expected[folder] = outputs(model, tokenizer)
    for path, text in PLUGIN.items():
        file = tmp_path / "source" / "speechplug" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    folder = tmp_path / "third-party"
    done = python(tmp_path / "source", EXPORT_PLUGIN, str(folder))
    assert done.returncode == 0, done.stderr
    expected[folder] = json.loads(done.stdout.splitlines()[-1])
    assert (folder / "speechplug_parts_layers.py").is_file()
    return expected


def test_exports_load_without_this_package(tmp_path: Path) -> None:
    expected = export_several(tmp_path, 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert_same(run_here(LOAD, *expected, cwd=elsewhere, **offline(tmp_path)), expected)


def assert_same(results: list[Any], expected: dict[Path, Any]) -> None:
    assert results == list(expected.values())
    assert any(text for found in results for text, _, _ in found["transcripts"]), "some text is not empty"


@pytest.mark.slow
def test_exports_of_all_parts_load_without_this_package(tmp_path: Path) -> None:
    expected = export_several(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    results = run_alone(LOAD, *expected, cwd=elsewhere, **offline(tmp_path))
    assert_same(results, expected)


@pytest.mark.slow
def test_exports_load_in_a_new_environment(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    expected = export_several(tmp_path)
    fresh = fresh_python(tmp_path_factory)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    results = run(fresh, ["-I"], LOAD, *expected, cwd=elsewhere, **offline(tmp_path))
    assert_same(results, expected)
