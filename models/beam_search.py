"""Beam search: the likeliest continuations, several kept at a time; an ended beam stays, extended by padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from cubelet.common.checks import check_at_least

from .generation import Generation, Prompts, new_reader

if TYPE_CHECKING:
    from .decoder import Decoder


@torch.no_grad()
def beam_search(
    self: Decoder,
    tokens: Prompts,
    max_new_tokens: int,
    *,
    beams: int = 4,
    length_penalty: float = 1.0,
    stop_tokens: int | Sequence[int] = (),
    pad_token: int = 0,
    num_return_sequences: int = 1,
    **reading: Any,
) -> Generation:
    """The continuations of highest log-probability / length^length_penalty that a beam finds.

    Args:
        tokens, max_new_tokens, stop_tokens, pad_token: see `generate`.
        beams: continuations kept per prompt.
        length_penalty: 0 compares sums of log-probabilities, 1 their means; larger prefers longer ones.
        num_return_sequences: how many of the beams to return, best first.
        reading: `context`, `context_mask`, `key_mask`, … as in `generate`.

    Returns:
        `Generation` of b·num_return_sequences rows; the cache is None.

    Example:
        >>> from cubelet.models import Decoder
        >>> Decoder(10, 32, 1, 4).beam_search([[1], [2, 3]], 4, beams=3, stop_tokens=9).tokens.shape
        torch.Size([2, 6])
    """
    check_at_least("beams", beams, 1)
    if not 1 <= num_return_sequences <= beams:
        raise ValueError(f"num_return_sequences {num_return_sequences} must lie in 1 … beams {beams}")
    was_training = self.training
    self.eval()
    try:
        reader = new_reader(self, tokens, max_new_tokens, **reading)
        prompt, device = reader.tokens, reader.tokens.device
        batch = prompt.shape[0]
        stops = torch.tensor([stop_tokens] if isinstance(stop_tokens, int) else list(stop_tokens), device=device)
        first = torch.arange(batch, device=device)[:, None] * beams  # (b, 1), each prompt's first beam
        sums = torch.full((batch, beams), -torch.inf, device=device)
        sums[:, 0] = 0.0  # all beams of a prompt are equal at first: only one may branch
        lengths = torch.zeros(batch, beams, dtype=torch.long, device=device)
        ended = torch.zeros(batch, beams, dtype=torch.bool, device=device)
        scores = torch.zeros(batch, beams, 0, device=device)
        for step in range(max_new_tokens):
            logits = reader.logits()
            if logits.isnan().any():
                raise ValueError("the logits are NaN: the weights are damaged, or the input is NaN")
            if step == 0:
                repeat = torch.arange(batch, device=device).repeat_interleave(beams)
                reader.select(repeat)
                logits = logits[repeat]
            steps = logits.log_softmax(-1).unflatten(0, (batch, beams))  # (b, k, vocab)
            only_pad = torch.full_like(steps[0, 0], -torch.inf)
            only_pad[pad_token] = 0.0
            steps = torch.where(ended[..., None], only_pad, steps)
            grown = lengths + ~ended  # (b, k)
            ranks = (sums[..., None] + steps) / grown[..., None].clamp(min=1) ** length_penalty
            best = ranks.flatten(1).topk(beams).indices  # (b, k)
            beam, token = best // steps.shape[-1], best % steps.shape[-1]
            gained = steps.flatten(1).gather(1, best)
            sums = sums.gather(1, beam) + gained
            lengths, ended = grown.gather(1, beam), ended.gather(1, beam)
            scores = torch.cat([scores.gather(1, beam[..., None].expand_as(scores)), gained[..., None]], dim=-1)
            reader.select((first + beam).flatten())
            reader.append(token.flatten())
            ended = ended | torch.isin(token, stops)
            if bool(ended.all()):
                break
    finally:
        self.train(was_training)
    if max_new_tokens == 0:
        return Generation(prompt, prompt.new_zeros(batch), torch.zeros(batch, 0, device=device))
    order = (sums / lengths.clamp(min=1) ** length_penalty).argsort(dim=1, descending=True, stable=True)
    rows = (first + order[:, :num_return_sequences]).flatten()
    return Generation(reader.tokens[rows], lengths.flatten()[rows], scores.flatten(0, 1)[rows])
