"""Averaging of weights and buffers (EMA, SWA): what a copy kept by an averaging callback must still be able to do."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .subject import Factory, assert_close, build, noise, run, width

# 0.9999 is the usual decay of image models; the low ones leave the farthest from whole numbers behind.
DECAYS = (0.9, 0.95, 0.9999)


@torch.no_grad()
def check_averaging(factory: Factory, *, length: int = 24) -> None:
    """An average over equal modules, buffers included (`AveragedModel(use_buffers=True)`), computes what they compute.

    Averaging multiplies whole numbers by the decay and cuts off what stands behind the point: 7·0.9 + 7·0.1 may become
    6. Index tables, sizes and counters need a form that survives it; see `cubelet.models.integer_buffers`.
    """
    for decay in DECAYS:
        module = build(factory)
        x = noise(2, length, width(module))
        y = run(module, x)
        averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        for _ in range(3):
            averaged.update_parameters(module)
        assert_close(run(averaged.module, x), y, f"module after averaging with decay {decay}", 1e-4)
