"""Run a language model to check whether it meets the requirements of a decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tiny_audio.config import UserError, first_line
from tiny_audio.decoders._causal_lm import CausalLMDecoder

_LONG, _SHORT = 6, 3
"""Number of real positions of the first and the second row in the test batch."""
_PADDING = 10.0
"""Value of the embeddings in the padding, relative to the root mean square of the token embeddings."""


@torch.no_grad()
def probe(decoder: CausalLMDecoder, name: str) -> None:
    """Reject a model that does more with token ids than look up embeddings, is not causal, or depends on padding.

    Some causal LMs of transformers accept an attention mask but ignore it in some of their layers. Others have a
    recurrent state that padding changes. On the meta device, nothing is checked.

    Raises:
        UserError: the model does not meet a requirement.
    """
    weight = next(decoder.parameters())
    if weight.is_meta:
        return
    training = decoder.training
    decoder.eval()
    try:
        problem = _problem(decoder, weight.device)
    except Exception as error:  # the type of the error depends on the family
        problem = f"fails on embeddings in a padded batch: {type(error).__name__}: {first_line(error)}"
    finally:
        decoder.train(training)
    if problem:
        raise UserError(f"causal_lm: {name} {problem}; choose another family")


def _problem(decoder: CausalLMDecoder, device: torch.device) -> str | None:
    vocabulary = len(decoder.model.get_input_embeddings().weight)
    ids = torch.arange(2 * _LONG, device=device).reshape(2, _LONG) % vocabulary
    embeddings = decoder.embed(ids)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, _SHORT:] = False
    # Allowed difference, relative to the standard deviation of the logits. In half precision, rounding errors add up
    # over many layers, but changes caused by padding are still larger.
    allowed = 1e-3 if embeddings.dtype == torch.float32 else 0.3
    garbage = _PADDING * embeddings.float().pow(2).mean().sqrt().to(embeddings.dtype)

    def logits(rows: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = decoder(rows, mask, mask)
        return found.float()

    def differ(found: Tensor, wanted: Tensor) -> bool:
        return bool((found.float() - wanted).pow(2).mean().sqrt() > allowed * wanted.std())

    wanted = logits(embeddings, torch.ones_like(mask))
    if differ(decoder.model(input_ids=ids, use_cache=False).logits.flatten(0, 1), wanted):
        return "does more with token ids than look up embeddings"
    later = embeddings.clone()
    later[:, -1] = garbage
    # The decoder returns the logits of all positions in the mask as one sequence: [2 · _LONG, vocabulary] here.
    found = logits(later, torch.ones_like(mask)).view(2, _LONG, -1)
    if differ(found[:, :-1], wanted.view(2, _LONG, -1)[:, :-1]):
        return "is not causal: later positions change earlier logits"
    padded = embeddings.masked_fill(~mask[..., None], garbage)
    alone = wanted.view(2, _LONG, -1)[1, :_SHORT]
    if differ(logits(padded, mask)[_LONG:], alone):
        return "depends on the padding of a batch"
    # Roll the short row, so that its padding is on the left.
    rolled, left = padded.clone(), mask.clone()
    rolled[1], left[1] = padded[1].roll(_LONG - _SHORT, 0), mask[1].roll(_LONG - _SHORT)
    settings: dict[str, Any] = {
        "max_new_tokens": 1,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    settings |= {"eos_token_id": None, "pad_token_id": 0}
    (together,) = decoder.generate(rolled, left, **settings).logits
    if differ(together[1], alone[-1]):
        return "generates other tokens if its batch is padded on the left"
    return None
