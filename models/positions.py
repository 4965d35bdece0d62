"""Which position each token has where nobody says so: counted, begun again, or drawn at random in training."""

from collections.abc import Sequence

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


def restart_positions(tokens: Tensor, counted: Tensor | None, restart_tokens: Sequence[int]) -> Tensor:
    """Positions that start again at 0 with each of some tokens: (b, s) int64.

    So tokens that stand alike behind two separators share a position, as in the position coupling of Cho et al. 2024
    (https://arxiv.org/abs/2405.20671), which numbers tokens by hand, and the digits of McLeish et al. 2024
    (https://arxiv.org/abs/2405.17399).

    Args:
        tokens: (b, s) integers.
        counted: (s,) or (b, s) positions without restarts, or None for 0, 1, 2, …
        restart_tokens: the tokens.

    Example:
        >>> restart_positions(torch.tensor([[5, 6, 9, 5, 6, 9]]), None, [9]).tolist()
        [[0, 1, 0, 1, 2, 0]]
    """
    rows = torch.arange(tokens.shape[1], device=tokens.device)
    starts = tokens == restart_tokens[0]
    for token in restart_tokens[1:]:  # a table would be a buffer to keep, and to copy to the device
        starts = starts | (tokens == token)
    last = torch.where(starts, rows, -1).cummax(1).values  # (b, s)
    counted = rows if counted is None else counted
    # Both count from a start, and the later start is the one with the smaller count.
    return torch.where(last >= 0, torch.minimum(counted, rows - last), counted)
