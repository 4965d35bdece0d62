"""Checks of rotaries: position encodings that turn queries and keys, `rotate(x, positions)` with x (b, h, s, c)."""

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from .subject import Factory, assert_close, build, noise


def _build(factory: Factory) -> Any:
    """A rotary from the factory, its parameters moved away from their initial values."""
    return build(factory)


def _x(rotary: Any, length: int, batch: int = 2, seed: int = 0) -> Tensor:
    return noise(batch, rotary.heads, length, rotary.dims // rotary.heads, seed=seed)


@torch.no_grad()
def check_shapes(factory: Factory) -> None:
    """`rotate` keeps shape and dtype, moves something, and `forward` does the same to embeddings (b, s, d)."""
    rotary = _build(factory)
    x = _x(rotary, 7)
    y = rotary.rotate(x)
    assert y.shape == x.shape, f"rotate turns {tuple(x.shape)} into {tuple(y.shape)}"
    assert y.dtype == x.dtype, f"rotate turns {x.dtype} into {y.dtype}"
    assert not torch.allclose(y[:, :, 1:], x[:, :, 1:], atol=1e-3), "rotate changes nothing"
    embeddings = noise(2, 7, rotary.dims)
    assert rotary(embeddings).shape == embeddings.shape


@torch.no_grad()
def check_own_token(factory: Factory, *, length: int = 9) -> None:
    """A rotated vector depends on its own token and position alone."""
    rotary = _build(factory)
    x = _x(rotary, length)
    moved = x.clone()
    moved[:, :, 5] += 1
    same = (rotary.rotate(x) == rotary.rotate(moved)).all(-1).all(1)[0]
    assert same.tolist() == [t != 5 for t in range(length)], "a token reaches another one's rotation"


@torch.no_grad()
def check_chunks(factory: Factory, *, length: int = 30) -> None:
    """Chunks at their positions equal the whole (what a cache needs), and rows may have positions of their own."""
    rotary = _build(factory)
    x = _x(rotary, length)
    whole = rotary.rotate(x)
    cuts = (0, 1, 7, length)
    parts = [rotary.rotate(x[:, :, a:b], torch.arange(a, b)) for a, b in itertools.pairwise(cuts)]
    assert_close(torch.cat(parts, dim=2), whole, "rotation in chunks")
    padded = torch.cat((torch.zeros_like(x[:, :, :3]), x), dim=2)
    positions = torch.cat((torch.zeros(3, dtype=torch.long), torch.arange(length))).expand(2, length + 3)
    assert_close(rotary.rotate(padded, positions)[:, :, 3:], whole, "rotation of left-padded rows")


@torch.no_grad()
def check_base(factory: Factory) -> None:
    """`set_base` moves the base in place, counts it in `base_version`, and the state travels with `state_dict`."""
    rotary = _build(factory)
    x, buffer, version = _x(rotary, 30), rotary.base, rotary.base_version
    before = rotary.rotate(x)
    rotary.set_base(40.0)
    assert rotary.base is buffer, "set_base replaces the tensor `base`; write into it"
    assert rotary.base_version > version, "set_base does not count the change in `base_version`"
    after = rotary.rotate(x)
    assert not torch.allclose(after, before, atol=1e-2), "another base changes nothing"
    fresh = _build(factory)
    fresh.load_state_dict(rotary.state_dict())
    assert torch.equal(fresh.rotate(x), after), "state_dict does not hold the base"


@torch.no_grad()
def check_half_precision(factory: Factory) -> None:
    """bfloat16 inputs at positions around 4,096 lose little more than their rounding; `.bfloat16()` breaks nothing."""
    rotary = _build(factory)
    x, positions = _x(rotary, 64, batch=1), torch.arange(4032, 4096)
    exact = rotary.rotate(x.bfloat16().float(), positions)
    half = rotary.rotate(x.bfloat16(), positions)
    assert half.dtype == torch.bfloat16, f"bfloat16 goes in, {half.dtype} comes out"
    error = float((half.float() - exact).abs().max()) / max(1.0, float(exact.abs().max()) / 4)
    assert error <= 0.03, f"bfloat16 inputs are off by {error:.3f}; compute the rotation in float32 and cast once"
    kept = rotary.rotate(x, positions)
    low = nn.ModuleList([rotary]).bfloat16()[0]
    assert_close(low.rotate(x, positions), kept, "float32 input to a module cast to bfloat16", 0.05)  # pyright: ignore


@torch.no_grad()
def check_rotary_copies(factory: Factory) -> None:
    """deepcopy, and construction on the meta device with a state loaded, rotate bit-equal."""
    rotary = _build(factory)
    x = _x(rotary, 9)
    y = rotary.rotate(x)
    assert torch.equal(copy.deepcopy(rotary).rotate(x), y), "a deepcopy rotates otherwise"
    with torch.device("meta"):
        late: Any = factory()
    late.to_empty(device="cpu").load_state_dict(rotary.state_dict())
    assert torch.equal(late.eval().rotate(x), y), "a rotary built on the meta device rotates otherwise"


def check_rotary_gradients(factory: Factory) -> None:
    """Gradients reach x and every parameter, also after a call in inference mode."""
    rotary = _build(factory)
    x = _x(rotary, 9)
    with torch.inference_mode():
        rotary.rotate(x)
    x.requires_grad_()
    (rotary.rotate(x) * _x(rotary, 9, seed=1)).sum().backward()
    for name, tensor in (("x", x), *rotary.named_parameters()):
        assert tensor.grad is not None, f"{name} got no gradient"
        assert tensor.grad.isfinite().all(), f"the gradient of {name} is not finite"
