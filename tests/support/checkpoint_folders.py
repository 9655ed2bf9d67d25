"""Checkpoint folders as users may have them: valid ones in all formats, and ones that are damaged or unsuitable.

transformers and peft write tiny checkpoints. Functions of this module then change or damage their files.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.chat_tokenizers import chat_tokenizer
from tests.support.encoder_checkpoints import original

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n"
LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}


@dataclass(frozen=True)
class Case:
    """A checkpoint folder, a recipe that uses it, and the expected result."""

    name: str
    kind: str
    """``encoder`` or ``decoder``."""
    part: str
    """Name of the part in the registry."""
    write: Callable[[Path], object]
    """A function that writes the folder."""
    rejected: tuple[str, ...] = ()
    """Words that the error message contains, in this order. Empty if the folder works."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the recipe, as arguments for ``changed``."""


# --- changes to folders


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def to_pickle(folder: Path) -> Path:
    """Replace the weights with a ``pytorch_model.bin``."""
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), path)
    (folder / "model.safetensors").unlink()
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


# --- encoders


def encoder(name: str, **fields: Any) -> Callable[[Path], None]:
    """Return a function that writes a complete encoder checkpoint in one file."""
    return lambda folder: original(name, **fields).save_pretrained(folder)


def after(write: Callable[[Path], object], change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a function that writes a folder and then changes it."""

    def both(folder: Path) -> None:
        write(folder)
        change(folder)

    return both


def preprocessor(**fields: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "preprocessor_config.json").write_text(json.dumps(fields))


def sharded(name: str) -> Callable[[Path], None]:
    return lambda folder: original(name).save_pretrained(folder, max_shard_size="20KB")


# --- decoders


def language_model(config: Any = None, tokenizer: str = "smollm2", **fields: Any) -> Callable[[Path], Any]:
    """Return a function that writes a causal language model, by default a Llama, and its tokenizer."""

    def write(folder: Path) -> Any:
        torch.manual_seed(0)
        tokens = chat_tokenizer(tokenizer, folder)
        chosen = config or transformers.LlamaConfig
        model = transformers.AutoModelForCausalLM.from_config(
            chosen(**{"vocab_size": len(tokens), **(LLAMA if config is None else {}), **fields})
        )
        model.save_pretrained(folder)
        return tokens

    return write


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
NEOX = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
OPT = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "max_position_embeddings": 512,
}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
T5 = {"d_model": 32, "num_layers": 1, "num_heads": 4, "d_kv": 8, "d_ff": 64}


def in_half(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()}))
    edit_json(folder / "config.json", dtype="bfloat16")


def adapter(folder: Path) -> None:
    """Write an adapter into the folder of its model, as peft's ``save_pretrained`` does."""
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():  # peft uses names that this version of transformers deprecates
        warnings.simplefilter("ignore", FutureWarning)
        peft.get_peft_model(model, config).save_pretrained(folder)


def only_adapter(folder: Path) -> None:
    adapter(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()


def pad_token(folder: Path) -> None:
    """Add an unused pad token without an embedding, as in fine-tuned Llamas."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)


def token_in_template(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|audio|>"], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}<|audio|>{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template)


def remove(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        found = list(folder.glob(pattern))
        assert found, pattern
        for path in found:
            path.unlink()

    return change


def in_8_bits(folder: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({k: v.to(torch.float8_e4m3fn) for k, v in tensors.items() if k.endswith("proj.weight")})

    edit_tensors(folder, edit)


def not_finite(key: str, value: float) -> Callable[[Path], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        next(tensor for name, tensor in tensors.items() if key in name).view(-1)[3] = value

    return lambda folder: edit_tensors(folder, edit)


def replace_file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def config_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def other_weights(name: str) -> Callable[[Path], None]:
    """Return a function that replaces the weights with a GGUF file, the format of llama.cpp."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(b"GGUF" + bytes(100))

    return change


def quantized(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", quantization_config=fields)


def model_type(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", model_type=name)


def whole() -> Iterator[Case]:
    """Yield the folders that work."""
    yield Case("hubert with a CTC head", "encoder", "hubert", encoder("hubert"))
    strides = {"conv_stride": [5, 2, 2, 2, 2, 2, 4]}
    yield Case("wav2vec2 with other strides", "encoder", "wav2vec2", encoder("wav2vec2", **strides))
    yield Case("wavlm in a pickle", "encoder", "wavlm", after(encoder("wavlm"), to_pickle))
    yield Case("w2v-bert", "encoder", "w2v-bert", encoder("w2v-bert"))
    yield Case("parakeet with its head", "encoder", "parakeet", encoder("parakeet"), (), {"data__min_duration_s": 0.5})
    short = {"data__max_duration_s": 1.5}
    yield Case("whisper of 75 positions", "encoder", "whisper", encoder("whisper", max_source_positions=75), (), short)
    yield Case("whisper in several files", "encoder", "whisper", sharded("whisper"))
    yield Case("granite speech with its language model", "encoder", "granite-speech", sharded("granite-speech"))
    yield Case("qwen3-asr with its language model", "encoder", "qwen3-asr", encoder("qwen3-asr"))
    settings = preprocessor(sampling_rate=16_000, do_normalize=False)
    group = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
    yield Case("wav2vec2 with a group norm", "encoder", "wav2vec2", after(encoder("wav2vec2", **group), settings))
    unscaled = {"encoder__normalize": False}
    yield Case("hubert without normalization", "encoder", "hubert", after(encoder("hubert"), settings), (), unscaled)
    yield Case("llama in half precision", "decoder", "llama", after(language_model(), in_half))
    pythia = language_model(transformers.GPTNeoXConfig, "pythia", **NEOX)
    yield Case("pythia, whose end token is also its unknown token", "decoder", "causal_lm", pythia)
    small = {"generation__max_new_tokens": 20, "data__max_duration_s": 1.5}
    gpt2 = language_model(transformers.GPT2Config, "pythia", **GPT2)
    yield Case("gpt2 with 96 positions", "decoder", "causal_lm", gpt2, (), small)
    yield Case("llama with a pad token beyond its rows", "decoder", "llama", after(language_model(), pad_token))
    opt = after(language_model(transformers.OPTConfig, "smollm2", **OPT), to_pickle)
    yield Case("opt in a pickle", "decoder", "causal_lm", opt)


def rejected() -> Iterator[Case]:
    """Yield the folders that are rejected."""
    llama, hubert, whisper = language_model(), encoder("hubert"), encoder("whisper")

    def decoder(name: str, change: Callable[[Path], object], *words: str, part: str = "llama") -> Case:
        return Case(name, "decoder", part, after(llama, change), words)

    yield decoder("an adapter beside the weights", adapter, "adapter_config.json", "merge_and_unload")
    yield decoder("an adapter alone", only_adapter, "adapter_config.json", "config.json", "merge_and_unload")
    yield decoder("bitsandbytes", quantized(quant_method="bitsandbytes", load_in_4bit=True), "bitsandbytes")
    yield decoder("gptq", quantized(quant_method="gptq", bits=4), "gptq")
    yield decoder("awq", quantized(quant_method="awq", bits=4), "awq")
    yield decoder("fp8", quantized(quant_method="fp8"), "fp8")
    yield decoder("8-bit weights that the config does not mention", in_8_bits, "model.safetensors", "8-bit")
    yield decoder("a pickle that is cut off", lambda folder: cut(to_pickle(folder)), "pytorch_model.bin", "cut off")
    yield decoder(
        "a Git LFS pointer instead of a pickle", lambda folder: to_pickle(folder).write_bytes(POINTER), "Git LFS"
    )
    yield decoder("a Git LFS pointer", replace_file("model.safetensors", POINTER), "model.safetensors", "git lfs pull")
    yield decoder("a weight file that is cut off", lambda folder: cut(folder / "model.safetensors"), "cut off", "bytes")
    yield decoder("an empty weight file", replace_file("model.safetensors", b""), "model.safetensors", "empty")
    page = b"<!DOCTYPE html><html>401 Unauthorized</html>"
    yield decoder("a web page as weights", replace_file("model.safetensors", page), "web page", "hf auth login")
    yield decoder("no weights", remove("model.safetensors"), "model.safetensors", "pytorch_model.bin")
    yield decoder("weights of another program", other_weights("llama.Q4_K.gguf"), "llama.Q4_K.gguf")
    lacking = after(sharded("whisper"), remove("*-00002-*"))
    yield Case("a missing shard", "encoder", "whisper", lacking, ("00002",))
    damaged = after(sharded("whisper"), replace_file("model.safetensors.index.json", b"{"))
    yield Case("a damaged index", "encoder", "whisper", damaged, ("model.safetensors.index.json",))
    yield decoder("NaN in a decoder", not_finite("q_proj", float("nan")), "q_proj", "download")
    infinite = after(hubert, not_finite("k_proj", float("inf")))
    yield Case("infinity in an encoder", "encoder", "hubert", infinite, ("k_proj", "download"))
    bert = language_model(transformers.BertConfig, **BERT)
    yield Case("a text encoder as decoder", "decoder", "causal_lm", bert, ("'bert'", "causal"))

    def t5(folder: Path) -> None:
        tokens = chat_tokenizer("smollm2", folder)
        config = transformers.T5Config(vocab_size=len(tokens), **T5)
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)

    yield Case("a sequence-to-sequence model as decoder", "decoder", "causal_lm", t5, ("'t5'",))
    yield Case("whisper as decoder", "decoder", "llama", whisper, ("'whisper'", "'llama'"))
    yield Case("a language model as encoder", "encoder", "whisper", llama, ("'llama'", "'whisper'"))
    yield decoder("a llama for another family", lambda folder: None, "'llama'", "'qwen3'", part="qwen3")
    yield decoder("a family that does not exist", model_type("llamma"), "'llamma'")
    yield decoder("no tokenizer", remove("tokenizer*"), "tokenizer")
    yield decoder("a damaged tokenizer", replace_file("tokenizer.json", b"{"), "tokenizer")
    yield decoder("a template with a token beyond the rows", token_in_template, "<|audio|>")
    python = replace_file("config.json", b"{'model_type': 'llama'}")
    yield decoder("a config that is not JSON", python, "config.json", "JSON")
    yield decoder("an empty config", replace_file("config.json", b""), "config.json", "JSON")
    yield decoder("a list as config", replace_file("config.json", b"[]"), "config.json", "object")
    yield decoder("a folder as config", config_folder, "config.json", "folder")
    yield decoder("no config", remove("config.json"), "config.json", "model_type")
    wide = replace_file("config.json", b'{"model_type": "llama", "hidden_size": "wide"}')
    yield decoder("a config with a wrong value", wide, "hidden_size")
    few = language_model(transformers.GPT2Config, "pythia", **GPT2 | {"n_positions": 35})
    small = {"generation__max_new_tokens": 20, "data__max_duration_s": 1.5}
    yield Case("too few positions", "decoder", "causal_lm", few, ("35 positions", "max_new_tokens"), small)
    positions = encoder("whisper", max_source_positions=75)
    yield Case("whisper for at most 1.5 s", "encoder", "whisper", positions, ("data.max_duration_s", "10.0", "1.5 s"))
    slow = after(hubert, preprocessor(sampling_rate=8_000, do_normalize=True))
    yield Case("an encoder for telephone speech", "encoder", "hubert", slow, ("sampling_rate", "8000", "16000"))
    unscaled = after(hubert, preprocessor(sampling_rate=16_000, do_normalize=False))
    words = ("do_normalize", "encoder.normalize: false")
    yield Case("an encoder for audio as it is", "encoder", "hubert", unscaled, words)
    bands = after(whisper, preprocessor(sampling_rate=16_000, feature_size=128, hop_length=160, n_fft=400))
    yield Case("another number of mel bands", "encoder", "whisper", bands, ("feature_size", "128", "40"))


def write_once(case: Case, folder: Path) -> Path:
    """Write the case's folder below ``folder``, unless it exists, and return its path."""
    path = folder / case.name.replace(" ", "_")
    if not path.exists():
        path.mkdir(parents=True)
        try:
            case.write(path)
        except BaseException:
            shutil.rmtree(path)
            raise
    return path
