"""Padding: what stands in padded positions reaches nothing, and a row alone equals the row in a batch."""

import re

import torch

from .subject import Factory, assert_close, build, noise, refused, run, width


def check_padding(factory: Factory, *, length: int = 24, pad: int = 7) -> None:
    """Left and right padding: contents and NaN change nothing, alone equals batched, gradients stay finite."""
    module = build(factory)
    x = noise(2, length, width(module))
    for side in ("left", "right"):
        mask = torch.ones(2, length, dtype=torch.bool)
        own = slice(pad, None) if side == "left" else slice(None, length - pad)
        other = slice(None, pad) if side == "left" else slice(length - pad, None)
        mask[0, other] = False
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        y = run(module, x, key_mask=mask, positions=positions)
        assert_close(y[0, own], run(module, x[:1, own])[0], f"{side}-padded row against the row alone")
        assert_close(y[1], run(module, x[1:])[0], f"whole row beside a {side}-padded one")
        for content in (30.0, torch.nan):
            filled = x.clone()
            filled[0, other] = content
            leaf = filled.requires_grad_()
            z = run(module, leaf, key_mask=mask, positions=positions)
            assert torch.equal(z[0, own], y[0, own]), f"{content} in {side} padding changed outputs"
            assert torch.equal(z[1], y[1]), f"{content} in {side} padding changed another row"
            module.zero_grad()
            z[mask].square().sum().backward()
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    assert parameter.grad.isfinite().all(), (
                        f"{content} in {side} padding reached the gradient of {name}"
                    )


def check_fully_masked(factory: Factory, *, length: int = 12, zeros: bool = True) -> None:
    """A row without a single token gives zeros (attentions without biases), finite gradients, and harms no other."""
    module = build(factory)
    x = noise(2, length, width(module)).requires_grad_()
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0] = False
    y = run(module, x, key_mask=mask)
    if zeros:
        assert torch.count_nonzero(y[0]) == 0, "a fully masked row is not zeros"
    assert_close(y[1], run(module, x[1:])[0], "row beside a fully masked one")
    y.square().sum().backward()
    for name, tensor in [("x", x), *module.named_parameters()]:
        assert tensor.grad is None or tensor.grad.isfinite().all(), f"gradient of {name} is not finite"


def check_key_mask_errors(factory: Factory) -> None:
    """A mask of the wrong dtype or shape is refused, with what was given and what was expected."""
    module = build(factory)
    x = noise(2, 6, width(module))
    for mask, kind, word in (
        (torch.ones(2, 6), TypeError, "float32"),
        (torch.ones(2, 5, dtype=torch.bool), ValueError, "(2, 5)"),
        (torch.ones(3, 6, dtype=torch.bool), ValueError, "(3, 6)"),
        (torch.ones(2, 6, 6, dtype=torch.bool), ValueError, "(2, 6, 6)"),
    ):
        with refused(kind, re.escape(word)):
            run(module, x, key_mask=mask)
