"""Biases on attention scores that follow from distances: ALiBi, the buckets of T5, and FIRE.

Each maps distances (q, k) or (b, q, k), query position − key position, to a bias (1 or b, heads, q, k), and goes into
`MultiHeadAttention(score_bias=…)`. They need no rotary (rotary=None), and read further than they were trained: ALiBi
and T5 because far keys are alike, FIRE because distances count relative to the query's position.

One whose bias follows from the single distance says so (`of_distance_alone`): where rows are counted, it is asked once
for every lag instead of for every pair, and a causal ALiBi is a bias of the keys (models/kernels/key_bias.py).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cubelet.common.checks import check_at_least
from cubelet.models.linear import Linear


def at_least_float32(x: Tensor) -> Tensor:
    """x, from half precision to float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def spread_lags(values: Tensor, queries: int, keys: int) -> Tensor:
    """Values of the lags keys − 1, keys − 2, …, 1 − queries, (…, n), spread over pairs: (…, queries, keys).

    The last query stands at the last key.

    Example:
        >>> spread_lags(torch.tensor([2, 1, 0, -1]), queries=2, keys=3)
        tensor([[ 1,  0, -1],
                [ 2,  1,  0]])
    """
    return values.unfold(-1, keys, 1).flip(-2)  # (…, queries, keys)


class ALiBi(nn.Module):
    """−slope·|distance|, slopes 2^(−8/h), 2^(−16/h), … (Press et al. 2021, https://arxiv.org/abs/2108.12409).

    Args:
        heads: number of heads; where it is no power of two, slopes of the next smaller one come first, and then every
            other slope of the next larger one, as in the paper's code.
        learned: learn the logarithms of the slopes.

    Example:
        >>> ALiBi(heads=2)(torch.tensor([[0, -1], [1, 0]]))[0, 0]
        tensor([[ 0.0000, -0.0625],
                [-0.0625,  0.0000]])
    """

    of_distance_alone = True

    def __init__(self, heads: int, *, learned: bool = False) -> None:
        super().__init__()
        check_at_least("heads", heads, 1)
        self.heads = heads
        values = self._initial()
        if learned:
            self.log_slopes = nn.Parameter(values)
        else:
            self.register_buffer("log_slopes", values, persistent=False)

    def _initial(self) -> Tensor:
        power = 1 << (self.heads.bit_length() - 1)
        exponents = [8 * (i + 1) / power for i in range(power)]
        exponents += [4 * (2 * i + 1) / power for i in range(self.heads - power)]
        return torch.tensor(exponents) * -math.log(2)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The paper's slopes."""
        self.log_slopes.copy_(self._initial())

    def forward(self, distances: Tensor) -> Tensor:
        """Distances (q, k) or (b, q, k) → bias (1 or b, heads, q, k) float32."""
        distances = distances if distances.ndim == 3 else distances[None]
        return -distances.abs()[:, None] * at_least_float32(self.log_slopes).exp()[:, None, None]  # (b, h, q, k)

    def of_keys(self, length: int) -> Tensor:
        """The bias of causal rows, each of which may be shifted by a constant: slope·j, (1, heads, length)."""
        rows = torch.arange(length, device=self.log_slopes.device)
        return (rows * at_least_float32(self.log_slopes).exp()[:, None])[None]


class T5Bias(nn.Module):
    """A learned number per bucket of distances and head (Raffel et al. 2019, https://arxiv.org/abs/1910.10683).

    Half of the buckets hold one distance each, the others grow by a constant factor up to `max_distance`; all beyond
    share the last.

    Args:
        heads: number of heads.
        buckets: number of buckets, at least 2.
        max_distance: where the last bucket begins, above buckets / 2.
        bidirectional: half of the buckets are for keys behind the query.

    Raises:
        ValueError: numbers that leave no room.

    Example:
        >>> T5Bias(heads=2)(torch.tensor([[0, -1], [1, 0]])).shape
        torch.Size([1, 2, 2, 2])
    """

    of_distance_alone = True

    def __init__(self, heads: int, *, buckets: int = 32, max_distance: int = 128, bidirectional: bool = False) -> None:
        super().__init__()
        own = buckets // 2 if bidirectional else buckets
        if own < 2 or max_distance <= own // 2:
            raise ValueError(f"buckets {buckets} and max_distance {max_distance} leave no room for growing buckets")
        self.buckets, self.max_distance, self.bidirectional = buckets, max_distance, bidirectional
        self.table = nn.Parameter(torch.zeros(buckets, heads))

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.table)

    def bucket(self, distances: Tensor) -> Tensor:
        """Distances (any shape) → indices of buckets."""
        own = self.buckets // 2 if self.bidirectional else self.buckets
        offset = (distances < 0).long() * own if self.bidirectional else 0
        far = distances.abs() if self.bidirectional else distances.clamp(min=0)
        exact = own // 2
        grown = torch.log(far.clamp(min=1).float() / exact) / math.log(self.max_distance / exact) * (own - exact)
        return offset + torch.where(far < exact, far, (exact + grown.long()).clamp(max=own - 1))

    def forward(self, distances: Tensor) -> Tensor:
        """Distances (q, k) or (b, q, k) → bias (1 or b, heads, q, k)."""
        bias = self.table[self.bucket(distances if distances.ndim == 3 else distances[None])]  # (b, q, k, h)
        return bias.movedim(-1, 1)  # (b, h, q, k)


class FIRE(nn.Module):
    """f(ψ(distance) / ψ(max(L, i))) with ψ(x) = log(1 + c·x), f a small network (Li et al. 2023,
    https://arxiv.org/abs/2310.04418).

    Causal: i, the query's position, is the largest distance in its row. Keys behind the query count as distance 0.

    Args:
        heads: number of heads.
        width: hidden units of f.
        threshold: start of the learned L, in tokens: queries before it are not normalised by their own position.

    Example:
        >>> FIRE(heads=2)(torch.tensor([[0, -1], [1, 0]])).shape
        torch.Size([1, 2, 2, 2])
    """

    def __init__(self, heads: int, *, width: int = 32, threshold: float = 512.0) -> None:
        super().__init__()
        check_at_least("width", width, 1)
        self.initial_threshold = threshold
        spread = [(2 * unit + 1) / width - 1 for unit in range(width)]  # kinks of f all over its range
        self.hidden, self.out = Linear(1, width, bias_value=spread), Linear(width, heads)
        self.log_c = nn.Parameter(torch.tensor(math.log(0.1)))
        self.threshold_scale = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """c = 0.1, L at its start, f drawn again."""
        self.hidden.reset_parameters()
        self.out.reset_parameters()
        self.log_c.fill_(math.log(0.1))
        self.threshold_scale.fill_(1.0)

    def forward(self, distances: Tensor, query_positions: Tensor | None = None) -> Tensor:
        """Distances (q, k) or (b, q, k), positions of the queries (q,) or (b, q) → bias (1 or b, heads, q, k)."""
        weights, bias = at_least_float32(self.hidden.weight), at_least_float32(self.hidden.bias)
        out, shift = at_least_float32(self.out.weight), at_least_float32(self.out.bias)
        distances = (distances if distances.ndim == 3 else distances[None]).clamp(min=0).to(out.dtype)  # (b, q, k)
        reach = distances.amax(-1) if query_positions is None else query_positions.to(out.dtype)
        reach = torch.maximum(reach, (self.threshold_scale * self.initial_threshold).abs().to(out.dtype))[..., None]
        c = at_least_float32(self.log_c).exp()
        ratio = torch.log1p(c * distances) / torch.log1p(c * reach)
        hidden = F.linear(ratio[..., None], weights, bias).relu()  # (b, q, k, width)
        return F.linear(hidden, out, shift).movedim(-1, 1)  # (b, h, q, k)
