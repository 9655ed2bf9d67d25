"""The one prompt builder: training and inference both use what it returns, so they cannot drift apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import field_validator

from tiny_audio.config import Config, UserError

AUDIO = "{audio}"
# A private-use character: no template strips it, no transcript holds it.
_SENTINEL = "\ue000"


class PromptConfig(Config):
    """What the decoder reads around the audio."""

    system: str | None = None
    """System message; None sends none. ``/no_think /system_override`` keeps SmolLM3 from thinking and from putting
    today's date into its header."""
    user: str = AUDIO
    """User message; ``{audio}`` stands where the audio embeddings go."""

    @field_validator("user")
    @classmethod
    def _check_audio(cls, user: str) -> str:
        if user.count(AUDIO) != 1:
            raise ValueError(f"must contain {AUDIO} exactly once, and contains it {user.count(AUDIO)} times: {user!r}")
        return user


@dataclass(frozen=True)
class Prompt:
    """Token ids on both sides of the audio, and the one that ends a transcript."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    end_id: int


def build_prompt(config: PromptConfig, tokenizer: Any) -> Prompt:
    """Render the messages with the tokenizer's chat template, or as plain text where it has none.

    Raises:
        UserError: the tokenizer has no end token, or its template loses the user's message.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "prompt: the tokenizer has no end-of-text token, so generation could not stop; use one that has"
        )
    user = config.user.replace(AUDIO, _SENTINEL)
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": user}]
        if config.system is not None:
            messages.insert(0, {"role": "system", "content": config.system})
        from jinja2 import TemplateError

        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except TemplateError as error:
            raise UserError(
                f"prompt: the chat template refuses the messages: {error}; change prompt.system or "
                "prompt.user, or use another checkpoint"
            ) from error
    else:
        text = "".join(part for part in (tokenizer.bos_token, config.system, user) if part)
    if text.count(_SENTINEL) != 1:
        raise UserError(
            f"prompt: the chat template shows the user message {text.count(_SENTINEL)} times, so the audio has no "
            f"single place; rendered: {text.replace(_SENTINEL, AUDIO)!r}"
        )
    prefix, suffix = (tuple(tokenizer.encode(part, add_special_tokens=False)) for part in text.split(_SENTINEL))
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in prefix + suffix:
        raise UserError(
            f"prompt: the tokenizer has no token for a part of {text.replace(_SENTINEL, AUDIO)!r}; one trained on the "
            "transcripts knows their characters only: leave prompt.system and other words out"
        )
    return Prompt(prefix, suffix, tokenizer.eos_token_id)
