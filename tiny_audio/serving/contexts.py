"""Turn the prompt, keywords and language of a request into the context that the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiny_audio.config import UserError
from tiny_audio.model.prompt import Context, hotwords_in
from tiny_audio.serving.engine import Engine
from tiny_audio.serving.errors import ApiError

MAX_CHARACTERS = 20_000
"""Maximum number of characters in a request's prompt and keywords together. Encoding millions of characters would delay
other requests."""


@dataclass(frozen=True)
class RequestContext:
    """What the model reads about the recording of a request."""

    context: Context | None
    """None if the model reads only the recording."""
    left_out: tuple[str, ...] = ()
    """Hotwords of the request that do not fit into a context, or that the model's tokenizer cannot encode."""


def context_of(
    engine: Engine,
    hotwords: Sequence[str] = (),
    *,
    prompt: str | None = None,
    keywords: Sequence[str] = (),
    language: str | None = None,
) -> RequestContext:
    """Return the context of a recording.

    A model writes worse texts if it reads a kind of context that it was not trained with. Many clients always send a
    prompt and a language. Therefore the prompt, the keywords and the language of a request are used only if the model
    was trained with that kind of context.

    Args:
        engine: the engine with the model.
        hotwords: the server's own hotwords for all recordings. They are used even if the model was not trained with
            hotwords.
        prompt: used as hotwords if the model was trained with hotwords. Other models use it as previous text if they
            were trained with previous text.
        keywords: further hotwords.
        language: code of the language.

    Raises:
        ApiError: the texts are too long, the model does not accept the language, or a text contains a special token of
            the decoder.
    """
    size = len(prompt or "") + sum(map(len, keywords))
    if size > MAX_CHARACTERS:
        raise ApiError(
            400,
            f"prompt and keywords have {size:,} characters; send at most {MAX_CHARACTERS:,}",
            code="context_too_long",
        )
    settings = engine.context_settings
    own = (*keywords, *hotwords_in(prompt or "")) if settings.hotwords else ()
    previous_text = prompt if settings.previous_text and not settings.hotwords else None
    context = Context.of((*hotwords, *own), previous_text, language if settings.languages else None)
    try:
        left_out = frozenset(engine.encode_context(context).left_out)
    except UserError as error:
        raise ApiError(400, str(error), code="context_not_usable") from error
    requested = Context.of(own) or Context()
    return RequestContext(context, tuple(word for word in requested.hotwords if word in left_out))
