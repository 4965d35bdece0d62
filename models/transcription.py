"""From a transcriber's states to texts: by CTC, by attention, or by both together.

- Every text is bounded by a row's number of states: CTC cannot say more, and attention must not loop.
- CTC has a veto: where its likeliest path is all blank, nothing was said, and attention, which always says something,
  is not asked.
- `joint` scores the texts of both heads by both heads and takes the best (rescoring, as in
  https://arxiv.org/abs/2102.01547); `beam` does so with several texts of the decoder. A loop of attention is a text
  that CTC finds impossible.
- Attention decodes with `Decoder.generate_with_details`: cached, the states projected once, rows that ended dropped.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cubelet.common.checks import check_choice

from .encoder import EncoderOutput, length_mask
from .transcriber import BLANK, BOS, EOS, IGNORE, Transcriber, teacher_forcing

Method = Literal["joint", "attention", "ctc", "beam"]
Texts = list[list[int]]


class Transcripts(NamedTuple):
    """Texts of a batch as lists of tokens, without blanks, BOS and EOS.

    Attributes:
        best: by the method asked for.
        attention: of the decoder alone (empty lists for the method `ctc`).
        ctc: of the CTC head alone.
    """

    best: Texts
    attention: Texts
    ctc: Texts


@torch.no_grad()
def transcribe(
    model: Transcriber,
    output: EncoderOutput,
    method: Method = "joint",
    *,
    ctc_weight: float = 0.5,
    beams: int = 4,
    veto: bool = True,
) -> Transcripts:
    """Return the texts of encoded waves.

    Args:
        model: in evaluation mode.
        output: of `model.encode`.
        method: `ctc` and `attention` take one head's likeliest tokens; `joint` and `beam` choose among the texts of
            both heads, with one or several of the decoder.
        ctc_weight: share of CTC's log-probability in that choice, 0 … 1.
        beams: texts of the decoder for `beam`.
        veto: whether attention is not asked where CTC hears nothing.

    Raises:
        ValueError: an unknown method, beams below 1.
    """
    check_choice("method", method, Method)
    log_probs = model.ctc_log_probs(output.states)  # (b, s, vocab)
    by_ctc = greedy_ctc(log_probs, output.lengths)
    asked = [row for row, text in enumerate(by_ctc) if text or not veto]
    if method == "ctc" or not asked:
        return Transcripts(by_ctc, [[] for _ in by_ctc], by_ctc)
    part = select_rows(output, asked)
    texts = attention_texts(model, part, beams) if method == "beam" else [greedy_attention(model, part)]
    by_attention: Texts = [[] for _ in by_ctc]
    best: Texts = [[] for _ in by_ctc]
    for place, row in enumerate(asked):
        by_attention[row] = best[row] = texts[0][place]
    if method != "attention":
        texts.append([by_ctc[row] for row in asked])
        for row, text in zip(asked, choose(model, part, log_probs[asked], texts, ctc_weight), strict=True):
            best[row] = text
    return Transcripts(best, by_attention, by_ctc)


def choose(
    model: Transcriber, output: EncoderOutput, log_probs: Tensor, candidates: list[Texts], ctc_weight: float
) -> Texts:
    """Return, for each row, the candidate that both heads together find likeliest; `candidates[i][row]` is a text."""
    chosen = list(candidates[0])
    unclear = [row for row in range(len(chosen)) if any(texts[row] != chosen[row] for texts in candidates)]
    if unclear:
        part, probs = select_rows(output, unclear), log_probs[unclear]
        scores = [
            score_texts(model, part, probs[:, : part.states.shape[1]], [texts[row] for row in unclear], ctc_weight)
            for texts in candidates
        ]
        for row, best in zip(unclear, torch.stack(scores).argmax(0).tolist(), strict=True):
            chosen[row] = candidates[best][row]
    return chosen


def select_rows(output: EncoderOutput, rows: list[int]) -> EncoderOutput:
    """Return some rows of an encoder's output, without columns that are padding in all of them."""
    if len(rows) == len(output.states):
        return output
    index = torch.tensor(rows, device=output.states.device)
    mask = output.key_mask[index]
    longest = int(mask.sum(-1).max())
    return EncoderOutput(output.states[index, :longest], mask[:, :longest], output.cost)


def pad_texts(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return texts as tokens (b, t ≥ 1), padded with 0, and their lengths (b,)."""
    longest = max(1, *(len(text) for text in texts))
    padded = [[*text, *[BLANK] * (longest - len(text))] for text in texts]
    return torch.tensor(padded, device=device), torch.tensor([len(text) for text in texts], device=device)


def greedy_ctc(log_probs: Tensor, lengths: Tensor) -> Texts:
    """Return the texts of the likeliest path: its tokens without repetitions, then without blanks.

    Args:
        log_probs: (b, s, vocab). lengths: (b,) states of each row.
    """
    path = log_probs.argmax(-1)  # (b, s)
    inside = length_mask(lengths, path.shape[1])  # (b, s)
    new = path != F.pad(path, (1, 0), value=BLANK)[:, :-1]
    kept = (inside & new & (path > EOS)).cpu()
    return [row[keep].tolist() for row, keep in zip(path.cpu(), kept, strict=True)]


def greedy_attention(model: Transcriber, output: EncoderOutput) -> Texts:
    """Return the texts that take the decoder's likeliest token at each step."""
    said = model.decoder.generate_with_details(
        torch.full((len(output.states), 1), BOS, device=output.states.device),
        int(output.lengths.max()),
        temperature=0.0,
        stop_tokens=EOS,
        pad_token=EOS,
        context=model.context(output),
        context_mask=output.key_mask,
        logits_hook=forbid_specials,
    )
    return read_texts(said.tokens[:, 1:], output.lengths)


def attention_texts(model: Transcriber, output: EncoderOutput, beams: int) -> list[Texts]:
    """Return the decoder's likeliest texts of each row, `beams` of them, best first: [beam][row]."""
    found = model.decoder.beam_search(
        torch.full((len(output.states), 1), BOS, device=output.states.device),
        int(output.lengths.max()),
        beams=beams,
        length_penalty=0.0,
        stop_tokens=EOS,
        pad_token=EOS,
        num_return_sequences=beams,
        context=model.context(output),
        context_mask=output.key_mask,
    )
    tokens = found.tokens[:, 1:].unflatten(0, (-1, beams))  # (b, beams, n)
    limits = output.lengths
    texts = [read_texts(tokens[:, beam], limits) for beam in range(beams)]
    ended = ((tokens == EOS) & length_mask(limits, tokens.shape[2])[:, None]).any(-1).all(-1)  # (b,)
    # Beams that went beyond their row's bound have crowded out others: such a row is searched alone, within its bound.
    for row in (~ended & (limits < int(limits.max()))).nonzero()[:, 0].tolist():
        for beam, alone in enumerate(attention_texts(model, select_rows(output, [row]), beams)):
            texts[beam][row] = alone[0]
    return texts


def forbid_specials(tokens: Tensor, logits: Tensor) -> Tensor:
    """Return logits (b, vocab) in which blank and BOS cannot be said."""
    logits = logits.clone()
    logits[:, [BLANK, BOS]] = -torch.inf
    return logits


def read_texts(tokens: Tensor, limits: Tensor) -> Texts:
    """Return tokens (b, n) up to EOS, of each row no more than its limit (b,), without specials."""
    return [
        [token for token in itertools.takewhile(lambda token: token != EOS, row[:limit]) if token > EOS]
        for row, limit in zip(tokens.tolist(), limits.tolist(), strict=True)
    ]


def score_texts(
    model: Transcriber, output: EncoderOutput, log_probs: Tensor, texts: Texts, ctc_weight: float
) -> Tensor:
    """Return (b,) the weighted log-probability of one text a row under both heads; −inf where CTC cannot say it."""
    tokens, lengths = pad_texts(texts, log_probs.device)
    by_attention = attention_scores(model, output, tokens, lengths)  # (b,)
    if ctc_weight == 0:  # 0 · ∞ is no number
        return by_attention
    losses = F.ctc_loss(log_probs.transpose(0, 1), tokens, output.lengths, lengths, blank=BLANK, reduction="none")
    return (1 - ctc_weight) * by_attention - ctc_weight * losses


def attention_scores(model: Transcriber, output: EncoderOutput, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return (b,) the decoder's log-probability of texts tokens (b, t), EOS included."""
    inputs, targets = teacher_forcing(tokens, lengths)  # (b, t + 1)
    logits = model.decoder(inputs, model.context(output), key_mask=targets != IGNORE, context_mask=output.key_mask)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")  # (b, t + 1)
    return -losses.sum(-1)
