"""``tiny-audio serve``: serve a model over HTTP."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from tiny_audio.commands.exit_codes import STOPPED
from tiny_audio.config import UserError
from tiny_audio.export.load import load_model, model_folder
from tiny_audio.inference.hotwords_file import read_hotwords
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.prompt import Context
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.text_files import decoded

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    model: Path,
    *,
    host: str,
    port: int,
    api_keys: Sequence[str],
    api_key_file: Path | None,
    allowed_origins: Sequence[str],
    model_name: str | None,
    max_padded_s: float,
    max_upload_mb: float,
    max_duration_s: float,
    max_requests: int,
    max_streams: int,
    request_timeout_s: float,
    filter_hallucinations: bool,
    search_cuts: bool,
    hotwords: Path | None,
    log_transcripts: bool,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C.

    Raises:
        UserError: a package of the extra ``serve`` is missing, the model cannot be loaded, or the address or an option
            cannot be used.
    """
    try:
        from tiny_audio.serving.app import create_app
        from tiny_audio.serving.engine import Engine
        from tiny_audio.serving.options import MEGABYTE, Limits, LiveLimits, Options
        from tiny_audio.serving.page.card import read_card
        from tiny_audio.serving.server import Server, listen
    except ImportError as error:
        raise UserError(
            f"tiny-audio serve needs the package {error.name}; install it with: pip install 'tiny-audio[serve]'"
        ) from error
    for option, number in (("max-padded-s", max_padded_s), ("max-upload-mb", max_upload_mb)):
        if math.isinf(number):
            raise UserError(f"--{option} is {number}; give a finite number")
    folder = model_folder(model)
    options = Options(
        model_name=model_name or _name_of(folder),
        created=int((folder / "config.json").stat().st_mtime),
        api_keys=(*api_keys, *_keys_in(api_key_file)),
        allowed_origins=tuple(allowed_origins),
        host=host,
        hotwords=() if hotwords is None else read_hotwords(hotwords),
        log_transcripts=log_transcripts,
        limits=Limits(
            max_upload_bytes=round(max_upload_mb * MEGABYTE),
            max_duration_s=max_duration_s,
            max_audio_s=max(Limits.max_audio_s, max_duration_s),
            max_requests=max_requests,
            request_timeout_s=request_timeout_s,
        ),
        live=LiveLimits(max_streams=max_streams),
    )
    # An empty key or an empty TINY_AUDIO_API_KEY is probably a mistake, and must not open the server to everybody.
    if not all(options.api_keys) or ("TINY_AUDIO_API_KEY" in os.environ and not options.api_keys):
        raise UserError(
            "an API key is empty; give a key. To allow requests without a key, remove --api-key and unset "
            "TINY_AUDIO_API_KEY"
        )
    _check_origins(options.allowed_origins)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    with listen(host, port) as listening:
        loaded, tokenizer = load_model(folder)
        transcriber = Transcriber(
            loaded.to(device_of("auto")),
            tokenizer,
            max_padded_s=max_padded_s,
            filter_hallucinations=filter_hallucinations,
            search_cuts=search_cuts,
        )
        for warning in transcriber.encode_context(Context.of(options.hotwords)).warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if host not in _LOOPBACK and not options.api_keys:
            print(
                f"warning: no API key is set, so everyone who can reach {host} can use this server; add --api-key",
                file=sys.stderr,
            )
        with Engine(transcriber) as engine:
            address = f"[{host}]" if ":" in host else host
            message = f"serving {options.model_name} at http://{address}:{listening.getsockname()[1]} (Ctrl-C stops it)"
            app = create_app(engine, options, read_card(options.model_name, folder, loaded))
            Server(app, lambda: print(message, flush=True), _end_at_once).serve_until_signal(listening)


def _check_origins(origins: Sequence[str]) -> None:
    for origin in origins:
        if origin != "null" and not _is_origin(origin):
            raise UserError(
                f"--allow-origin {origin} is not an origin; give the scheme and the host, such as https://example.com"
            )


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:  # such as `http://[::1`, where a bracket is not closed
        return False
    return bool(parts.scheme and parts.netloc and parts.path in ("", "/"))


def _end_at_once() -> NoReturn:
    """End the process at once. A normal exit would wait until the running batch is finished."""
    print("stopped at once; running requests were ended", file=sys.stderr, flush=True)
    os._exit(STOPPED)


def _name_of(folder: Path) -> str:
    """Return the name of the model's folder. For the folder ``model`` of a run, return the name of the run's folder."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def _keys_in(path: Path | None) -> list[str]:
    """Return the keys in a file, one per line."""
    if path is None:
        return []
    try:
        lines = decoded(path.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the API keys cannot be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise UserError(f"{path}: there is no API key; write one per line")
    # A line with several words is probably a line with several keys.
    if any(len(key.split()) > 1 for key in keys):
        raise UserError(f"{path}: a line has several words; write one key per line, and use keys without spaces")
    return keys
