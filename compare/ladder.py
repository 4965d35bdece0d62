"""Ladders: the same comparison at growing sizes.

- A rung of factor s has s times the parameters and is trained on s times the tokens, so it costs s² times the compute:
  layers and width grow by s^(1/3) each (parameters go with layers · width²), the width of a head stays, and steps grow
  by s at the same batch.
- Rates are tuned anew on every rung by the experiment's own grid, or on the first one and then multiplied by
  width₀ / width, the rule for Adam's rates of hidden matrices (Yang et al. 2022, https://arxiv.org/abs/2203.03466).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cubelet.common.errors import ConfigError

from .experiment import Experiment, ExperimentError
from .runs import find_file
from .tune import Choice

RATES = ("grid", "width")


def parse_rungs(text: str) -> list[float]:
    """`1,2,4,8` as numbers.

    Raises:
        ConfigError: fewer than two, not rising, or not numbers.
    """
    try:
        rungs = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--ladder {text!r} must be numbers with commas between them, such as 1,2,4,8") from None
    if len(rungs) < 2 or any(b <= a for a, b in zip([0.0, *rungs], rungs, strict=False)):
        raise ConfigError(f"--ladder {text!r} must be at least two positive numbers that rise, such as 1,2,4,8")
    return rungs


def make_rung(
    experiment: Experiment, factor: float, compose: Callable[[Sequence[str]], Mapping[str, Any]]
) -> Experiment:
    """The experiment at `factor` times the parameters and tokens; see the module's docstring.

    Raises:
        ExperimentError: its budget is in CPU-seconds, or its model has no dims, layers and heads.
    """
    if experiment.budget.steps is None:
        raise ExperimentError(
            f"{experiment.name}: a ladder needs a budget in steps, {experiment.budget_name} is in time"
        )
    arguments = [f"--config={find_file(experiment.base, experiment.folder)}"]
    for item in (*experiment.common, *experiment.budget.use):
        is_file = item.endswith((".yaml", ".yml")) and "=" not in item
        arguments.append(f"--config={find_file(item, experiment.folder)}" if is_file else f"--{item}")
    config = compose(arguments)
    try:
        dims, layers, heads = (int(config[f"model.{name}"]) for name in ("dims", "layers", "heads"))
    except (KeyError, TypeError):
        raise ExperimentError(f"{experiment.name}: a ladder needs model.dims, model.layers and model.heads") from None
    head_dim = dims // heads
    new_layers = max(1, round(layers * factor ** (1 / 3)))
    # What rounding took from the layers is given to the width.
    new_heads = max(1, round(heads * math.sqrt(factor * layers / new_layers)))
    use = (f"model.dims={new_heads * head_dim}", f"model.layers={new_layers}", f"model.heads={new_heads}")
    steps = round(experiment.budget.steps * factor)
    return replace(
        experiment,
        name=f"{experiment.name}-x{factor:g}",
        title=f"{experiment.title} (size × {factor:g})",
        ladder=experiment.name,
        scale=factor,
        width=new_heads * head_dim,
        budget=replace(experiment.budget, steps=steps, use=(*experiment.budget.use, *use)),
    )


def scale_rates(choices: Mapping[str, Choice], ratio: float) -> dict[str, Choice]:
    """Tuned settings with every learning rate multiplied by `ratio`; tried is what was tried at the first size."""

    def scaled(option: str, value: Any) -> Any:
        return float(f"{value * ratio:.6g}") if option.rpartition(".")[2] == "lr" else value

    return {
        name: replace(choice, settings={k: scaled(k, v) for k, v in choice.settings.items()}, trials=(), at_edge=())
        for name, choice in choices.items()
    }
