"""Target texts: normalization of transcripts before training."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.conftest import Document, changed
from tiny_audio.analysis.normalizer_names import NORMALIZER_NAMES
from tiny_audio.config import UserError
from tiny_audio.data.text import TargetText, TargetTextConfig
from tiny_audio.recipe import Recipe, load_recipe

*_FIRST, _LAST = map(repr, NORMALIZER_NAMES)
NAMES = f"{', '.join(_FIRST)} or {_LAST}"
STEPS = ("write_punctuation", "remove_markers", "remove_fillers", "true_case")


def rewrite(text: str, *steps: str, name: Any = "none") -> str:
    return TargetText(TargetTextConfig(name=name, **dict.fromkeys(steps, True)))(text)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("HELLO <COMMA> YOU <PERIOD>", "HELLO, YOU."),
        ("WHO <QUESTIONMARK> ME <EXCLAMATIONPOINT>", "WHO? ME!"),
        ("hello <comma> you", "hello, you"),
        ("A <SIL> B", "A <SIL> B"),
    ],
)
def test_punctuation_of_gigaspeech_is_written(text: str, target: str) -> None:
    assert rewrite(text, "write_punctuation") == target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("so <unk> it is", "so it is"),
        ("<noise> so it is [laughter]", "so it is"),
        ("so (inaudible) it (he said) is (LAUGHTER)", "so it (he said) is"),
        ("hello [laughter], world <noise>.", "hello, world."),
        ("HELLO <COMMA> YOU <PERIOD>", "HELLO YOU"),
        ("<MUSIC>", ""),
        ("<noise>.", ""),
        ("2 < 3 and 4 > 1", "2 < 3 and 4 > 1"),
        ("a[i] is fine", "a is fine"),
        ("an open <bracket", "an open <bracket"),
    ],
)
def test_markers_are_removed(text: str, target: str) -> None:
    assert rewrite(text, "remove_markers") == target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("UM I THINK UH SO", "I THINK SO"),
        ("Um, I think so", "I think so"),
        ("I, um, think so", "I think so"),
        ("Yes, um I think so", "Yes, I think so"),
        ("Yes, um.", "Yes."),
        ("Yes. Um. No.", "Yes. No."),
        ("Yes, um", "Yes"),
        ("um uh, hmm so mhm", "so"),
        ("uhhh umm erm", ""),
        ("uh-huh, Yum hums for 35 mm", "uh-huh, Yum hums for 35 mm"),
    ],
)
def test_fillers_are_removed(text: str, target: str) -> None:
    assert rewrite(text, "remove_fillers") == target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("I'M HERE AND I'D STAY", "I'm here and I'd stay"),
        ("i", "I"),
        ('where am i? here. "who is it?" he said', 'Where am I? Here. "Who is it?" he said'),
        ("on sunday in april, may i? e.g. i.e. fine", "On Sunday in April, may I? E.g. i.e. fine"),
        ("McDonald went to NASA. then i left", "McDonald went to NASA. Then I left"),
        ("éclair", "Éclair"),
        ("3.5 percent", "3.5 percent"),
    ],
)
def test_case_is_written_by_rule(text: str, target: str) -> None:
    assert rewrite(text, "true_case") == target


def test_steps_are_applied_in_order() -> None:
    said = "UM <NOISE> I'M HERE <COMMA> ON MONDAY <PERIOD>"
    assert rewrite(said, *STEPS) == "I'm here, on Monday."
    assert rewrite(said, "remove_fillers", "true_case", name="whisper_english") == "I am here on Monday"
    assert rewrite(said, "remove_markers", "remove_fillers", name="lower") == "i'm here on monday"


def test_a_single_name_means_the_normalizer() -> None:
    assert TargetText.of("whisper_english")("I'm UM here") == "i am here"
    assert str(TargetText.of("whisper_english")) == "data.target_text whisper_english"
    assert str(TargetText.of(TargetTextConfig(true_case=True))) == "data.target_text"
    assert TargetText.of("none").changes_nothing
    assert TargetText.of("none")(" as  it is ") == " as  it is "


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.text(alphabet=st.sampled_from("iIuUmMhH <>[]().,!?'a1é-\n"), max_size=30),
    st.sets(st.sampled_from(STEPS), min_size=1),
)
def test_steps_add_no_words(text: str, steps: set[str]) -> None:
    target = rewrite(text, *steps)
    assert target == " ".join(target.split())
    letters = iter(text.lower())
    assert all(letter in letters for letter in target.lower() if letter.isalnum()), "the letters keep their order"


def test_a_target_text_can_be_pickled_for_loader_processes() -> None:
    target = TargetText.of(TargetTextConfig(remove_markers=True, name="lower"))
    assert pickle.loads(pickle.dumps(target))("A <unk> B") == "a b"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"write_punctuation": True, "name": "whisper_english"},
            "write_punctuation has no effect with the normalizer whisper_english, which removes punctuation; remove "
            "write_punctuation",
        ),
        (
            {"remove_markers": True, "name": "basic"},
            "remove_markers has no effect with the normalizer basic, which removes brackets itself; remove "
            "remove_markers",
        ),
    ],
)
def test_steps_without_effect_are_rejected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        TargetTextConfig(**fields)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("upper", f'data.target_text: should be {NAMES}, not "upper"'),
        (3, f"data.target_text: should be {NAMES}, not 3"),
        ({"remove_marker": True}, "data.target_text.remove_marker: unknown field; did you mean 'remove_markers'? All"),
        ({"true_case": 1}, "data.target_text.true_case: should be a valid boolean, not 1"),
        (
            {"name": "basic", "remove_markers": True},
            "data.target_text: remove_markers has no effect with the normalizer basic",
        ),
    ],
)
def test_errors_in_a_recipe_are_located(
    document: Document, write_recipe: Callable[..., Path], value: Any, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_recipe(write_recipe(changed(document, data__target_text=value)))


def test_a_recipe_that_extends_another_adds_steps(document: Document, write_recipe: Callable[..., Path]) -> None:
    base = write_recipe(changed(document, data__target_text="whisper_english"), "base.yaml")
    path = write_recipe({"extends": str(base), "data": {"target_text": {"true_case": True}}})
    assert load_recipe(path).data.target_text == TargetTextConfig(name="whisper_english", true_case=True)
    assert load_recipe(path, ["data.target_text=lower"]).data.target_text == "lower"
    more = load_recipe(base, ["data.target_text.remove_fillers=true"]).data.target_text
    assert more == TargetTextConfig(name="whisper_english", remove_fillers=True)


def test_a_recipe_can_have_a_name_or_a_section(document: Document) -> None:
    named = Recipe.model_validate(changed(document, data__target_text="lower"))
    assert named.training_identity()["data"]["target_text"] == "lower", "in the identity of a run, a name stays a name"
    section = {"remove_markers": True, "name": "lower"}
    more = Recipe.model_validate(changed(document, data__target_text=section))
    assert more.data.target_text == TargetTextConfig(**section)
    assert Recipe.model_validate_json(more.model_dump_json()) == more
    assert named.run_id() != more.run_id()
