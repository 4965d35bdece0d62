"""Which position each token has where nobody says so: counted, begun again, or drawn at random in training."""

from collections.abc import Mapping

import torch
from torch import Tensor


def random_positions(length: int, limit: int, device: torch.device) -> Tensor:
    """A sorted random subset of 0…n−1 with n drawn from length…limit, (length,) int64, from torch's generator of this
    device.

    Ruoss et al. 2023 (https://arxiv.org/abs/2305.16843), so that in training every distance below `limit` is met. They
    draw from the whole range, where neighbours hardly ever stand one apart; in use they always do, and a model may
    answer rightly in training and wrongly at 0, 1, 2, … (docs/compare.md). Here every density is met, too.

    Raises:
        ValueError: fewer positions than tokens.
    """
    if length > limit:
        raise ValueError(f"position_range {limit} has no room for {length} tokens; make it longer")
    places = torch.arange(limit, device=device)
    end = length + (torch.rand((), device=device) * (limit - length + 1)).long()  # stays on the device
    return (torch.rand(limit, device=device) - (places >= end).float()).topk(length).indices.sort().values


def restart_positions(
    tokens: Tensor, counted: Tensor | None, restart_tokens: Mapping[int, int], first: int = 0
) -> Tensor:
    """Positions that start again with each of some tokens: (b, s) int64.

    So tokens that stand alike behind two separators share a position, as in the position coupling of Cho et al. 2024
    (https://arxiv.org/abs/2405.20671), which numbers tokens by hand, and the digits of McLeish et al. 2024
    (https://arxiv.org/abs/2405.17399).

    Args:
        tokens: (b, s) integers.
        counted: (s,) or (b, s) positions without restarts, from `first` on, or None for first, first + 1, …
        restart_tokens: {token: the position it has itself}.
        first: position of a row's first token.

    Example:
        >>> restart_positions(torch.tensor([[5, 6, 9, 5, 6, 9]]), None, {9: 0}).tolist()
        [[0, 1, 0, 1, 2, 0]]
    """
    rows = torch.arange(tokens.shape[1], device=tokens.device)
    counted = rows + first if counted is None else counted
    starts, own = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens)
    for token, position in restart_tokens.items():  # a table would be a buffer to keep, and to copy to the device
        same = tokens == token
        starts, own = starts | same, own + same * position
    last = torch.where(starts, rows, -1).cummax(1).values  # (b, s) the column of the last of them
    begun = rows - (counted - first)  # the column where counting began: of a document, of a row behind its padding
    own = own.gather(1, last.clamp(min=0))
    return torch.where((last >= 0) & (last >= begun), rows - last + own, counted)
