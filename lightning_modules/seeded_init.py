"""Initial values that follow from (seed, parameter name), so that models that share parameters start alike.

A model drawn from one running generator changes everywhere when one part draws a number more. Here every
`reset_parameters` of a finished model is called again, under a mode that seeds the generator before each random
operation: by the parameter's own name where the operation fills a parameter or buffer, and by (the module that is
resetting, which operation, which of its kind) where it fills something on the way (the Gaussian behind an orthogonal
matrix, the seed of random pairs). The distributions stay those of the modules, since their own code draws.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cubelet.common.seeds import derive_seed

IN_PLACE = frozenset(
    ["normal_", "uniform_", "bernoulli_", "exponential_", "geometric_", "log_normal_", "cauchy_", "random_"]
)
FACTORIES = frozenset(
    [
        "rand",
        "randn",
        "randint",
        "randperm",
        "rand_like",
        "randn_like",
        "randint_like",
        "normal",
        "bernoulli",
        "multinomial",
    ]
)


class NameSeededMode(TorchFunctionMode):
    """Mode that seeds torch's generators before every random operation inside.

    Args:
        seed: of the run.
        names: `id` of a parameter or buffer → its name.
    """

    def __init__(self, seed: int, names: dict[int, str]) -> None:
        super().__init__()
        self.seed, self.names = seed, names
        self.place = ""
        self._seen: Counter[tuple[str, str]] = Counter()

    def enter_module(self, place: str) -> None:
        self.place = place
        self._seen.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in IN_PLACE or name in FACTORIES:
            own = self.names.get(id(args[0])) if name in IN_PLACE and args else None
            key = (own, "") if own is not None else (self.place, name)
            torch.manual_seed(derive_seed(self.seed, *key, self._seen[key]))
            self._seen[key] += 1
        return func(*args, **(kwargs or {}))


def initialize_by_name(module: nn.Module, seed: int) -> None:
    """Draw all random parameters and buffers of `module` anew, each from (seed, its name).

    What a parent module set after its children had drawn (an output projection set to zero, say) stays: a tensor that
    is constant in the finished model is not random, whatever its own module would draw for it. The global generators
    are left as they were. Random parameters outside any module's `reset_parameters` cannot be reached; a warning names
    them.

    Args:
        module: a finished model on a real device.
        seed: of the run.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    fixed = {name for name, tensor in before.items() if is_constant(tensor)}
    devices = sorted({t.device.index or 0 for t in tensors.values() if t.is_cuda})
    mode = NameSeededMode(seed, {id(tensor): name for name, tensor in tensors.items()})
    resetting = []
    with torch.random.fork_rng(devices), torch.no_grad():
        # Children first, as at construction: what a parent draws for its children wins.
        for place, part in sorted(module.named_modules(), key=lambda item: -item[0].count(".") if item[0] else 1):
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                resetting.append(place)
                mode.enter_module(place)
                with mode:
                    reset()
        for name in fixed:
            tensors[name].copy_(before[name])
    missed = [
        name
        for name, parameter in module.named_parameters()
        if name not in fixed
        and name.rpartition(".")[0] not in resetting
        and torch.equal(parameter.detach(), before[name])
    ]
    if missed:
        warnings.warn(
            f"{len(missed)} parameters (first: {missed[0]}) are not drawn by a `reset_parameters` method, so a seed "
            "cannot fix them by name: runs of this model are not paired in them. Move their drawing into one",
            stacklevel=2,
        )


def is_constant(tensor: Tensor) -> bool:
    """All elements equal; of single numbers 0 and 1, which no continuous distribution gives."""
    if tensor.numel() == 0:
        return True
    flat = tensor.flatten()
    if tensor.numel() == 1:
        return float(flat[0]) in (0.0, 1.0)
    return bool((flat == flat[0]).all())
