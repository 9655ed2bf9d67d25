"""Data for a report page: metrics, hypotheses and a report."""

from __future__ import annotations

import io
import math
import random

import numpy as np
import soundfile

from tiny_audio.analysis.scoring import normalizer, score_set

TEXT = "the river and its people went down in the evening over hills to three hundred and five rooms"
WORDS = TEXT.split()


def make_rows(count=40, seed=0):
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        reference = [rng.choice(WORDS) for _ in range(rng.randint(3, 12))]
        hypothesis = [rng.choice(WORDS) if rng.random() < 0.1 else word for word in reference if rng.random() > 0.04]
        rows.append(
            {
                "id": f"utterance-{i:03d}",
                "audio_filepath": f"{i}.flac",
                "duration": 2.5,
                "text": " ".join(reference).upper(),
                "pred_text": " ".join(hypothesis),
                "ctc_text": " ".join(hypothesis[1:]),
                "truncated": i == 0,
                "metadata": {"speaker": str(i % 7), "sex": None},
            }
        )
    rows[0]["pred_text"] = "and the river " * 200
    rows[1]["pred_text"] = ""
    rows[2]["text"] = ""
    return rows


def make_evaluation(rows):
    references, hypotheses, ctc = ([row[key] for row in rows] for key in ("text", "pred_text", "ctc_text"))
    return score_set(references, hypotheses, normalizer("whisper_english"), ctc_hypotheses=ctc, num_bootstrap=100)


ROWS = make_rows()
METRICS = [
    {
        "kind": "train",
        "step": step,
        "loss": 8 * math.exp(-step / 200) + 0.2,
        "decoder_loss": 8 * math.exp(-step / 200),
        "ctc_loss": 1 / step,
        "learning_rate": 1e-4,
        "gradient_norm": math.nan if step == 30 else 1.0,
        "audio_hours_per_hour": 1100.0,
        "padding_share": 0.07,
        "utilization": None if step < 20 else 0.4,
        "data_wait_share": 0.01,
        "wall_s": 2.0 * step,
    }
    for step in range(10, 8000, 10)
] + [{"kind": "evaluation", "step": step, "set": "dev", "wer": 100 / step, "cer": 0.1} for step in (1000, 2000)]
REPORT = {
    "run_id": "tiny-1a2b",
    "name": "tiny",
    "parameters": {"ctc": {"total": 41_000, "trainable": 41_000, "class": "Linear"}},
    "parts": [
        {
            "part": "encoder",
            "class": "HubertModel",
            "total": 1_000_000,
            "trainable": 0,
            "dim": 1280,
            "frame_rate_hz": 50.0,
        }
    ],
    "training": {"steps": 8000, "wall_s": 33480, "audio_hours": 1736.25, "padding_share": 0.071, "note": None},
    "evaluation": {"dev": make_evaluation(ROWS)},
    "ledger": {
        "audio_hours": 1736.25,
        "audio_hours_per_hour": 1100.0,
        "padding_share": 0.03,
        "tokens_per_s": 3300.5,
        "data_wait_share": 0.004,
        "utilization": 0.412,
        "tokens": 18_000_000,
        "flops": 2.25e18,
        "step_hours": 9.0,
        "occupied_hours": 10.0,
        "num_processes": 1,
        "peak_tflops": 149.7,
        "peak_source": "table, a40",
        "peak_memory_bytes": 26 * 2**30,
        "memory_of": "GPU",
        "power_watts": 300.0,
        "power_source": "table, a40",
        "price_per_hour": 0.44,
        "price_source": "rough, from the table",
        "cost_usd": 4.4,
        "energy_kwh": 2.5,
        "energy_measured_share": 1.0,
        "grid_gco2_per_kwh": 445.0,
        "co2_kg": 1.1125,
    },
    "dropped": {"too_long": 3, "undecodable": 12},
    "provenance": {"versions": {"torch": "2.11.0"}, "seed": 0, "command": ["tiny-audio", "run", "r.yaml"]},
    "recipe": {"encoder": {"name": "hubert"}, "training": {"learning_rate": 1e-4}},
}


def flac(row):
    data = io.BytesIO()
    soundfile.write(data, np.zeros(1600, dtype=np.float32), 16_000, format="FLAC")
    return data.getvalue()


def no_audio(row):
    return None
