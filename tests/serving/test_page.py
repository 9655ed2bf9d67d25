"""The web page's files and data, tested without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch

from tests.serving.servers import LONG, Served, bursts, encoded, serving, transcriber
from tests.support.models import assemble
from tests.support.paths import ROOT
from tiny_audio.inference.subtitles import as_srt, as_vtt, cues
from tiny_audio.model.context import ContextSettings
from tiny_audio.serving.options import Limits
from tiny_audio.serving.page.card import Score, read_card

PAGE = ROOT / "tiny_audio" / "serving" / "page"
CARD = """---
model-index:
- name: tiny
  results:
  - task: {type: automatic-speech-recognition}
    dataset: {name: phones, type: manifest}
    metrics:
    - {type: wer, value: 12.5, args: {normalizer: lower (1), num_utterances: 40, interval_95: [9.0, 16.25]}}
    - {type: cer, value: 6.0}
---
"""


def get(server: Served, path: str, **headers: str) -> Any:
    return urlopen(Request(f"{server.url}{path}", headers=headers), timeout=60)


def post(server: Served, path: str, value: object) -> str:
    data = json.dumps(value).encode()
    with urlopen(Request(f"{server.url}{path}", data, {"Content-Type": "application/json"}), timeout=60) as answer:
        return answer.read().decode()


def test_all_files_come_from_the_server_with_a_strict_policy(server: Served) -> None:
    texts = {path.name: path.read_text() for path in PAGE.iterdir() if path.suffix in (".html", ".css", ".js", ".svg")}
    linked = set(re.findall(r'(?:src|href)="([^"]+)"', texts["index.html"]))
    linked |= {f"page/{name}" for text in texts.values() for name in re.findall(r'"(?:\./)?(\w+\.js)"', text)}
    assert linked == {f"page/{name}" for name in texts if name != "index.html"}
    for path in ("", *linked):
        with get(server, f"/{path}") as answer:
            policy = dict(line.split(" ", 1) for line in answer.headers["Content-Security-Policy"].split("; "))
            assert answer.read().decode() == texts[path.removeprefix("page/") or "index.html"]
        assert policy.pop("default-src") == "'none'"
        assert {name: value for name, value in policy.items() if value not in ("'self'", "'none'", "'script'")} == {
            "media-src": "blob:"
        }
    assert set(re.findall(r"https?://[^\"'\s]+", "".join(texts.values()))) == {"http://www.w3.org/2000/svg"}
    with pytest.raises(HTTPError, match="404"):
        get(server, "/page/routes.py")


def test_head_is_like_get_without_a_body(server: Served) -> None:
    for path in ("/", "/health", "/v1/models/tiny", "/page/page.js"):
        with urlopen(Request(f"{server.url}{path}", method="HEAD"), timeout=60) as head, get(server, path) as whole:
            assert head.status == whole.status == 200
            assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.read()))
            assert head.read() == b""


def test_the_page_needs_no_key_but_its_data_does() -> None:
    with serving(api_keys=("secret",)) as server:
        assert get(server, "/").status == get(server, "/page/page.js").status == 200
        with pytest.raises(HTTPError, match="401"):
            get(server, "/v1/card")
        assert json.load(get(server, "/v1/card", Authorization="Bearer secret"))["words"]


def test_a_card_has_parts_and_word_error_rates(tmp_path: Path) -> None:
    model, _ = assemble()
    (tmp_path / "README.md").write_text(CARD)
    card = read_card("tiny", tmp_path, model)
    assert [(part.part, part.kind, part.initialized_from) for part in card.parts] == [
        ("encoder", "whisper", "random weights"),
        ("projector", "swiglu", "random weights"),
        ("decoder", "smollm3", "random weights"),
        ("CTC head", "", "random weights"),
    ]
    assert sum(part.parameters for part in card.parts) == sum(tensor.numel() for tensor in model.parameters())
    assert card.scores == (Score("phones", 12.5, (9.0, 16.25), 40, "lower (1)"),)
    assert not read_card("tiny", tmp_path, assemble(ctc=False)[0]).words
    assert card.prompt is None
    for settings, prompt in (
        (ContextSettings(hotwords=True, previous_text=True), "hotwords"),
        (ContextSettings(previous_text=True), "previous_text"),
        (ContextSettings(languages=("en",)), None),
    ):
        assert read_card("tiny", tmp_path, assemble(context=settings)[0]).prompt == prompt


@pytest.mark.parametrize(
    "text",
    [
        None,
        "# A model\n",
        "---\nlicense: mit\n---\n",
        "---\nmodel-index: what\n---\n",
        "---\nmodel-index:\n- results: [{}]\n---\n",
        "---\n[\n---\n",
        CARD.replace("12.5", "low"),
        "---\n- a list\n---\n",
        CARD.replace("[9.0, 16.25]", "9.0"),
    ],
)
def test_other_cards_have_no_scores(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert read_card("tiny", tmp_path, assemble()[0]).scores == ()


def test_subtitles_equal_those_of_transcribe(server: Served) -> None:
    times: Any = ["word", "segment"]
    with server.client() as client:
        found = client.audio.transcriptions.create(
            file=("long.wav", encoded(bursts(LONG))), model="tiny", response_format="verbose_json",
            timestamp_granularities=times,
        )  # fmt: skip
    words = [word.model_dump() for word in found.words or []]
    segments = [
        {"start": one.start, "end": one.end, "text": one.text}
        | {"words": [word for word in words if one.start <= word["start"] < one.end]}
        for one in found.segments or []
    ]
    (expected,) = transcriber().transcribe([torch.from_numpy(bursts(LONG))], word_timestamps=True)
    shown = cues(expected.segments)
    assert len(shown) > LONG // 2
    assert post(server, "/v1/subtitles/srt", {"segments": segments}) == as_srt(shown)
    assert post(server, "/v1/subtitles/vtt", {"segments": segments}) == as_vtt(shown)


@pytest.mark.parametrize(
    ("words", "shown"), [(["hello"], "hello"), ([" ada", " lovelace "], "ada lovelace"), (["", " "], "the text")]
)
def test_spaces_around_words_are_removed_from_subtitles(server: Served, words: list[str], shown: str) -> None:
    timed = [{"word": word, "start": index, "end": index + 1} for index, word in enumerate(words)]
    segment = {"start": 0, "end": len(words), "text": "the text", "words": timed}
    assert post(server, "/v1/subtitles/vtt", {"segments": [segment]}).strip().split("\n")[-1] == shown


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"segments": [{"start": -1, "end": 2, "text": "a"}]},
        {"segments": [{"start": 0, "end": 1e9, "text": "a"}]},
        {"segments": [{"start": 0, "end": float("nan"), "text": "a"}]},
        {"segments": [{"start": 0, "end": 1}]},
        {"segments": [{"start": 0, "end": 1, "text": "a", "words": [{"word": 1, "start": 0, "end": 1}]}]},
    ],
)
def test_texts_without_times_are_rejected(server: Served, value: object) -> None:
    with pytest.raises(HTTPError, match=r"4\d\d"):
        post(server, "/v1/subtitles/srt", value)


def test_requests_for_subtitles_are_counted() -> None:
    with serving(limits=Limits(max_requests=0)) as server, pytest.raises(HTTPError, match="429") as found:
        post(server, "/v1/subtitles/srt", {"segments": []})
    assert found.value.headers["Retry-After"] == "1"
    assert json.load(found.value)["error"]["code"] == "rate_limit_exceeded"


def test_unknown_subtitle_formats_give_an_api_error(server: Served) -> None:
    with pytest.raises(HTTPError, match="400") as found:
        post(server, "/v1/subtitles/doc", {"segments": []})
    assert "'srt' or 'vtt'" in json.load(found.value)["error"]["message"]


def colors() -> list[dict[str, str]]:
    """Return the colors of the light and the dark mode."""
    blocks = re.findall(r":root \{([^}]*)\}", (PAGE / "page.css").read_text())
    return [dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in blocks]


def luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_both_modes_have_the_contrast_that_wcag_requires() -> None:
    for mode in colors():
        levels = {name: luminance(color) for name, color in mode.items()}
        for front, back, least in (
            ("text", "background", 7),
            ("text", "surface", 7),
            ("text", "highlight", 7),
            ("muted", "background", 4.5),
            ("muted", "surface", 4.5),
            ("accent", "surface", 4.5),
            ("on-accent", "accent", 4.5),
            ("error", "error-surface", 4.5),
            ("record", "surface", 3),
        ):
            high, low = sorted((levels[front], levels[back]), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, (front, back)
