"""Cached decoding equals the full forward, however the tokens are cut and whoever continues whom."""

import torch
from torch import Tensor

from .subject import Factory, assert_close, build, noise, refused, run, width


def _in_chunks(module: torch.nn.Module, x: Tensor, sizes: list[int], **options: Tensor) -> Tensor:
    cache = module.new_cache(x.shape[0], x.shape[1])  # pyright: ignore[reportCallIssue]
    parts = []
    for chunk in x.split(sizes, dim=1):
        parts.append(run(module, chunk, cache=cache, **options))
    assert cache.length == x.shape[1]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def check_cache(factory: Factory, *, length: int = 33) -> None:
    """Token by token, prefill and tokens, chunks of 5, a chunk of 1 first: ≤ 1e-5 from the full forward."""
    module = build(factory)
    x = noise(2, length, width(module))
    y = run(module, x)
    fives = [5] * (length // 5) + ([length % 5] if length % 5 else [])
    for name, sizes in {
        "token by token": [1] * length,
        "prefill, then tokens": [length - 7] + [1] * 7,
        "chunks of 5": fives,
        "one token, then the rest": [1, length - 1],
        "all at once": [length],
    }.items():
        assert_close(_in_chunks(module, x, sizes), y, name)


@torch.no_grad()
def check_cache_reorder(factory: Factory, *, length: int = 24) -> None:
    """After `reorder`, row i continues what row indices[i] had read (rows may be repeated)."""
    module = build(factory)
    x = noise(3, length, width(module))
    half, order = length // 2, torch.tensor([2, 0, 0])
    cache = module.new_cache(3, length)  # pyright: ignore[reportCallIssue]
    run(module, x[:, :half], cache=cache)
    cache.reorder(order)
    rest = torch.cat([run(module, x[:, i : i + 1], cache=cache) for i in range(half, length)], dim=1)
    joined = torch.cat([x[order, :half], x[:, half:]], dim=1)
    assert_close(rest, run(module, joined)[:, half:], "reordered batch")


@torch.no_grad()
def check_cache_padding(factory: Factory, *, length: int = 20) -> None:
    """A left-padded batch, decoded with the mask given for the prompt alone, equals each row on its own."""
    module = build(factory)
    x = noise(2, length, width(module))
    pad, prompt = 4, length - 6
    mask = torch.ones(2, prompt, dtype=torch.bool)
    mask[0, :pad] = False
    positions = (torch.cat([mask, mask.new_ones(2, 6)], dim=1).cumsum(1) - 1).clamp(min=0)
    for whole in (False, True):
        cache = module.new_cache(2, length)  # pyright: ignore[reportCallIssue]
        parts = [run(module, x[:, :prompt], key_mask=mask, positions=positions[:, :prompt], cache=cache)]
        for i in range(prompt, length):
            full = torch.cat([mask, mask.new_ones(2, i + 1 - prompt)], dim=1)
            parts.append(
                run(
                    module,
                    x[:, i : i + 1],
                    positions=positions[:, i : i + 1],
                    cache=cache,
                    key_mask=full if whole else None,
                )
            )
        y = torch.cat(parts, dim=1)
        assert_close(y[0, pad:], run(module, x[:1, pad:])[0], "cached, left-padded row")
        assert_close(y[1], run(module, x[1:])[0], "cached row beside a padded one")


def check_cache_errors(factory: Factory) -> None:
    """Too many tokens, and another batch size, are refused with the numbers."""
    module = build(factory)
    cache = module.new_cache(2, 4)  # pyright: ignore[reportCallIssue]
    for x, word in ((noise(2, 5, width(module)), "4"), (noise(3, 1, width(module)), "3")):
        with refused(ValueError, word):
            run(module, x, cache=cache)
