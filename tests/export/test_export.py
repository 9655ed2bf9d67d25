"""Exported models: equal to what was exported, also where this package is not installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import logging as transformers_logging

from tiny_audio.config import UserError
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.decoders import DECODERS, DecoderContext, build_tokenizer
from tiny_audio.encoders import ENCODERS, EncoderContext
from tiny_audio.export import export_model, load_model
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.processor import TinyAudioProcessor
from tiny_audio.model.prompt import PromptConfig, build_prompt
from tiny_audio.projectors import PROJECTORS

TRANSCRIPTS = ["one two three", "four five six"]
GREEDY = GenerationConfig(max_new_tokens=8)
JOINT = GenerationConfig(max_new_tokens=8, num_beams=3, ctc_weight=0.3)

INSTALLED = ["torch", "torchaudio", "transformers", "peft", "pydantic", "soundfile"]
"""What an exported model may ask for."""


def with_lora(config: Any, part: nn.Module) -> Any:
    """The same part, frozen, with adapters on the linear layers that it has most of."""
    names = Counter(name.rsplit(".", 1)[-1] for name, module in part.named_modules() if isinstance(module, nn.Linear))
    lora = {"rank": 2, "alpha": 4.0, "targets": [names.most_common(1)[0][0]]}
    return type(config).model_validate({**config.model_dump(), "freeze": True, "lora": lora}, strict=False)


def assemble(
    encoder: str = "whisper",
    decoder: str = "smollm3",
    projector: str = "swiglu",
    *,
    lora: bool = False,
    generation: GenerationConfig = GREEDY,
    ctc: bool = True,
    hidden_size: int | None = None,
) -> tuple[TinyAudioModel, Any]:
    """A tiny random model that says something, and its tokenizer."""
    torch.manual_seed(0)
    encoder_config, decoder_config = ENCODERS.entry(encoder).config.tiny(), DECODERS.entry(decoder).config.tiny()
    if hidden_size is not None:
        wider = {**encoder_config.overrides, "hidden_size": hidden_size}  # type: ignore[attr-defined]
        encoder_config = encoder_config.model_copy(update={"overrides": wider})
    tokenizer = build_tokenizer(decoder_config, TRANSCRIPTS)
    if lora:
        encoder_config = with_lora(encoder_config, ENCODERS.build(encoder_config, EncoderContext()))
        decoder_config = with_lora(decoder_config, DECODERS.build(decoder_config, DecoderContext(tokenizer)))
    model = TinyAudioModel.assemble(
        encoder_config,
        PROJECTORS.entry(projector).config.tiny(),
        decoder_config,
        tokenizer=tokenizer,
        prompt=build_prompt(PromptConfig(), tokenizer),
        ctc_vocabulary=CtcVocabulary.of(TRANSCRIPTS) if ctc else None,
        generation=generation,
    )
    # As initialized, a tiny model repeats one special token, and adapters do nothing.
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4 if "lora" not in name else 0.1)
    return model.eval(), tokenizer


def clips() -> list[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    return [generator.normal(0, 0.1, size).astype(np.float32) for size in (16_000, 9_001)]


def heard(model: TinyAudioModel, tokenizer: Any) -> dict[str, Any]:
    """All that a model puts out on two clips, as JSON."""
    batch = TinyAudioProcessor(tokenizer)(clips())
    return {
        "ids": model.generate(**batch).tolist(),
        "transcripts": [[t.text, t.ctc_text, t.truncated] for t in model.transcribe(**batch, tokenizer=tokenizer)],
    }


def losses(model: TinyAudioModel, tokenizer: Any) -> torch.Tensor:
    batch = TinyAudioProcessor(tokenizer)(clips())
    targets = [torch.tensor([*tokenizer.encode(text, add_special_tokens=False), 2]) for text in TRANSCRIPTS]
    labels = [CtcVocabulary.of(TRANSCRIPTS).encode(text) or [] for text in TRANSCRIPTS]
    with torch.no_grad():
        scores = model(**batch, targets=targets, ctc_targets=labels)
    return torch.stack([scores.decoder_loss, scores.ctc_loss])


def turns() -> Iterator[Any]:
    """Every part with and without adapters, each time beside another: parts are written and read by themselves."""
    encoders, decoders = ENCODERS.names(), DECODERS.names()
    for lora in (False, True):
        for turn in range(max(len(encoders), len(decoders))):
            encoder, decoder = encoders[turn % len(encoders)], decoders[(turn + lora) % len(decoders)]
            yield pytest.param(encoder, decoder, lora, id=f"{encoder}-{decoder}-{'lora' if lora else 'plain'}")


@pytest.mark.parametrize(("encoder", "decoder", "lora"), list(turns()))
def test_round_trip(tmp_path: Path, encoder: str, decoder: str, lora: bool) -> None:
    model, tokenizer = assemble(encoder, decoder, lora=lora, generation=JOINT)
    export_model(model, tokenizer, tmp_path / "model")
    loaded, loaded_tokenizer = load_model(tmp_path / "model")
    for kind in ("state_dict", "named_buffers", "named_parameters"):
        own, its = dict(getattr(model, kind)()), dict(getattr(loaded, kind)())
        assert own.keys() == its.keys()
        for name, tensor in own.items():
            assert torch.equal(tensor, its[name]), name
    assert any("lora_A.default" in name and "base_layer" not in name for name in own) == lora
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert heard(loaded, loaded_tokenizer) == heard(model, tokenizer)
    assert torch.equal(losses(loaded, loaded_tokenizer), losses(model, tokenizer))


@pytest.mark.parametrize("projector", PROJECTORS.names())
def test_round_trip_of_projectors(tmp_path: Path, projector: str) -> None:
    model, tokenizer = assemble(projector=projector)
    export_model(model, tokenizer, tmp_path / "model")
    loaded, loaded_tokenizer = load_model(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    # Where a tensor lies in memory decides the last bit of a narrow product, such as that of a router's scores.
    torch.testing.assert_close(losses(loaded, loaded_tokenizer), losses(model, tokenizer), rtol=1e-6, atol=0)


def test_folder_is_whole_and_names_no_base_model(tmp_path: Path) -> None:
    model, tokenizer = assemble(lora=True)
    before = model.config.to_dict()
    export_model(model, tokenizer, tmp_path / "model")
    assert model.config.to_dict() == before
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} < files
    assert {"processor_config.json", "modeling_tiny_audio.py", "pipeline_tiny_audio.py"} < files
    assert "adapter_config.json" not in files
    assert {Path(name).suffix for name in files} <= {".json", ".safetensors", ".py", ".jinja"}  # no pickles
    assert all((tmp_path / "model" / name).is_file() for name in files)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "base_model_name_or_path" not in json.dumps(config)
    assert config["generation"]["num_beams"] == 1
    assert config["auto_map"]["AutoModel"] == "modeling_tiny_audio.TinyAudioModel"


def test_attention_of_another_machine_is_not_exported(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    model.config.encoder = {**model.config.encoder, "attention": "flash_attention_2"}
    export_model(model, tokenizer, tmp_path / "model")
    load_model(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["encoder"]["attention"] == "auto"


def test_mixed_types_are_kept_in_the_file_and_load_as_one(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    model.decoder.to(torch.bfloat16)
    export_model(model, tokenizer, tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in saved.values()} == {"torch.float32", "torch.bfloat16"}
    loaded, _ = load_model(tmp_path / "model")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert heard(loaded, tokenizer) == heard(model.float(), tokenizer)
    half = TinyAudioModel.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert heard(half, tokenizer)["ids"]


def test_types_may_come_back_as_they_were(tmp_path: Path) -> None:
    """As a GPU trains in bf16: what is frozen in half precision, what trains in full."""
    model, tokenizer = assemble(lora=True)
    for tensor in model.parameters():
        if not tensor.requires_grad:
            tensor.data = tensor.data.to(torch.bfloat16)
    export_model(model, tokenizer, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model", types_as_saved=True)
    types = {name: tensor.dtype for name, tensor in model.named_parameters()}
    assert len(set(types.values())) == 2
    assert {name: tensor.dtype for name, tensor in loaded.named_parameters()} == types
    with torch.autocast("cpu", torch.bfloat16):
        assert heard(loaded, tokenizer) == heard(model, tokenizer)
    export_model(loaded, tokenizer, tmp_path / "again")
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert {name: tensor.dtype for name, tensor in again.items()} == {n: tensor.dtype for n, tensor in first.items()}


def test_quiet_and_settings_come_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = assemble()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_info()
    try:
        capfd.readouterr()
        export_model(model, tokenizer, tmp_path / "model")
        load_model(tmp_path / "model")
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
    finally:
        transformers_logging.set_verbosity(verbosity)
    assert transformers_logging.set_tqdm_hook(None) is None
    assert capfd.readouterr() == ("", "")


# Where it may be written


def test_replaces_an_older_export(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model")
    (tmp_path / "model" / "encoders_gone.py").touch()
    (tmp_path / ".model.writing").mkdir()  # what a killed export left
    export_model(model, tokenizer, tmp_path / "model")
    assert not (tmp_path / "model" / "encoders_gone.py").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_leads_to_where_the_export_goes(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "disk")
    for _ in range(2):
        export_model(*assemble(), link)
        assert link.is_symlink()
        assert (tmp_path / "disk" / "config.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "model"}


def test_refuses_to_replace_anything_else(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds something else than an exported model, which would be lost"):
        export_model(model, tokenizer, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("name", [".git", "notes.md", "onnx"])
def test_what_lies_beside_an_export_is_not_lost(tmp_path: Path, name: str) -> None:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model")
    (tmp_path / "model" / name).mkdir()
    with pytest.raises(UserError, match=rf"holds '{name}' beside an exported model, which no export writes"):
        export_model(model, tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / name).exists()


def test_a_failed_export_leaves_the_old_one(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model")

    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export_model(model, Broken(), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load_model(tmp_path / "model")


# Folders that cannot be loaded


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder; give a run's folder, or that of an exported model"):
        load_model(tmp_path / "nowhere")


def test_no_config(exported: Path) -> None:
    load_model(exported.parent)  # as a run's folder has its model in it
    (exported / "config.json").unlink()
    for folder in (exported, exported.parent):
        with pytest.raises(UserError, match=r"there is no config.json; give a run's folder, or that of an exported "):
            load_model(folder)
    (exported.parent / "state.json").touch()
    with pytest.raises(UserError, match="this run has no model yet; finish it with the command that began it"):
        load_model(exported.parent)


@pytest.mark.parametrize("text", ['{"model_type": "llama"}', "[]"])
def test_a_folder_of_another_kind(exported: Path, text: str) -> None:
    (exported / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"a model folder of another kind: model_type is ('llama'|None) .*'tiny_audio'"):
        load_model(exported)


def test_broken_config(exported: Path) -> None:
    (exported / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config.json: not valid JSON: .*; copy or export the model again"):
        load_model(exported)


@pytest.mark.parametrize("keep", [0, 100, 10_000])
def test_truncated_weights(exported: Path, keep: int) -> None:
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(UserError, match="the weights cannot be read, the folder is damaged or incomplete: "):
        load_model(exported)


def test_no_weights(exported: Path) -> None:
    (exported / "model.safetensors").unlink()
    with pytest.raises(UserError, match="the weights cannot be read, the folder is damaged or incomplete: "):
        load_model(exported)


def test_every_key_is_accounted_for(exported: Path) -> None:
    weights = load_file(exported / "model.safetensors")
    weights["projector.left.weight"] = weights.pop("projector.down.weight")
    weights["ctc_head.bias"] = torch.zeros(99)
    save_file(weights, exported / "model.safetensors", metadata={"format": "pt"})
    expected = (
        r"missing: projector\.down\.weight \(1\); unexpected: projector\.left\.weight \(1\); "
        r"mismatched: ctc_head\.bias \(1\); copy or export it again"
    )
    with pytest.raises(UserError, match=expected):
        load_model(exported)


def test_unknown_part(exported: Path) -> None:
    change_config(exported, projector={"name": "swigloo"})
    with pytest.raises(UserError, match=r"unknown projector 'swigloo'; did you mean 'swiglu'\?.*install the package"):
        load_model(exported)


def test_part_of_another_version(exported: Path) -> None:
    change_config(exported, projector={"name": "swiglu", "wings": 2}, tiny_audio_version="9.9")
    with pytest.raises(UserError, match=r"does not fit the parts of tiny-audio .*wings.*by tiny-audio 9\.9: install"):
        load_model(exported)


def test_a_config_that_somebody_changed(exported: Path) -> None:
    change_config(exported, projector={"name": "swiglu", "wings": 2})
    with pytest.raises(UserError, match=r"wings: .*; it was changed since it was exported: copy or export it again"):
        load_model(exported)
    change_config(exported, projector=None)
    with pytest.raises(UserError, match=r"config\.json has no section 'projector'; copy or export it again"):
        load_model(exported)


def test_missing_or_broken_tokenizer(exported: Path) -> None:
    (exported / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"the tokenizer cannot be read: .*; copy or export it again"):
        load_model(exported)
    (exported / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"the tokenizer is missing, there is no tokenizer\.json; copy"):
        load_model(exported)
    (exported / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"the tokenizer is missing, there is no tokenizer_config\.json"):
        load_model(exported)


# Where this package is not installed

LOAD = """
import importlib.util, json, pathlib, sys
site, *folders = sys.argv[1:]
if site:
    sys.path.append(site)
import numpy as np
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor, AutoTokenizer
from transformers.dynamic_module_utils import check_imports

for absent in ("tiny_audio", "speechplug", "datasets", "jiwer"):
    assert importlib.util.find_spec(absent) is None, absent
generator = np.random.default_rng(0)
clips = [generator.normal(0, 0.1, size).astype(np.float32) for size in (16_000, 9_001)]


def heard(folder, auto):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = auto.from_pretrained(folder, trust_remote_code=True)
    assert type(config) is model.config_class, (type(config), model.config_class)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    batch = processor(clips, sampling_rate=16_000, return_tensors="pt")
    ids = model.generate(**batch)
    transcripts = model.transcribe(**batch, tokenizer=tokenizer)
    assert len(processor.batch_decode(ids, skip_special_tokens=True)) == 2
    said = {"ids": ids.tolist(), "transcripts": [[t.text, t.ctc_text, t.truncated] for t in transcripts]}
    return said, model, processor


results = []
for folder in folders:
    for file in sorted(pathlib.Path(folder).glob("*.py")):
        check_imports(file)  # on the hub, transformers does so for every file
    said, model, processor = heard(folder, AutoModel)
    results.append(said)
# Another class, and what a user saves again.
assert heard(folder, AutoModelForSpeechSeq2Seq)[0] == said
again = folder + "-again"
model.save_pretrained(again)
processor.save_pretrained(again)
assert heard(again, AutoModel)[0] == said
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
import speechplug.parts.meaning  # before tiny_audio.recipe
import tiny_audio.recipe
from tests.export.test_export import assemble, heard
from tiny_audio.export import export_model
model, tokenizer = assemble(projector="meaning")
export_model(model, tokenizer, Path(sys.argv[1]))
print(json.dumps(heard(model, tokenizer)))
"""


def run(
    python: Path | str, flags: Sequence[str], code: str, *arguments: str | Path, cwd: Path, **environment: str
) -> Any:
    """Run code in a process of its own; its last line is JSON."""
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [str(python), *flags, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def only(requirements: Sequence[str], site: Path) -> Path:
    """A folder like site-packages with these packages, what they need, and nothing else of this environment."""
    site.mkdir()
    waiting, seen = list(requirements), set()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            link = site / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(file.parts[0]))).resolve())
        needs = [Requirement(text) for text in distribution.requires or []]
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return site


def export_several(tmp_path: Path) -> dict[Path, Any]:
    """A model of every part, and one with a part of another package: what each must say."""
    expected: dict[Path, Any] = {}
    names = [ENCODERS.names(), DECODERS.names(), PROJECTORS.names()]
    kinds = [{"generation": JOINT}, {"lora": True}, {"ctc": False}]
    number = max(map(len, [*names, kinds]))
    rows = zip(*(islice(cycle(column), number) for column in [*names, kinds]), strict=True)
    for index, (encoder, decoder, projector, kind) in enumerate(rows):
        model, tokenizer = assemble(encoder, decoder, projector, **kind)
        # On the hub, names have dots and dashes, too.
        folder = tmp_path / f"{index}-{encoder}.{decoder}"
        export_model(model, tokenizer, folder)
        expected[folder] = heard(model, tokenizer)
    for path, text in PLUGIN.items():
        file = tmp_path / "source" / "speechplug" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    paths = os.pathsep.join([str(tmp_path / "source"), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    folder = tmp_path / "third-party"
    expected[folder] = run(sys.executable, [], EXPORT_PLUGIN, folder, cwd=tmp_path, PYTHONPATH=paths)
    assert (folder / "speechplug_parts_layers.py").is_file()
    return expected


def offline(tmp_path: Path) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}


def test_loads_without_this_package(tmp_path: Path) -> None:
    expected = export_several(tmp_path)
    site = only(INSTALLED, tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    results = run(sys.executable, ["-I", "-S"], LOAD, site, *expected, cwd=elsewhere, **offline(tmp_path))
    assert results == list(expected.values())
    assert any(text for said in results for text, _, _ in said["transcripts"]), (
        "nothing was said: equality shows little"
    )


@pytest.mark.slow
def test_loads_in_a_fresh_environment(tmp_path: Path) -> None:
    expected = export_several(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pins = tmp_path / "constraints.txt"
    pins.write_text("".join(f"{name}=={importlib.metadata.version(name)}\n" for name in INSTALLED))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", pins, *INSTALLED], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    results = run(python, ["-I"], LOAD, "", *expected, cwd=elsewhere, **offline(tmp_path))
    assert results == list(expected.values())
