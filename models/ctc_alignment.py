"""When each token of a text was said: the likeliest CTC path of a known text (forced alignment).

The path runs over the text with a blank before, between and behind its tokens; every step stays, goes on by one, or
skips a blank between two different tokens (Graves et al. 2006, https://www.cs.toronto.edu/~graves/icml_2006.pdf).

Shapes: b batch, s states of the encoder, t tokens, n = 2t + 1 tokens and blanks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .transcriber import BLANK


@torch.no_grad()
def align_ctc(log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each token lies on the likeliest path: first state, and the state behind its last.

    Args:
        log_probs: (b, s, vocab) log-probabilities of CTC's tokens.
        lengths: (b,) states of each row.
        tokens: (b, t) texts, padded with 0. token_lengths: (b,).

    Returns:
        (b, t) starts and (b, t) ends, int64; −1 on padding and in rows that are too short for their text.

    Example:
        >>> log_probs = torch.full((1, 5, 4), -9.0)
        >>> log_probs[0, torch.arange(5), torch.tensor([0, 3, 3, 0, 3])] = 0.0
        >>> align_ctc(log_probs, torch.tensor([5]), torch.tensor([[3, 3]]), torch.tensor([2]))
        (tensor([[1, 4]]), tensor([[3, 5]]))
    """
    batch, size = tokens.shape
    device = log_probs.device
    labels = torch.full((batch, 2 * size + 1), BLANK, device=device)  # (b, n)
    labels[:, 1::2] = tokens
    different = F.pad(labels[:, 2:] != labels[:, :-2], (2, 0), value=False)  # (b, n), skipping a blank is allowed
    skips = different & (labels != BLANK)
    emissions = log_probs.gather(2, labels[:, None].expand(-1, log_probs.shape[1], -1))  # (b, s, n)
    score = torch.full(labels.shape, -torch.inf, device=device)
    score[:, :2] = emissions[:, 0, :2]
    back = torch.zeros(log_probs.shape[1], *labels.shape, dtype=torch.int64, device=device)  # (s, b, n) steps back
    for place in range(1, log_probs.shape[1]):
        one = F.pad(score, (1, 0), value=-torch.inf)[:, :-1]
        two = F.pad(score, (2, 0), value=-torch.inf)[:, :-2].masked_fill(~skips, -torch.inf)
        best, step = torch.stack([score, one, two]).max(0)
        # Rows that have ended keep their scores.
        score = torch.where((place < lengths)[:, None], best + emissions[:, place], score)
        back[place] = step
    ends = torch.stack([2 * token_lengths, (2 * token_lengths - 1).clamp(min=0)], 1)  # (b, 2): blank, or last token
    final, which = score.gather(1, ends).max(1)
    label = ends.gather(1, which[:, None])[:, 0]  # (b,)
    path = torch.full((batch, log_probs.shape[1]), -1, device=device)  # (b, s)
    for place in reversed(range(log_probs.shape[1])):
        inside = place < lengths
        path[:, place] = torch.where(inside, label, -1)
        label = label - torch.where(inside, back[place].gather(1, label[:, None])[:, 0], 0)
    found = (token_lengths > 0) & final.isfinite()
    here = path[:, :, None] == 2 * torch.arange(size, device=device) + 1  # (b, s, t)
    known = found[:, None] & (torch.arange(size, device=device) < token_lengths[:, None])  # (b, t)
    starts = here.int().argmax(1).masked_fill(~known, -1)
    return starts, (starts + here.sum(1)).masked_fill(~known, -1)
