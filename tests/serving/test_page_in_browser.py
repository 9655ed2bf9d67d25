"""The web page in Chromium, with a real server. The browser's microphone plays a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pysubs2
import pytest
import soundfile
import torch
import webvtt

from tests.serving.servers import LONG, Served, bursts, encoded, noise, serving, text_of
from tests.support.models import assemble
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.context import ContextSettings
from tiny_audio.model.prompt import Context
from tiny_audio.serving.engine import Engine
from tiny_audio.serving.options import Limits
from tiny_audio.sources import SOURCES, SourceContext

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; see CONTRIBUTING.md")
MICROPHONE_RATE = 48_000
SHORT_CLIP, LONG_CLIP = encoded(noise(1.0)), encoded(bursts(LONG))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray[Any, Any]:
    """Return some spoken commands with pauses between them."""
    config = SOURCES.parse({"name": "synthetic", "num_utterances": 3, "grammars": ["home"], "sentences": "all"})
    source = SOURCES.build(config, SourceContext(tmp_path_factory.mktemp("speech")))
    pause = np.zeros(SAMPLE_RATE, np.float32)
    waves = [soundfile.read(str(one.audio), dtype="float32")[0] for one in source.index().utterances]
    return np.concatenate([part for wave in waves for part in (wave, pause)])


@pytest.fixture(scope="module")
def browser(speech: np.ndarray[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    clip = tmp_path_factory.mktemp("microphone") / "clip.wav"
    soundfile.write(clip, np.repeat(speech, MICROPHONE_RATE // SAMPLE_RATE), MICROPHONE_RATE)
    arguments = [
        "--no-sandbox",  # needed by tests that run as root
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={clip}",
        "--host-resolver-rules=MAP page.test 127.0.0.1",
    ]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def problems() -> list[str]:
    """Return an empty list. :func:`window` adds the errors of the page's scripts to it."""
    return []


@pytest.fixture(scope="module")
def window(browser: Any, problems: list[str]) -> Iterator[Any]:
    """Open a window of a phone's size with one tab. Tests share it, because opening a window takes almost 1 s."""
    context = browser.new_context(viewport={"width": 375, "height": 700}, accept_downloads=True)
    context.set_default_timeout(30_000)
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on("console", lambda message: problems.append(message.text) if _is_problem(message) else None)
    context.new_page()
    yield context
    context.close()


@pytest.fixture
def tab(window: Any, problems: list[str]) -> Iterator[Any]:
    """Remove the tab's permissions, and yield the tab. After the test, check that no script has failed."""
    window.clear_permissions()
    problems.clear()
    yield window.pages[0]
    assert problems == []


@pytest.fixture
def new_tab(window: Any) -> Iterator[Any]:
    """Open another tab, for tests that change the browser's functions."""
    tab = window.new_page()
    yield tab
    tab.close()


@pytest.fixture
def page(tab: Any, server: Served) -> Any:
    """Load the page."""
    return opened(tab, server)


def opened(tab: Any, server: Served) -> Any:
    """Load the page, and wait until it shows the model card."""
    tab.goto(server.url)
    tab.wait_for_selector("#about:not([hidden])")
    return tab


def _is_problem(message: Any) -> bool:
    # Chromium reports failed connections as errors, although the page handles them.
    return message.type == "error" and not message.text.startswith(("Failed to load resource", "WebSocket connection"))


def transcribe(page: Any, data: bytes) -> str:
    """Choose a file, and return the text on the page."""
    page.set_input_files("#file", {"name": "my clip.wav", "mimeType": "audio/wav", "buffer": data})
    return shown(page)


def shown(page: Any) -> str:
    page.wait_for_selector("#result:not([hidden])")
    return " ".join(page.locator("#transcript .unit").all_inner_texts())


def download(page: Any, kind: str) -> tuple[str, str]:
    """Download the transcript in a format. Return the file's name and content."""
    with page.expect_download() as caught:
        page.click(f"[data-format={kind}]")
    return caught.value.suggested_filename, Path(caught.value.path()).read_text()


def test_a_file_is_transcribed(page: Any) -> None:
    text = text_of(LONG_CLIP)
    assert len(text.split()) > 3
    assert transcribe(page, LONG_CLIP) == text
    assert download(page, "txt") == ("my clip.txt", f"{text}\n")
    name, content = download(page, "json")
    found = json.loads(content)
    assert (name, found["text"]) == ("my clip.json", text)
    assert " ".join(word["word"] for word in found["words"]) == text
    for kind in ("srt", "vtt"):
        name, content = download(page, kind)
        parsed = pysubs2.SSAFile.from_string(content, format_=kind)
        assert " ".join(" ".join(event.plaintext.split()) for event in parsed) == text
    assert len(webvtt.from_string(content).captions) == len(parsed)
    # Nothing is wider than a phone's screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_words_follow_the_player_and_can_be_selected_by_keyboard(page: Any) -> None:
    transcribe(page, LONG_CLIP)
    words = json.loads(download(page, "json")[1])["words"]
    assert len(words) > 2
    units = page.locator(".unit")
    for index in (1, len(words) - 1):
        middle = (words[index]["start"] + words[index]["end"]) / 2
        page.evaluate("seconds => { document.getElementById('player').currentTime = seconds }", middle)
        playwright.expect(units.nth(index)).to_have_class("unit current")
        assert page.locator(".unit.current").count() == 1
    page.focus("#transcript")
    page.keyboard.press("ArrowLeft")
    playwright.expect(units.nth(len(words) - 2)).to_have_class("unit current")
    units.first.click()
    playwright.expect(units.first).to_have_class("unit current")
    assert page.evaluate("document.getElementById('player').currentTime") == pytest.approx(words[0]["start"], abs=0.01)
    page.focus("#transcript")
    page.keyboard.press(" ")
    playwright.expect(page.locator("#player")).to_have_js_property("paused", False)


def test_a_model_without_word_times_shows_segments(tab: Any) -> None:
    with serving(ctc=False) as server:
        page = opened(tab, server)
        assert transcribe(page, LONG_CLIP) == text_of(LONG_CLIP, ctc=False)
        assert page.locator(".unit").count() == len(json.loads(download(page, "json")[1])["segments"])


def test_a_missing_permission_is_shown(page: Any) -> None:
    page.click("#record")
    page.wait_for_selector("#error:not([hidden])")
    assert "microphone" in page.inner_text("#error")
    assert transcribe(page, SHORT_CLIP)  # files can still be transcribed
    assert page.locator("#error").is_hidden()


def test_the_page_asks_for_a_key_and_shows_a_busy_server(tab: Any) -> None:
    with serving(api_keys=("secret",), limits=Limits(max_requests=0)) as server:
        page = tab
        page.goto(server.url)
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#key")).to_have_value("")
        playwright.expect(page.locator("#key")).to_be_focused()
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#about:not([hidden])")
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": SHORT_CLIP})
        page.wait_for_selector("#retry:not([hidden])")
        assert "busy" in page.inner_text("#error")
        # Browsers allow only HTTPS and localhost pages to use the microphone.
        page.goto(f"http://page.test:{server.port}")
        assert page.locator("#record").is_disabled()
        assert "HTTPS" in page.inner_text("#status")


def test_a_file_that_is_not_audio_shows_an_error(page: Any) -> None:
    page.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": b"no audio" * 100})
    page.wait_for_selector("#error:not([hidden])")
    assert page.locator("#retry").is_hidden()
    assert page.locator("#record").is_enabled()


def test_all_controls_have_names_and_can_be_reached_by_keyboard(page: Any) -> None:
    transcribe(page, LONG_CLIP)
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.dataset.format"))
    places = [reached.index(one) for one in ("record", "choose", "copy", "transcript", "player")]
    assert places == sorted(places)
    unnamed = "[...document.querySelectorAll('button')].filter((one) => !one.innerText.trim() && one.checkVisibility())"
    assert page.evaluate(f"{unnamed}.length") == 0


def begin(page: Any) -> None:
    """Press Record, and wait until the recording has begun."""
    page.context.grant_permissions(["microphone"])
    page.click("#record")
    page.wait_for_selector("[data-state=recording]")


def end(page: Any) -> tuple[np.ndarray[Any, Any], str]:
    """Press Stop, and return the samples and the text on the page."""
    page.click("#record")
    text = shown(page)
    with page.expect_download() as caught:
        page.click("#wav")
    waveform, rate = soundfile.read(caught.value.path(), dtype="float32")
    assert rate == SAMPLE_RATE
    return waveform, text


def similarity(recorded: np.ndarray[Any, Any], played: np.ndarray[Any, Any]) -> float:
    """Return the highest correlation of a recording with any part of the played clip. The clip is played in a loop."""
    part = recorded[SAMPLE_RATE // 2 :]
    whole = np.tile(played, 3)
    size = len(whole) + len(part)
    products = np.fft.irfft(np.fft.rfft(whole, size) * np.conj(np.fft.rfft(part, size)), size)[: len(whole) - len(part)]
    sums = np.concatenate([[0], np.cumsum(whole.astype(np.float64) ** 2)])
    energies = (sums[len(part) :] - sums[: -len(part)])[: len(products)]
    return float(np.max(products / np.sqrt(energies * np.sum(part.astype(np.float64) ** 2) + 1e-9)))


def test_live_text_equals_the_text_of_the_recording(page: Any, speech: np.ndarray[Any, Any]) -> None:
    begin(page)
    page.wait_for_selector("#final span")
    waveform, text = end(page)
    assert similarity(waveform, speech) > 0.9
    segments = json.loads(download(page, "json")[1])["segments"]
    # This random model writes several spaces in a row. A browser shows them as one space.
    assert " ".join(segment["text"] for segment in segments).split() == text.split()
    for segment in segments:
        samples = waveform[round(segment["start"] * SAMPLE_RATE) : round(segment["end"] * SAMPLE_RATE)]
        assert segment["text"] == text_of(encoded(samples))


def test_names_to_expect_are_sent_with_files_and_recordings(tab: Any) -> None:
    found = Transcriber(*assemble(context=ContextSettings(hotwords=True)), filter_hallucinations=False)
    with serving(engine=Engine(found)) as server:
        page = opened(tab, server)
        page.get_by_label("Names and rare words").fill("two, three, Ö")
        # Compare words, because the page does not show the line breaks of a text.
        with_names, without = (
            found.transcribe([torch.from_numpy(noise(1.0))], contexts=context)[0].text.split()
            for context in (Context(("two", "three")), None)
        )
        assert transcribe(page, SHORT_CLIP).split() == with_names != without
        assert "Ö" in page.inner_text("#transcript-hint")
        begin(page)
        page.wait_for_selector("#final span")
        waveform, text = end(page)
        assert "Ö" in page.inner_text("#transcript-hint")
        segments = json.loads(download(page, "json")[1])["segments"]
        spans = [slice(*(round(one[name] * SAMPLE_RATE) for name in ("start", "end"))) for one in segments]
        clips = [torch.from_numpy(waveform[span]) for span in spans]
        wanted = found.transcribe(clips, contexts=Context(("two", "three")))
        assert text.split() == [word for one in wanted for word in one.text.split()]


HELD_MICROPHONE = """
  const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  const allowed = new Promise((resolve) => { window.allow = resolve; });
  navigator.mediaDevices.getUserMedia = async (options) => {
    await allowed;
    return (window.opened = await open(options));
  };
"""
RELEASED = """async () => {
  while (window.opened?.getTracks()[0].readyState !== "ended") await new Promise((resolve) => setTimeout(resolve, 20));
}"""


def test_a_canceled_permission_and_a_disconnected_microphone_are_handled(new_tab: Any, server: Served) -> None:
    new_tab.add_init_script(HELD_MICROPHONE)
    new_tab.context.grant_permissions(["microphone"])
    page = opened(new_tab, server)
    page.click("#record")
    page.click("#cancel")
    playwright.expect(page.locator("#record")).to_be_enabled()
    page.evaluate("allow()")
    page.evaluate(RELEASED)
    assert page.get_attribute("body", "data-state") == "idle"
    page.focus("#record")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-state=recording]")
    playwright.expect(page.locator("#record")).to_be_focused()
    page.wait_for_timeout(300)
    page.evaluate("opened.getTracks()[0].dispatchEvent(new Event('ended'))")
    page.wait_for_selector("#result:not([hidden])")
    playwright.expect(page.locator("#record")).to_be_focused()


@pytest.mark.slow
def test_a_recording_is_transcribed_without_live_text(new_tab: Any, server: Served) -> None:
    """Live text needs a WebSocket, which the browser cannot open here. The recording is transcribed after it ends."""
    new_tab.add_init_script("WebSocket = class extends WebSocket { constructor() { super('ws://127.0.0.1:1'); } };")
    page = opened(new_tab, server)
    begin(page)
    page.wait_for_timeout(1000)
    waveform, text = end(page)
    assert text.split() == text_of(encoded(waveform)).split()


@pytest.mark.slow
def test_the_page_resamples_the_microphone_if_the_browser_does_not(new_tab: Any, server: Served, speech: Any) -> None:
    """Firefox rejects a microphone with another rate than the audio context. Here, a script makes Chromium do so."""
    new_tab.add_init_script(
        "const create = AudioContext.prototype.createMediaStreamSource;"
        "AudioContext.prototype.createMediaStreamSource = function (stream) {"
        "  if (this.sampleRate === 16000) throw new DOMException('another rate', 'NotSupportedError');"
        "  return create.call(this, stream); };"
    )
    page = opened(new_tab, server)
    begin(page)
    page.wait_for_timeout(1200)
    assert similarity(end(page)[0], speech) > 0.9
