"""MyelinatedBlock: several layers of which each token uses some, with a memory and shortcuts past the rest.

Inner layer l acts on a token if the token is alive there and its node gate is open:

    x ← x + alive_l · g_l · (layer_l(x) − x),

After a layer in which it was alive, a token jumps over 0, 1 or 2 of the next, and an impulse w_J · x₀ of the block's
input travels with a jump of length J > 0. Gates and jumps read x and a working memory: the mean over all tokens so far,
blended into the memory of the layer before by a learned gate. A gated MLP closes the block. Choices:

- Everything per token and causal: the memory is a prefix mean. Decisions are hard, with straight-through gradients;
  jumps are drawn with Gumbel noise in training and are the best in evaluation.
- "Alive" is a product of choices, alive_l = Σ_J alive_{l−1−J} · jump_{l−1−J},J, so static shapes, and gradients reach
  every choice. The layers themselves run for all tokens: keys and values have no holes for the cache, and what is
  saved is depth, not time on dense hardware.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import Attention, MultiHeadAttention
from ..cache import CacheGroup
from .gates import hard_choice, hard_gate, mean_over_tokens, over_budget
from .inputs import read_input
from .mlp import MLP, make_norm
from .residual import ResidualBlock

JUMPS = 3  # over 0, 1 or 2 layers


class PrefixSums:
    """Running sums for prefix means, one (b, 1, dims) per inner layer, and the number of tokens (b, 1, 1)."""

    def __init__(self, batch_size: int, layers: int, dims: int, device: Any, dtype: Any) -> None:
        self.sums = torch.zeros(layers, batch_size, 1, dims, device=device, dtype=dtype)
        self.counts = torch.zeros(layers, batch_size, 1, 1, device=device, dtype=dtype)
        self.length = 0

    def reorder(self, indices: Tensor) -> None:
        """Reorder along the batch."""
        self.sums, self.counts = self.sums[:, indices], self.counts[:, indices]


def prefix_mean(x: Tensor, real: Tensor | None, sums: PrefixSums | None, layer: int) -> Tensor:
    """Mean over the tokens up to each, x (b, s, d); real (b, s) bool leaves out padding; sums go on from a cache."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide)
    if real is None:
        count = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=wide)[None, :, None]
    else:
        total = total.masked_fill(~real[..., None], 0.0)
        count = real.to(wide).cumsum(1)[..., None]
    total = total.cumsum(1)
    if sums is not None:
        total, count = total + sums.sums[layer], count + sums.counts[layer]
        sums.sums[layer], sums.counts[layer] = total[:, -1:].detach(), count[:, -1:].detach()
    return (total / count.clamp(min=1.0)).to(x.dtype)


class MyelinatedBlock(nn.Module):
    """`layers` residual blocks with node gates, jumps, a working memory and a gated MLP; see the module's docstring.

    Args:
        layers: number of inner layers.
        closing_ratio: hidden width of the closing MLP over dims.
        budget: share of inner layers that a token may use for free, or None for no cost.
        budget_weight: weight of max(share − budget, 0)², returned as cost.
        others: see `ResidualBlock`; the inner layers are such blocks.
    """

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        attention: Callable[[int, int], Attention] = MultiHeadAttention,
        rotary: Callable[[int, int], nn.Module] | None = None,
        cross_attention: bool = False,
        norm: str = "rms",
        activation: str = "relu2",
        dropout: float = 0.0,
        mlp_ratio: float = 4,
        layers: int = 4,
        closing_ratio: float = 2,
        budget: float | None = None,
        budget_weight: float = 0.1,
    ) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"layers {layers} leaves nothing to jump over; use at least 2")
        if budget is not None and not 0.0 <= budget <= 1.0:
            raise ValueError(f"budget {budget} must lie in 0 … 1")
        self.dims, self.budget, self.budget_weight = dims, budget, budget_weight
        self.layers = nn.ModuleList(
            ResidualBlock(
                dims,
                heads,
                attention=attention,
                rotary=rotary,
                cross_attention=cross_attention,
                norm=norm,
                activation=activation,
                dropout=dropout,
                mlp_ratio=mlp_ratio,
            )
            for _ in range(layers)
        )
        # Per layer, from x and memory: its node gate (1) and its jump (3; nothing lies behind the last).
        self.deciders = nn.ModuleList(
            nn.Linear(2 * dims, 1 + (JUMPS if index < layers - 1 else 0)) for index in range(layers)
        )
        self.impulse = nn.Parameter(torch.empty(JUMPS - 1))
        self.memory_gate = nn.Parameter(torch.empty(layers - 1))
        self.closing_norm = make_norm(norm, dims)
        self.closing = MLP(dims, ratio=closing_ratio, activation=activation, dropout=dropout)
        self.closing_gate = nn.Linear(dims, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gates open, no jumps likely, no impulse."""
        for decider in self.deciders:
            assert isinstance(decider, nn.Linear)
            nn.init.normal_(decider.weight, std=0.1 * self.dims**-0.5)
            nn.init.zeros_(decider.bias)
            with torch.no_grad():
                decider.bias[:2] = 2.0  # the gate, and a jump over nothing
        nn.init.zeros_(self.impulse)
        nn.init.zeros_(self.memory_gate)
        nn.init.normal_(self.closing_gate.weight, std=self.dims**-0.5)
        nn.init.zeros_(self.closing_gate.bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: CacheGroup | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `ResidualBlock.forward`; the cost is the budget's penalty and that of the inner layers, or None."""
        y, used, _, cost = self._run(x, context, key_mask, context_mask, positions, cache)
        if self.budget is not None:
            owed = over_budget(mean_over_tokens(used, key_mask), self.budget, self.budget_weight)
            cost = owed if cost is None else cost + owed
        return y, cost

    @torch.no_grad()
    def statistics(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """For monitoring, computed anew: "nodes_on", the share of inner layers used, and "mean_jump": both 0-dim."""
        _, used, jumps, _ = self._run(x, context, key_mask, context_mask, positions, None)
        return {"nodes_on": mean_over_tokens(used, key_mask), "mean_jump": mean_over_tokens(jumps, key_mask)}

    def _run(
        self,
        x: Tensor,
        context: Tensor | None,
        key_mask: Tensor | None,
        context_mask: Tensor | None,
        positions: Tensor | None,
        cache: CacheGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Output, share of layers used (b, s), mean jump (b, s), cost of the inner layers."""
        count = len(self.layers)
        parts = [None] * (count + 1) if cache is None else cache.parts
        sums: Any = parts[-1]
        x = start = read_input(x, self.dims, key_mask, cache)
        real = None if key_mask is None else key_mask[:, key_mask.shape[1] - x.shape[1] :]
        arrivals: list[Tensor | None] = [torch.ones_like(x[..., :1])] + [None] * (count - 1)
        memory, used, jumped, cost = None, [], [], None
        for index, layer in enumerate(self.layers):
            y, more = layer(
                x, context, key_mask=key_mask, context_mask=context_mask, positions=positions, cache=parts[index]
            )
            cost = more if cost is None else cost if more is None else cost + more
            mean = prefix_mean(x, real, sums, index)
            if memory is None:
                memory = mean
            else:
                memory = torch.lerp(mean, memory, torch.sigmoid(self.memory_gate[index - 1]).to(mean.dtype))
            decision = self.deciders[index](torch.cat([x, memory], dim=-1))
            alive = arrivals[index]
            assert alive is not None
            use = alive * hard_gate(torch.sigmoid(decision[..., :1])).to(x.dtype)
            used.append(use)
            x = x + use * (y - x)
            if index < count - 1:
                jump = hard_choice(decision[..., 1:], self.training).to(x.dtype)
                for length in range(min(JUMPS, count - 1 - index)):
                    share = alive * jump[..., length : length + 1]
                    before = arrivals[index + 1 + length]
                    arrivals[index + 1 + length] = share if before is None else before + share
                x = x + alive * (jump[..., 1:] @ self.impulse.to(x.dtype))[..., None] * start
                jumped.append(alive * (jump[..., 1:2] + 2 * jump[..., 2:]))
        if sums is not None:
            sums.length += x.shape[1]
        h = self.closing_norm(x)
        x = x + torch.sigmoid(self.closing_gate(h)) * self.closing(h)
        return x, torch.cat(used, -1).mean(-1), torch.cat(jumped, -1).mean(-1), cost

    def new_cache(
        self,
        batch_size: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CacheGroup:
        """Caches of the inner layers, and the memory's running sums."""
        inner = [
            layer.new_cache(batch_size, max_length, device=device, dtype=dtype)  # type: ignore[operator]
            for layer in self.layers
        ]
        weight = self.closing_gate.weight
        device = weight.device if device is None else device
        wide = torch.promote_types(weight.dtype, torch.float32)
        return CacheGroup(*inner, PrefixSums(batch_size, len(self.layers), self.dims, device, wide))

    def penalty(self) -> Tensor:
        """Sum over the inner layers: 0-dim."""
        total = self.impulse.new_zeros(())
        for layer in self.layers:
            total = total + layer.penalty()  # type: ignore[operator]
        return total
