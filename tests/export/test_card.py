"""The model card of an export, as huggingface_hub reads it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from huggingface_hub.repocard import metadata_load, metadata_save

from tiny_audio.export.card import base_licenses, model_card

SCORES = {
    "wer": 0.03217,
    "wer_interval": [0.0241, 0.0402],
    "cer": 0.0102,
    "normalizer": "lower",
    "normalizer_version": "1",
    "num_utterances": 400,
    "looping_hypotheses": 0,
    "empty_hypotheses": 2,
}
LEDGER = {
    "audio_hours": 17.3,
    "audio_hours_per_hour": 84.2,
    "padding_share": 0.021,
    "tokens_per_s": 393.8,
    "data_wait_share": 0.07,
    "utilization": 0.2,
    "tokens": 291206,
    "flops": 2.3e13,
    "peak_tflops": 0.14,
    "step_hours": 0.205,
    "occupied_hours": 0.206,
    "num_processes": 1,
    "peak_source": "measured with a matrix product",
    "peak_memory_bytes": 1559339008,
    "memory_of": "process",
    "power_watts": 16.0,
    "power_source": "assumed for 2 CPU threads",
    "price_per_hour": None,
    "price_source": None,
    "cost_usd": None,
    "energy_kwh": 0.0033,
    "energy_measured_share": 0.0,
    "grid_gco2_per_kwh": 445.0,
    "co2_kg": 0.0015,
}
REPORT: dict[str, Any] = {
    "run_id": "abc123",
    "name": "quick: start",
    "parts": [{"part": "encoder", "name": "hubert", "total": 1000, "trainable": 10}],
    "training": {"steps": 100, "audio_hours": 2.5},
    "ledger": LEDGER,
    "evaluation": {"held_out": SCORES, "wild": {**SCORES, "wer": 0.5}},
    "dropped": {},
    "provenance": {"tiny-audio": "1.0", "finished": "2026-01-02T03:04:05+00:00"},
    "recipe": {
        "encoder": {"init": "pretrained", "pretrained": "facebook/hubert-xlarge-ls960-ft"},
        "decoder": {"init": "pretrained", "pretrained": "HuggingFaceTB/SmolLM3-3B"},
        "training": {"init_from": None},
        "data": {
            "train": {"clips": {"name": "manifest", "path": "/home/me/secret/train.jsonl"}},
            "evaluation": {
                "held_out": {"name": "hub", "repo": "somebody/speech"},
                "wild": {"name": "manifest", "path": "/home/me/secret/wild.jsonl"},
            },
            "min_duration_s": 0.5,
            "max_duration_s": 20.0,
            "target_text": {"name": "none"},
        },
    },
}


@pytest.fixture
def card() -> ModelCard:
    return ModelCard(model_card(REPORT, {"HuggingFaceTB/SmolLM3-3B": "apache-2.0"}))


def test_front_matter_contains_the_results(card: ModelCard) -> None:
    data = card.data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "automatic-speech-recognition"
    assert data.base_model == ["facebook/hubert-xlarge-ls960-ft", "HuggingFaceTB/SmolLM3-3B"]
    assert data.model_name == "quick: start"
    assert data.license is None
    results = {(one.dataset_name, one.metric_type): one for one in data.eval_results or []}
    assert results.keys() == {(name, metric) for name in ("held_out", "wild") for metric in ("wer", "cer")}
    rate = results["held_out", "wer"]
    assert rate.metric_value == 3.22
    assert rate.task_type == "automatic-speech-recognition"
    assert rate.dataset_type == "somebody/speech"
    assert results["wild", "wer"].dataset_type == "manifest"
    assert rate.metric_args == {"normalizer": "lower (1)", "num_utterances": 400, "interval_95": [2.41, 4.02]}
    assert "interval_95" not in (results["held_out", "cer"].metric_args or {})


def test_sets_of_the_same_source_keep_their_names() -> None:
    report = copy.deepcopy(REPORT)
    sets = report["recipe"]["data"]["evaluation"]
    sets["wild"] = sets["held_out"]
    results = ModelCard(model_card(report)).data.eval_results or []
    assert {one.dataset_name for one in results} == {"held_out", "wild"}


def test_the_page_has_licenses_and_a_citation_but_no_local_folder(card: ModelCard) -> None:
    text = card.text
    assert "| HuggingFaceTB/SmolLM3-3B | apache-2.0 |" in text
    assert "| facebook/hubert-xlarge-ls960-ft | see facebook/hubert-xlarge-ls960-ft |" in text
    assert "This card does not state a license for the model itself" in text
    assert "@misc{tiny_audio_abc123," in text
    assert "  year = {2026}," in text
    assert "base models too: facebook/hubert-xlarge-ls960-ft, HuggingFaceTB/SmolLM3-3B." in text
    assert 'pipeline("automatic-speech-recognition", model="path/of/this/folder", trust_remote_code=True)' in text
    assert "| energy | 3.3 Wh | not measured: from the rated power, 16 W (assumed for 2 CPU threads)" in text
    assert "secret" not in card.content


def test_without_scores_front_matter_has_no_results(tmp_path: Path) -> None:
    report = copy.deepcopy(REPORT) | {"evaluation": {}}
    report["recipe"]["encoder"]["init"] = report["recipe"]["decoder"]["init"] = "random"
    (tmp_path / "README.md").write_text(model_card(report))
    data = metadata_load(tmp_path / "README.md")
    assert data is not None
    assert data.keys() == {"library_name", "pipeline_tag", "tags"}
    text = (tmp_path / "README.md").read_text()
    assert "| base model | license |" not in text
    assert "cite the base models" not in text


@pytest.mark.parametrize(("hours", "shown"), [(2.5, "2.5"), (0.0171, "0.0171"), (99.96, "100"), (2881.4, "2880")])
def test_hours_have_no_exponent(hours: float, shown: str) -> None:
    text = model_card({**REPORT, "training": {**REPORT["training"], "audio_hours": hours}})
    assert f" on {shown} hours of audio" in text


def test_an_evaluation_during_training_without_a_rate_is_left_out() -> None:
    monitored = [{"set": "held_out", "utterances": 400, "wer": 0.25}, {"set": "silence", "utterances": 9, "wer": None}]
    text = model_card({**REPORT, "monitored": monitored})
    assert "the word error rate at this step was 25.0% on 400 clips of held\\_out." in text
    assert text.count("During training") == 1


def test_licenses_come_from_the_cards_of_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    metadata_save(tmp_path / "README.md", {"license": "other", "license_name": "gemma"})
    recipe = copy.deepcopy(REPORT["recipe"])
    recipe["encoder"]["pretrained"] = str(tmp_path)
    assert base_licenses(recipe) == {str(tmp_path): "gemma"}
    (tmp_path / "README.md").write_text("no front matter")
    assert base_licenses(recipe) == {}
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")  # not valid YAML
    assert base_licenses(recipe) == {}
    (tmp_path / "README.md").unlink()
    assert base_licenses(recipe) == {}
