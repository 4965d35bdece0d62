"""MyelinatedBlock: several layers of which each token uses some, with a memory and shortcuts past the rest.

Inner layer l acts on a token if the token is alive there and its node gate is open:

    x ← x + alive_l · g_l · (layer_l(x) − x),

After a layer in which it was alive, a token jumps over 0, 1 or 2 of the next, and an impulse w_J · x₀ of the block's
input travels with a jump of length J > 0. Gates and jumps read x and a working memory: the mean over all tokens so far,
blended into the memory of the layer before by a learned gate. A gated MLP closes the block. Choices:

- Everything per token and causal: the memory is a prefix mean. Decisions are hard, with straight-through gradients;
  jumps are drawn with Gumbel noise in training and are the best in evaluation.
- "Alive" is a product of choices, alive_l = Σ_J alive_{l−1−J} · jump_{l−1−J},J, so static shapes, and gradients reach
  every choice. Keys and values are computed for all tokens, so the cache has no holes; without gradients the rest of a
  layer is computed for the tokens that use it alone (`routing.update_open`).
- The memory is only ever read through the deciders' weights, so what is averaged is the projected tokens, a few numbers
  each, not the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cubelet.common.checks import check_at_least
from cubelet.models.attention.base import check_input, zero_padding
from cubelet.models.cache import CacheGroup
from cubelet.models.kernels.switch import full_precision
from cubelet.models.linear import Linear

from .gates import budget_penalty, hard_choice, mean_over_tokens
from .memory import PrefixSums, memory_mean
from .mlp import MLP, make_norm
from .residual import ResidualBlock
from .routing import DeferredCache, update_open

JUMPS = 3  # over 0, 1 or 2 layers


class MyelinatedBlock(nn.Module):
    """`layers` residual blocks with node gates, jumps, a working memory and a gated MLP; see the module's docstring.

    Args:
        layers: number of inner layers.
        closing_ratio: hidden width of the closing MLP over dims.
        budget: share of inner layers that a token may use for free, or None for no cost.
        budget_weight: weight of max(share − budget, 0)², returned as cost.
        norm, activation, dropout, causal, options: see `ResidualBlock`; the inner layers are such blocks.

    Example:
        >>> block = MyelinatedBlock(32, 4, layers=3, budget=0.5)
        >>> sorted(block.statistics(torch.randn(2, 5, 32)))
        ['mean_jump', 'nodes_on']
    """

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        layers: int = 4,
        closing_ratio: float = 2,
        budget: float | None = None,
        budget_weight: float = 0.1,
        norm: str = "rms",
        activation: str = "relu2",
        dropout: float = 0.0,
        causal: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        check_at_least("layers", layers, 2, "with fewer there is nothing to jump over")
        if budget is not None and not 0.0 <= budget <= 1.0:
            raise ValueError(f"budget {budget} must lie in 0 … 1")
        self.dims, self.budget, self.budget_weight, self.causal = dims, budget, budget_weight, causal
        shared: dict[str, Any] = {"norm": norm, "activation": activation, "dropout": dropout, "causal": causal}
        self.layers = nn.ModuleList(ResidualBlock(dims, heads, **shared, **options) for _ in range(layers))
        # Per layer, from x and memory: its node gate (1) and its jump (3; nothing lies behind the last).
        # They start with open gates and no jumps.
        self.deciders = nn.ModuleList(
            Linear(2 * dims, len(start), scale=0.1 * 2**0.5, bias_value=start)
            for start in [[2.0, 2.0, 0.0, 0.0]] * (layers - 1) + [[2.0]]
        )
        self.impulse = nn.Parameter(torch.zeros(JUMPS - 1))
        self.memory_gate = nn.Parameter(torch.zeros(layers - 1))
        self.closing_norm = make_norm(norm, dims)
        self.closing = MLP(dims, ratio=closing_ratio, activation=activation, dropout=dropout)
        self.closing_gate = Linear(dims, 1)

    def reset_parameters(self) -> None:
        """Gates open, no jumps likely, no impulse."""
        for linear in (*self.deciders, self.closing_gate):
            linear.reset_parameters()  # type: ignore[operator]  # ModuleList holds any module
        nn.init.zeros_(self.impulse)
        nn.init.zeros_(self.memory_gate)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        documents: Tensor | None = None,
        cache: CacheGroup | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As `ResidualBlock.forward`; the cost is the budget's penalty and that of the inner layers, or None."""
        y, used, _, cost = self._run(x, context, key_mask, documents, cache, options)
        if self.budget is not None:
            penalty = budget_penalty(mean_over_tokens(used, key_mask), self.budget, self.budget_weight)
            cost = penalty if cost is None else cost + penalty
        return y, cost

    @torch.no_grad()
    def statistics(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        documents: Tensor | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """For monitoring, computed anew: "nodes_on", the share of inner layers used, and "mean_jump": both 0-dim."""
        _, used, jumps, _ = self._run(x, context, key_mask, documents, None, options)
        return {"nodes_on": mean_over_tokens(used, key_mask), "mean_jump": mean_over_tokens(jumps, key_mask)}

    def _run(
        self,
        x: Tensor,
        context: Tensor | None,
        key_mask: Tensor | None,
        documents: Tensor | None,
        cache: CacheGroup | None,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Output, share of layers used (b, s), mean jump (b, s), cost of the inner layers."""
        count = len(self.layers)
        parts = [None] * (count + 1) if cache is None else cache.parts
        sums: Any = parts[-1]
        check_input(x, self.dims, key_mask, documents, cache)
        x = start = zero_padding(x, key_mask)
        real = None if key_mask is None else key_mask[:, key_mask.shape[1] - x.shape[1] :]
        wide = torch.promote_types(x.dtype, torch.float32)
        arrivals: list[Tensor | None] = [torch.ones_like(x[..., :1], dtype=wide)] + [None] * (count - 1)
        memory, used, jumped, cost = None, [], [], None
        options |= {"key_mask": key_mask} | ({} if documents is None else {"documents": documents})
        for index, layer in enumerate(self.layers):
            decision, memory = self._decide(index, x, memory, real, documents, sums)  # (b, s, 4 or 1)
            alive = arrivals[index]
            assert alive is not None
            soft = torch.sigmoid(decision[..., :1])
            own = options | {"cache": parts[index]}
            x, more, use = update_open(layer, x, context, soft.squeeze(-1), own, alive.squeeze(-1))
            used.append(use[..., None])
            cost = more if cost is None else cost if more is None else cost + more
            if index < count - 1:
                jump = hard_choice(decision[..., 1:], self.training)  # (b, s, 3)
                for length in range(min(JUMPS, count - 1 - index)):
                    share = alive * jump[..., length : length + 1]
                    before = arrivals[index + 1 + length]
                    arrivals[index + 1 + length] = share if before is None else before + share
                impulse = alive * (jump[..., 1:] @ self.impulse.to(jump.dtype))[..., None]  # (b, s, 1)
                x = torch.addcmul(x, impulse.to(x.dtype), start)
                jumped.append(alive * (jump[..., 1:2] + 2 * jump[..., 2:]))
        if sums is not None:
            sums.length += x.shape[1]
            sums.document = None if documents is None else documents[:, -1:]
        h = self.closing_norm(x)
        x = x + torch.sigmoid(self.closing_gate(h)) * self.closing(h)
        return x, torch.cat(used, -1).mean(-1), torch.cat(jumped, -1).mean(-1), cost

    def _deciders(self) -> list[Linear]:
        return [decider for decider in self.deciders if isinstance(decider, Linear)]

    def _decide(
        self,
        index: int,
        x: Tensor,
        memory: Tensor | None,
        real: Tensor | None,
        documents: Tensor | None,
        sums: PrefixSums | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits of a layer's gate and jumps (b, s, 4 or 1) in full precision, and the memory for later layers."""
        with full_precision(x.device):
            wide = torch.promote_types(x.dtype, torch.float32)
            decider, *later = self._deciders()[index:]
            count = decider.out_features
            weights = [decider.weight[:, : self.dims], *(each.weight[:, self.dims :] for each in (decider, *later))]
            # (b, s, count) of x, and (b, s, numbers of this and later layers) for the memory
            own, numbers = F.linear(x.to(wide), torch.cat(weights).to(wide)).tensor_split((count,), dim=-1)
            mean = memory_mean(
                numbers,
                real,
                documents,
                causal=self.causal,
                sums=sums,
                layer=index,
            )
            if memory is not None:
                mean = torch.lerp(mean, memory, torch.sigmoid(self.memory_gate[index - 1]).to(wide))
            return own + mean[..., :count] + decider.bias.to(wide), mean[..., count:]

    def new_cache(self, batch_size: int, max_length: int) -> CacheGroup:
        """Caches of the inner layers, and the memory's running sums."""
        size = (batch_size, max_length)
        inner = [DeferredCache(layer.new_cache(*size), *size) for layer in self.layers]  # type: ignore[operator]
        weight = self.closing_gate.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        numbers = [decider.out_features for decider in self._deciders()]
        widths = [sum(numbers[index:]) for index in range(len(numbers))]
        return CacheGroup(*inner, PrefixSums(batch_size, widths, weight.device, wide))

    def penalty(self) -> Tensor:
        """Sum over the inner layers: 0-dim."""
        total = self.impulse.new_zeros(())
        for layer in self.layers:
            total = total + layer.penalty()  # type: ignore[operator]
        return total
