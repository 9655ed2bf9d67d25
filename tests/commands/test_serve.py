"""``tiny-audio serve``: start, warnings, signals and exit codes."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest
from openai import OpenAI

from tests.commands.conftest import Output
from tests.commands.transcribing import call as transcribe
from tests.support.processes import Process, begin, finish, wait_until
from tiny_audio.commands import serve
from tiny_audio.commands.serve import _keys_in
from tiny_audio.config import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def running(*arguments: object) -> Iterator[tuple[Process, str]]:
    """Start a server in a new process. Yield the process and the server's address."""
    with begin("serve", *arguments, "--port", 0) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"serving \S+ at (http://\S+:\d+) \(Ctrl-C stops it\)\n", line)
            assert found, line + (process.stderr.read() if process.stderr and process.poll() is not None else "")
            yield process, found[1]
        finally:
            process.kill()


def is_listening(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port)).close()
    except ConnectionRefusedError:
        return False
    return True


def ask(address: str, clip: Path, key: str = "none") -> Any:
    with OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60) as client:
        return client.audio.transcriptions.create(file=clip, model="whisper-1")


def test_the_server_gives_the_texts_of_transcribe_until_a_signal(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = place / "audio" / "a.wav"
    _, wanted, _ = transcribe(capsys, place / "model", clip)
    (tmp_path / "keys").write_text("sk-one\nsk-two\n")
    with running(place / "model", "--no-filters", "--api-key-file", tmp_path / "keys") as (process, address):
        assert f"{clip}\t{ask(address, clip, 'sk-two').text}\n" == wanted
        with pytest.raises(openai.AuthenticationError):
            ask(address, clip)
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert code == 0
    assert "transcriptions 200" in err
    assert "warning" not in err


def test_a_second_ctrl_c_stops_the_server_at_once(place: Path) -> None:
    with running(place / "model", "--model-name", "mine") as (process, address):
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
            connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
            metrics = f"{address}/metrics"
            assert wait_until(process, lambda: b"\ntiny_audio_active_requests 1.0" in urlopen(metrics).read())
            process.send_signal(signal.SIGINT)
            assert wait_until(process, lambda: not is_listening(host, int(port))), "it still accepts requests"
            process.send_signal(signal.SIGINT)
            code, _, err = finish(process)
    assert code == 3
    assert "finishing the running requests" in err
    assert "running requests were ended" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("options", [(), ("--no-search",)])
def test_no_search_turns_the_search_for_cuts_off(
    place: Path, call: Output, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def stop(*_: object, **settings: Any) -> None:
        searched.append(settings["search_cuts"])
        raise UserError("stop before the server starts")

    monkeypatch.setattr(serve, "Transcriber", stop)
    assert call("serve", place / "model", "--port", "0", *options)[0] == 2
    assert searched == [not options]


def test_the_server_warns_if_other_machines_can_use_it(place: Path) -> None:
    with running(place / "model", "--host", "0.0.0.0") as (process, _):
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert code == 0
    assert err.startswith("warning: ")
    assert "0.0.0.0" in err


@pytest.mark.parametrize("option", ["--max-upload-mb", "--max-padded-s"])
def test_infinite_sizes_are_rejected(tmp_path: Path, call: Output, option: str) -> None:
    code, _, err = call("serve", tmp_path, option, "inf")
    assert (code, f"{option} is inf; " in err) == (2, True)


def test_wrong_arguments_are_rejected(
    place: Path, tmp_path: Path, call: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = call("serve", place / "model", "--port", taken.getsockname()[1])
    assert code == 2
    assert "--port" in err
    code, _, err = call("serve", place / "model", "--host", "no.such.host.invalid")
    assert code == 2
    assert "no.such.host.invalid" in err
    (tmp_path / "keys").write_text("\n")
    code, _, err = call("serve", place / "model", "--api-key-file", tmp_path / "keys")
    assert code == 2
    assert str(tmp_path / "keys") in err
    (tmp_path / "keys").write_text("first\na long secret\n")
    code, _, err = call("serve", place / "model", "--api-key-file", tmp_path / "keys")
    assert code == 2
    assert "one key per line" in err
    assert "secret" not in err
    assert call("serve", tmp_path)[0] == 2
    assert call("serve", place / "model", "--api-key", "")[0] == 2
    for origin in ("*", "example.com", "https://example.com/page", "https://[::1"):
        code, _, err = call("serve", place / "model", "--allow-origin", origin)
        assert code == 2
        assert f"--allow-origin {origin} " in err
    for blank in ("", " "):
        monkeypatch.setenv("TINY_AUDIO_API_KEY", blank)
        code, _, err = call("serve", place / "model")
        assert code == 2
        assert "TINY_AUDIO_API_KEY" in err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_key_file_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes("first\r\nsecond\r\n".encode(encoding))
    assert _keys_in(tmp_path / "keys") == ["first", "second"]
