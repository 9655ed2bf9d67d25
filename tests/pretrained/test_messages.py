"""The wording of errors about checkpoints and parts. Other tests check the class of each
error, and the fields and values that it names.

To regenerate ``messages.txt``, run ``REGENERATE=1 pytest tests/pretrained/test_messages.py`` and read the difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.support.golden import check_golden, raised
from tests.support.part_checkpoints import change, decoder, encoder, hubert, smollm3, whisper
from tiny_audio.decoders import DECODERS, DecoderContext, build_tokenizer
from tiny_audio.encoders import ENCODERS, EncoderContext
from tiny_audio.pretrained.packing import attend
from tiny_audio.projectors import PROJECTORS
from tiny_audio.registry import Registry

GOLDEN = Path(__file__).with_name("messages.txt")
LAYER = "hubert.encoder.layers.0.attention.q_proj.weight"
LORA: dict[str, Any] = {"rank": 2, "alpha": 2.0}


def checkpoints(folder: Path) -> Iterator[str]:
    def after(title: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> str:
        hubert(folder / "hubert")
        change(folder / "hubert", edit)
        return raised(title, encoder, "hubert", folder / "hubert")

    yield after("a missing tensor", lambda tensors: tensors.pop(LAYER))
    extra = {f"hubert.extra.{index}": torch.zeros(1) for index in range(7)}
    yield after("unexpected tensors", lambda tensors: tensors.update(extra))
    yield after("a tensor of another shape", lambda tensors: tensors.update({LAYER: torch.zeros(3, 5)}))
    hubert(folder / "hubert")
    yield raised("a layer that does not exist", encoder, "hubert", folder / "hubert", layer=4)
    whisper(folder / "whisper")
    yield raised("another family", encoder, "hubert", folder / "whisper")
    yield raised("no folder", encoder, "hubert", "./no/such/folder")
    (folder / "empty").mkdir()
    yield raised("no checkpoint in a folder", encoder, "hubert", folder / "empty")
    smollm3(folder / "decoder")
    lora = LORA | {"targets": ["qproj"]}
    yield raised("an unknown target of adapters", decoder, folder / "decoder", name="causal_lm", lora=lora)


FIELDS: tuple[tuple[str, Registry[Any, Any], dict[str, Any]], ...] = (
    ("adapters on trained weights", ENCODERS, {"name": "hubert", "freeze": False, "lora": LORA | {"targets": ["a"]}}),
    ("overrides of a checkpoint", ENCODERS, {"name": "hubert", "overrides": {"hidden_size": 32}}),
    ("a trained front end in a frozen encoder", ENCODERS, {"name": "hubert", "train_front_end": True}),
    ("an attention that is not supported", ENCODERS, {"name": "wavlm", "attention": "flash_attention_2"}),
    ("dropout with varlen", ENCODERS, {"name": "hubert", "attention": "varlen", "dropout": 0.1}),
    ("adapters on unknown layers", ENCODERS, {"name": "hubert", "lora": LORA | {"targets": ["query"]}}),
    ("a tokenizer for a checkpoint", DECODERS, {"name": "smollm3", "tokenizer": {}}),
    ("an overridden vocabulary size", DECODERS, {"name": "smollm3", "init": "random", "overrides": {"vocab_size": 9}}),
    ("no checkpoint", DECODERS, {"name": "causal_lm"}),
    ("no architecture", DECODERS, {"name": "causal_lm", "init": "random", "tokenizer": {}}),
    ("two architectures", DECODERS, {"name": "causal_lm", "pretrained": "a/b", "model_type": "llama"}),
    ("heads that do not divide the width", PROJECTORS, {"name": "qformer", "dim": 100}),
    ("heads with an odd number of channels", PROJECTORS, {"name": "transformer", "dim": 24, "num_heads": 8}),
    ("a window without effect", PROJECTORS, {"name": "qformer", "mode": "global", "window": 15}),
    ("queries that do not divide the window", PROJECTORS, {"name": "qformer", "num_queries": 4}),
    ("no cross-attention", PROJECTORS, {"name": "qformer", "num_layers": 2, "cross_attention_every": 3}),
    ("too few kernels", PROJECTORS, {"name": "conv", "strides": [2, 2], "kernel_sizes": [3]}),
    ("a kernel smaller than its stride", PROJECTORS, {"name": "moe", "strides": [2, 4], "kernel_sizes": [3, 3]}),
)


def building() -> Iterator[str]:
    def random_encoder(name: str, **overrides: Any) -> None:
        ENCODERS.build(ENCODERS.parse({"name": name, "init": "random", "overrides": overrides}), EncoderContext())

    def causal_lm(model_type: str, *, lora: Any = None, attention: str = "auto", **overrides: Any) -> None:
        tiny: Any = DECODERS.entry("causal_lm").config.tiny().model_dump(mode="json")
        fields = {"model_type": model_type, "overrides": overrides, "lora": lora, "attention": attention}
        config = DECODERS.parse({**tiny, **fields, "freeze": lora is not None})
        DECODERS.build(config, DecoderContext(build_tokenizer(config, ["one two three four"])))

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    yield raised("an unknown field of the architecture", random_encoder, "hubert", hiden_size=32)
    yield raised("an adapter on top of the layers", random_encoder, "wav2vec2", add_adapter=True)
    yield raised("an unknown architecture", causal_lm, "granit")
    yield raised("an encoder and a decoder", causal_lm, "bart")
    yield raised("no embeddings as input", causal_lm, "cpmant")
    yield raised("no causal model", causal_lm, "bert", **sizes)
    yield raised("token ids with other effects than embeddings", causal_lm, "roberta", **sizes)
    yield raised("recurrent states", causal_lm, "rwkv", hidden_size=32, num_hidden_layers=2)
    bloom = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
    yield raised("an attention that is not supported", causal_lm, "bloom", attention="varlen", **bloom)
    yield raised("an adapter on the head", causal_lm, "granite", lora=LORA | {"targets": ["lm_head"]}, **sizes)
    heads = torch.zeros(1, 4, 3, 8)
    yield raised("capped attention scores", attend, torch.nn.Module(), heads, heads, heads, None, softcap=30.0)


def test_messages(tmp_path: Path) -> None:
    fields = (raised(title, registry.parse, values) for title, registry, values in FIELDS)
    paragraphs = [*checkpoints(tmp_path), *fields, *building()]
    text = "\n".join(paragraphs).replace(str(tmp_path), "FOLDER")
    # Shorten lists of allowed names, because some come from transformers and depend on its version.
    check_golden(GOLDEN, re.sub(r"Allowed: (\w+, \w+), .*", r"Allowed: \1, …", text))
