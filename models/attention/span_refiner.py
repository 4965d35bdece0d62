"""A tabular Q-learner that chooses an attention's span between steps.

Watkins' Q-learning on a state coarse enough to recur: how the loss moved (falling, level, rising) × which of a few
spans is in force. Actions: one span shorter, hold, one longer. The reward is −Δ loss. Choices:

- It starts at full span with optimistic values, so every action is tried before it is judged.
- All state is buffers, saved with the model; random choices are drawn from (seed, step). Given the same losses (those
  averaged over ranks), replicas choose alike. In evaluation nothing moves.
- A forward never looks at the table: whoever drives the refiner writes the chosen span into a buffer.

**Protocol.** A module that can be driven offers `refine(loss: float) -> float`; a controller that acts between steps
calls it every so many optimizer steps in training, with the mean loss since the last call, equal on all ranks, and gets
the span now in force (a share, above 0 and at most 1). `IntegratedAttention` is such a module.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cubelet.common.seeds import derive_seed

from ..integer_buffers import IntegerBuffer

TRENDS = 3  # falling, level, rising
ACTIONS = 3  # shorter, hold, longer


class SpanRefiner(nn.Module):
    """Q-learning over spans 1/n, 2/n, … 1.

    Args:
        levels: n, at least 2.
        learning_rate: of the table, in (0, 1].
        discount: weight of the next state's value, in [0, 1).
        exploration: ε, share of random actions, 0 … 1.
        dead_zone: relative change of the loss that counts as level.
        optimism: initial value of every action; above any reward that is to be expected.
        seed: of the random actions.

    Example:
        >>> refiner = SpanRefiner(levels=4)
        >>> refiner.span, refiner.choose(2.0)
        (1.0, 1.0)
    """

    table: Tensor
    level = IntegerBuffer()  # index of the span in force
    state = IntegerBuffer()  # trend · levels + level where the last action was taken
    action = IntegerBuffer()
    step = IntegerBuffer()  # calls so far
    loss: Tensor

    def __init__(
        self,
        *,
        levels: int = 8,
        learning_rate: float = 0.1,
        discount: float = 0.9,
        exploration: float = 0.1,
        dead_zone: float = 0.002,
        optimism: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels {levels} leaves nothing to choose; use at least 2")
        for name, value in {"learning_rate": learning_rate, "discount": discount, "exploration": exploration}.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} {value} must lie in 0 … 1")
        if dead_zone < 0:
            raise ValueError(f"dead_zone {dead_zone} is negative")
        self.levels, self.learning_rate, self.discount = levels, learning_rate, discount
        self.exploration, self.dead_zone, self.optimism, self.seed = exploration, dead_zone, optimism, seed
        self.register_buffer("table", torch.full((TRENDS, levels, ACTIONS), optimism))
        self.register_buffer("loss", torch.zeros((), dtype=torch.float64))  # at the last call
        self.level, self.state = torch.tensor(levels - 1), torch.tensor(0)
        self.action, self.step = torch.tensor(0), torch.tensor(0)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Full span, optimistic table, nothing seen."""
        self.table.fill_(self.optimism)
        self.loss.zero_()
        device = self.table.device
        self.level = torch.tensor(self.levels - 1, device=device)
        self.state = self.action = self.step = torch.tensor(0, device=device)

    @property
    def span(self) -> float:
        """The span in force, a share of the largest."""
        return (int(self.level) + 1) / self.levels

    def trend(self, loss: float, before: float) -> int:
        """0 where the loss fell by more than the dead zone, 2 where it rose by more, 1 between."""
        change = (loss - before) / max(abs(before), 1e-12)
        return 0 if change < -self.dead_zone else 2 if change > self.dead_zone else 1

    @torch.no_grad()
    def choose(self, loss: float) -> float:
        """Learn from what the last action brought, act, and return the span now in force.

        In evaluation, and for a loss that is not finite, nothing changes.
        """
        loss = float(loss)
        if not self.training or not math.isfinite(loss):
            return self.span
        before, step, level = float(self.loss), int(self.step), int(self.level)
        state = self.trend(loss, before) if step else 1
        if step:
            self._learn(before - loss, state, level)
        action = self._act(state, level, step)
        # An action is judged where it was taken: at the level before the move.
        self.state = torch.tensor(state * self.levels + level)
        self.action = torch.tensor(action)
        self.level = torch.tensor(level + action - 1)
        self.loss.fill_(loss)
        self.step = torch.tensor(step + 1)
        return self.span

    def possible(self, level: int) -> list[int]:
        """Actions that lead to a span there is."""
        return [action for action in range(ACTIONS) if 0 <= level + action - 1 < self.levels]

    def _learn(self, reward: float, state: int, level: int) -> None:
        trend, old = divmod(int(self.state), self.levels)
        value = self.table[trend, old, int(self.action)]
        best = self.table[state, level, self.possible(level)].max()
        value += self.learning_rate * (reward + self.discount * best - value)

    def _act(self, state: int, level: int, step: int) -> int:
        possible = self.possible(level)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step))
        draw, which = torch.rand(2, generator=generator).tolist()
        if draw < self.exploration:
            return possible[min(int(which * len(possible)), len(possible) - 1)]
        values = self.table[state, level].tolist()
        # Ties go to the longer span: shortening must have earned it.
        return max(possible, key=lambda action: (values[action], action))
