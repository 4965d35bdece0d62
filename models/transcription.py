"""From a transcriber's states to texts: by CTC, by attention, or by both together.

- Every decoding is bounded by a row's number of states: CTC cannot say more, and attention must not loop.
- CTC has a veto: where its likeliest path is all blank, nothing was said, and attention, which always says something,
  is not asked.
- `joint` scores the texts of both heads by both heads and takes the best (rescoring, as in
  https://arxiv.org/abs/2102.01547). A loop of attention is a text that CTC finds impossible.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cubelet.common.checks import check_choice

from .encoder import EncoderOutput
from .transcriber import BLANK, BOS, EOS, IGNORE, Transcriber, teacher_forcing

Method = Literal["joint", "attention", "ctc"]


class Transcripts(NamedTuple):
    """Texts of a batch as lists of tokens, without blanks, BOS and EOS.

    Attributes:
        best: by the method asked for.
        attention: of the decoder alone (empty lists for the method `ctc`).
        ctc: of the CTC head alone.
    """

    best: list[list[int]]
    attention: list[list[int]]
    ctc: list[list[int]]


@torch.no_grad()
def transcribe(
    model: Transcriber, output: EncoderOutput, method: Method = "joint", *, ctc_weight: float = 0.5
) -> Transcripts:
    """Return the texts of encoded waves.

    Args:
        model: in evaluation mode.
        output: of `model.encode`.
        method: `joint`, `attention` or `ctc`.
        ctc_weight: of CTC's log-probability in `joint`, 0 … 1; at 0 CTC has no veto either.

    Raises:
        ValueError: an unknown method.
    """
    check_choice("method", method, Method)
    log_probs = model.ctc_log_probs(output.states)  # (b, s, vocab)
    by_ctc = greedy_ctc(log_probs, output.lengths)
    if method == "ctc":
        return Transcripts(by_ctc, [[] for _ in by_ctc], by_ctc)
    asked = [row for row, text in enumerate(by_ctc) if text or ctc_weight == 0]
    by_attention: list[list[int]] = [[] for _ in by_ctc]
    if asked:
        part = select_rows(output, asked)
        texts = greedy_attention(model, part)
        for row, text in zip(asked, texts, strict=True):
            by_attention[row] = text
    best = list(by_attention)
    if method == "joint" and ctc_weight > 0:
        split = [row for row in asked if by_attention[row] != by_ctc[row]]
        if split:
            part, probs = select_rows(output, split), log_probs[split]
            scores = [
                score_texts(model, part, probs, [texts[row] for row in split], ctc_weight)
                for texts in (by_attention, by_ctc)
            ]
            for place, row in enumerate(split):
                if float(scores[1][place]) > float(scores[0][place]):
                    best[row] = by_ctc[row]
    return Transcripts(best, by_attention, by_ctc)


def select_rows(output: EncoderOutput, rows: list[int]) -> EncoderOutput:
    """Return some rows of an encoder's output, without columns that are padding in all of them."""
    if len(rows) == len(output.states):
        return output
    index = torch.tensor(rows, device=output.states.device)
    mask = output.key_mask[index]
    longest = int(mask.sum(-1).max())
    return EncoderOutput(output.states[index, :longest], mask[:, :longest], output.cost)


def greedy_ctc(log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
    """Return the texts of the likeliest path: its tokens without repetitions, then without blanks.

    Args:
        log_probs: (b, s, vocab). lengths: (b,) states of each row.
    """
    path = log_probs.argmax(-1)  # (b, s)
    inside = torch.arange(path.shape[1], device=path.device) < lengths[:, None]
    new = path != F.pad(path, (1, 0), value=BLANK)[:, :-1]
    kept = (inside & new & (path > EOS)).cpu()
    return [row[keep].tolist() for row, keep in zip(path.cpu(), kept, strict=True)]


def greedy_attention(model: Transcriber, output: EncoderOutput) -> list[list[int]]:
    """Return the texts that take the decoder's likeliest token at each step, up to EOS or a row's number of states."""
    states, mask, limits = model.context(output), output.key_mask, output.lengths
    rows, longest = states.shape[0], int(limits.max())
    cache = model.decoder.new_cache(rows, longest + 1)
    said = torch.full((rows, 1), BOS, device=states.device)  # (b, 1)
    done = torch.zeros(rows, dtype=torch.bool, device=states.device)
    steps = []
    for step in range(longest):
        logits = model.decoder(said, states, context_mask=mask, cache=cache)[:, -1]  # (b, vocab)
        logits[:, [BLANK, BOS]] = -torch.inf
        token = logits.argmax(-1).masked_fill(done, EOS)  # (b,)
        steps.append(token)
        done = done | (token == EOS) | (step + 1 >= limits)
        if bool(done.all()):
            break
        said = token[:, None]
    texts = torch.stack(steps, 1).tolist()
    return [text[: text.index(EOS)] if EOS in text else text for text in texts]


def score_texts(
    model: Transcriber, output: EncoderOutput, log_probs: Tensor, texts: list[list[int]], ctc_weight: float
) -> Tensor:
    """Return (b,) the weighted log-probability of one text a row under both heads; −inf where CTC cannot say it."""
    lengths = torch.tensor([len(text) for text in texts], device=log_probs.device)
    tokens = torch.zeros(len(texts), max(1, int(lengths.max())), dtype=torch.int64, device=log_probs.device)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.int64)
    by_ctc = -F.ctc_loss(
        log_probs.transpose(0, 1), tokens, output.lengths, lengths, blank=BLANK, reduction="none"
    )  # (b,)
    return ctc_weight * by_ctc + (1 - ctc_weight) * attention_scores(model, output, tokens, lengths)


def attention_scores(model: Transcriber, output: EncoderOutput, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return (b,) the decoder's log-probability of texts tokens (b, t), EOS included."""
    inputs, targets = teacher_forcing(tokens, lengths)  # (b, t + 1)
    logits = model.decoder(inputs, model.context(output), key_mask=targets != IGNORE, context_mask=output.key_mask)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")  # (b, t + 1)
    return -losses.sum(-1)
