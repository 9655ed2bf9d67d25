"""A CTC head from the encoder's checkpoint: its vocabulary and its logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from tests.support.encoder_checkpoints import SAMPLE_RATE, bare, original, speech
from tests.support.equality import assert_close
from tiny_audio import ctc
from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS, build_tokenizer
from tiny_audio.encoders import ENCODERS, EncoderConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.prompt import PromptConfig, build_prompt
from tiny_audio.projectors import PROJECTORS
from tiny_audio.training.initialize import PretrainedHead

LETTERS = "ETAOINHSRDLUMWCFGYPBVK'XJQZ"
VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4} | {
    letter: index for index, letter in enumerate(LETTERS, 5)
}
"""Labels and label ids of the released English checkpoints."""
FAMILIES = [entry.name for entry in ENCODERS.entries() if entry.config.ctc_head == "lm_head"]


def checkpoint(folder: Path, name: str, vocabulary: dict[str, int] = VOCABULARY) -> Any:
    """Write a checkpoint that has a CTC head, and the same tokenizer files as the released checkpoints."""
    model = original(name, vocab_size=max(vocabulary.values()) + 1)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {"do_lower_case": False, "return_special_tokens_mask": False, "do_normalize": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | settings))
    return model


def encoder(folder: Path, name: str) -> EncoderConfig:
    return ENCODERS.parse({"name": name, "pretrained": str(folder)})


def sharded(folder: Path, model: Any) -> None:
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def pickled(folder: Path, model: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def pickled_in_the_old_format(folder: Path, model: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def pickled_in_shards(folder: Path, model: Any) -> None:
    (folder / "model.safetensors").unlink()
    tensors = model.state_dict()
    head = {key: tensor for key, tensor in tensors.items() if key == "lm_head.bias"}
    files = {"pytorch_model-00001-of-00002.bin": tensors.keys() - head.keys(), "pytorch_model-00002-of-00002.bin": head}
    for file, keys in files.items():
        torch.save({key: tensors[key] for key in keys}, folder / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in files.items() for key in keys}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", FAMILIES)
def test_characters_are_lower_case(tmp_path: Path, name: str) -> None:
    model = checkpoint(tmp_path, name)
    head = PretrainedHead.read(encoder(tmp_path, name))
    assert "".join(head.vocabulary.characters) == " 'abcdefghijklmnopqrstuvwxyz"
    rows = [0, *(VOCABULARY[character.upper().replace(" ", "|")] for character in head.vocabulary.characters)]
    assert torch.equal(head.weight, model.lm_head.weight[rows])
    assert torch.equal(head.bias, model.lm_head.bias[rows])


@pytest.mark.parametrize("store", [sharded, pickled, pickled_in_the_old_format, pickled_in_shards])
def test_the_head_is_read_from_every_weight_format(tmp_path: Path, store: Callable[[Path, Any], None]) -> None:
    model = checkpoint(tmp_path, "hubert")
    wanted = PretrainedHead.read(encoder(tmp_path, "hubert"))
    store(tmp_path, model)
    found = PretrainedHead.read(encoder(tmp_path, "hubert"))
    assert found.vocabulary == wanted.vocabulary
    assert torch.equal(found.weight, wanted.weight)
    assert torch.equal(found.bias, wanted.bias)


def assembled(folder: Path, name: str) -> tuple[TinyAudioModel, PretrainedHead]:
    """Return a model with the checkpoint's encoder and head."""
    head = PretrainedHead.read(encoder(folder, name))
    decoder = DECODERS.entry("smollm3").config.tiny()
    tokenizer = build_tokenizer(decoder, ["one two three"])
    model = TinyAudioModel.assemble(
        encoder(folder, name),
        PROJECTORS.entry("swiglu").config.tiny(),
        decoder,
        tokenizer=tokenizer,
        prompt=build_prompt(PromptConfig(), tokenizer),
        ctc_vocabulary=head.vocabulary,
    )
    assert model.ctc_head is not None
    head.load_into(model.ctc_head)
    return model.eval(), head


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    whole = checkpoint(tmp_path, name)
    model, head = assembled(tmp_path, name)
    clips = [torch.from_numpy(speech(seconds, seed)) for seed, seconds in enumerate((1.0, 0.31, 0.7301))]
    rows = [0, *(VOCABULARY[character.upper().replace(" ", "|")] for character in head.vocabulary.characters)]
    with torch.no_grad():
        frames = model.encode(pad_sequence(clips, batch_first=True), torch.tensor([len(clip) for clip in clips]))
        assert frames.ctc_logits is not None
        for row, clip in enumerate(clips):
            if name == "w2v-bert":
                features = model.encoder.features(clip[None], torch.tensor([len(clip)])).values
                inputs = features.unflatten(1, (-1, 2)).flatten(2)
            else:
                inputs = ((clip - clip.mean()) / torch.sqrt(clip.var(unbiased=False) + 1e-7))[None]
            wanted = whole(inputs).logits[0][:, rows]
            assert_close(frames.ctc_logits[row, : len(wanted)], wanted)


def test_greedy_text_equals_the_checkpoints(tmp_path: Path) -> None:
    """Our head gives the same greedy text as the checkpoint's head, but in lower case. The weights of the checkpoint's
    head are scaled up, so that the text has several letters."""
    from transformers import AutoTokenizer

    whole = checkpoint(tmp_path, "hubert")
    with torch.no_grad():
        whole.lm_head.weight.mul_(20)
        whole.lm_head.bias[[1, 2, 3]] -= 1e4  # never predict special symbols, because our head does not have them
    whole.save_pretrained(tmp_path)
    model, head = assembled(tmp_path, "hubert")
    clip = torch.from_numpy(speech(1.0))
    with torch.no_grad():
        frames = model.encode(clip[None], torch.tensor([SAMPLE_RATE]))
        ids = whole(((clip - clip.mean()) / clip.std())[None]).logits.argmax(-1)[0]
    assert frames.ctc_logits is not None
    (labels,) = ctc.greedy(frames.ctc_logits, frames.lengths)
    text = head.vocabulary.decode(labels)
    assert len(set(text)) > 3
    assert " ".join(text.split()) == " ".join(AutoTokenizer.from_pretrained(tmp_path).decode(ids).lower().split())


def test_case_is_kept_if_the_vocabulary_has_both_cases_of_a_letter(tmp_path: Path) -> None:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "a": 6, "b": 7, "C": 8}
    checkpoint(tmp_path, "hubert", vocabulary)
    assert PretrainedHead.read(encoder(tmp_path, "hubert")).vocabulary.characters == (" ", "A", "C", "a", "b")


def test_a_letter_without_a_single_lower_case_letter_is_kept(tmp_path: Path) -> None:
    vocabulary = {"<pad>": 0, "|": 1, "A": 2, "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}": 3}
    model = checkpoint(tmp_path, "hubert", vocabulary)
    head = PretrainedHead.read(encoder(tmp_path, "hubert"))
    assert head.vocabulary.characters == (" ", "a", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}")
    assert torch.equal(head.weight, model.lm_head.weight[[0, 1, 2, 3]])


def test_the_blank_can_have_any_index(tmp_path: Path) -> None:
    vocabulary = {"|": 0, "a": 1, "b": 2, "<unk>": 3, "<pad>": 4, "<s>": 5, "</s>": 6}
    model = checkpoint(tmp_path, "wav2vec2", vocabulary)
    head = PretrainedHead.read(encoder(tmp_path, "wav2vec2"))
    assert head.vocabulary.characters == (" ", "a", "b")
    assert torch.equal(head.weight, model.lm_head.weight[[4, 0, 1, 2]])


def test_symbols_without_a_row_in_the_head_are_ignored(tmp_path: Path) -> None:
    """The tokenizers of released W2v-BERT checkpoints have ids for ``<s>`` and ``</s>``, but the head has no rows for
    them."""
    vocabulary = {"a": 1, "b": 2, "|": 0, "<unk>": 3, "<pad>": 4}
    checkpoint(tmp_path, "w2v-bert", vocabulary)
    assert PretrainedHead.read(encoder(tmp_path, "w2v-bert")).vocabulary.characters == (" ", "a", "b")


# --- rejected checkpoints


def refusal(config: EncoderConfig) -> str:
    with pytest.raises(UserError) as caught:
        PretrainedHead.read(config)
    return str(caught.value)


def test_a_checkpoint_without_a_head_is_rejected(tmp_path: Path) -> None:
    bare("hubert", checkpoint(tmp_path, "hubert")).save_pretrained(tmp_path)
    assert refusal(encoder(tmp_path, "hubert")) == (
        f"ctc.init: {str(tmp_path)!r} has no CTC head (lm_head.weight, lm_head.bias); choose a checkpoint that was "
        "fine-tuned with CTC, or set ctc.init: random"
    )


def test_a_pretraining_checkpoint_is_rejected(tmp_path: Path) -> None:
    checkpoint(tmp_path, "wav2vec2")
    original("wav2vec2", "Wav2Vec2ForPreTraining").save_pretrained(tmp_path)
    assert "has no CTC head (lm_head.weight, lm_head.bias)" in refusal(encoder(tmp_path, "wav2vec2"))


def test_a_head_without_a_bias_is_rejected(tmp_path: Path) -> None:
    checkpoint(tmp_path, "hubert")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.bias"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert "has no CTC head (lm_head.weight, lm_head.bias)" in refusal(encoder(tmp_path, "hubert"))


def test_a_head_with_word_pieces_is_rejected(tmp_path: Path) -> None:
    checkpoint(tmp_path, "hubert", VOCABULARY | {"ING": len(VOCABULARY)})
    assert refusal(encoder(tmp_path, "hubert")) == (
        f"ctc.init: the head of {str(tmp_path)!r} cannot be used: its label 'ING' is not a single character; "
        "set ctc.init: random"
    )


def test_a_head_without_a_blank_is_rejected(tmp_path: Path) -> None:
    """``<pad>`` is the blank. It is missing from the vocabulary, so the tokenizer adds an id for which the head has no
    row."""
    checkpoint(tmp_path, "hubert", {"a": 0, "b": 1, "|": 2, "<unk>": 3})
    assert refusal(encoder(tmp_path, "hubert")) == (
        f"ctc.init: the head of {str(tmp_path)!r} cannot be used: its tokenizer has no blank; set ctc.init: random"
    )


def test_a_checkpoint_without_a_tokenizer_is_rejected(tmp_path: Path) -> None:
    checkpoint(tmp_path, "hubert")
    for file in ("vocab.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / file).unlink()
    message = refusal(encoder(tmp_path, "hubert"))
    assert message.startswith(f"ctc.init: cannot read vocab.json, the vocabulary of {str(tmp_path)!r}: ")
    assert message.endswith("set ctc.init: random")


def test_a_missing_checkpoint_is_rejected(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    assert refusal(encoder(missing, "hubert")).startswith(f"ctc.init: cannot read {str(missing)!r}: ")
