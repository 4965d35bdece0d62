"""Causality and windows: which inputs reach which outputs."""

import torch

from .subject import Factory, assert_close, build, noise, run, width


def check_causality(factory: Factory, *, length: int = 40) -> None:
    """Later tokens reach neither outputs (bitwise, at scales 1 and 30) nor gradients; prefixes stand alone."""
    module = build(factory)
    x = noise(2, length, width(module))
    y = run(module, x)
    assert y.abs().max() > 1e-3, "the output is all zeros, which would hide anything"
    for scale in (1.0, 30.0):
        for cut in (1, length // 2, length - 1):
            changed = x.clone()
            changed[:, cut:] += scale * noise(2, length - cut, width(module), seed=cut)
            z = run(module, changed)
            assert torch.equal(z[:, :cut], y[:, :cut]), f"tokens from {cut} on changed outputs before them (× {scale})"
            assert not torch.equal(z[:, cut:], y[:, cut:]), f"tokens from {cut} on changed nothing at all"
    for t in (0, length // 2):
        leaf = x.clone().requires_grad_()
        (run(module, leaf)[:, t] * noise(2, width(module), seed=t)).sum().backward()
        assert leaf.grad is not None
        assert torch.count_nonzero(leaf.grad[:, t + 1 :]) == 0, f"output {t} has a gradient from later inputs"
        assert torch.count_nonzero(leaf.grad[:, t]) > 0, f"output {t} has no gradient from its own input"
    for n in (1, 7, length // 2, length - 1):
        assert_close(run(module, x[:, :n]), y[:, :n], f"prefix of {n} tokens")


def check_window(factory: Factory, window: int, *, length: int = 40, causal: bool = True) -> None:
    """Exactly the `window` keys up to and including its own (non-causal: all within ± window) reach a query."""
    module = build(factory)
    for t in (0, window // 2, window, length - 1):
        leaf = noise(1, length, width(module)).requires_grad_()
        (run(module, leaf)[:, t] * noise(1, width(module), seed=1)).sum().backward()
        assert leaf.grad is not None
        reached = leaf.grad[0].abs().amax(-1) > 0
        rows = torch.arange(length)
        expected = (rows <= t) & (rows > t - window) if causal else (rows - t).abs() <= window
        assert torch.equal(reached, expected), f"query {t} with window {window} is reached by {rows[reached].tolist()}"
