"""Packed rows: what comes out of a document is what would come out of it alone."""

import torch

from .subject import Factory, assert_close, build, noise, run, width

# Numbers of each row's documents; −1 is padding. The lengths lie on both sides of small windows.
ROWS = ([0] * 9 + [1] + [2] * 14, [5] * 13 + [8] * 7 + [-1] * 4, [-1] * 3 + [4] * 21)


def check_documents(factory: Factory, *, tolerance: float = 1e-5) -> None:
    """Rows of several documents equal the documents alone: outputs, and gradients of inputs and parameters.

    Padding holds NaN, and once a cache is decoded across the border of two documents.
    """
    module = build(factory)
    documents = torch.tensor(ROWS)
    mask = documents >= 0
    positions = torch.zeros_like(documents)
    for b, row in enumerate(ROWS):
        for t in range(1, len(row)):
            positions[b, t] = positions[b, t - 1] + 1 if row[t] == row[t - 1] else 0
    x = noise(*documents.shape, width(module))
    x[~mask] = torch.nan
    weight = noise(*x.shape, seed=1)
    leaf, twin = (x.clone().requires_grad_() for _ in range(2))
    module.zero_grad()
    y = run(module, leaf, key_mask=mask, positions=positions, documents=documents)
    (y[mask] * weight[mask]).sum().backward()
    got = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    for b, row in enumerate(ROWS):
        for number in sorted(set(row) - {-1}):
            start, end = row.index(number), len(row) - row[::-1].index(number)
            alone = run(module, twin[b : b + 1, start:end])
            assert_close(y[b, start:end], alone[0], f"document {number} in its row against alone", tolerance)
            (alone[0] * weight[b, start:end]).sum().backward()
    assert leaf.grad is not None
    assert twin.grad is not None
    assert_close(leaf.grad[mask], twin.grad[mask], "gradient of the inputs", tolerance)
    for name, parameter in module.named_parameters():
        # The gradient of a bounded parameter points inward once for each call, so it does not add up over calls.
        if parameter.grad is not None and not name.endswith("rotation_scale"):
            scale = max(1.0, float(parameter.grad.abs().max()))
            assert_close(got[name] / scale, parameter.grad / scale, f"gradient of {name}", tolerance)


@torch.no_grad()
def check_documents_cache(factory: Factory) -> None:
    """Decoding a packed row in chunks equals reading it at once."""
    module = build(factory)
    documents = torch.tensor(ROWS[:1] * 2)
    positions = torch.tensor([*range(9), 0, *range(14)]).expand_as(documents)
    x = noise(*documents.shape, width(module))
    y = run(module, x, positions=positions, documents=documents)
    for size in (1, 4):
        cache, parts = module.new_cache(2, x.shape[1]), []  # type: ignore[operator]
        for start in range(0, x.shape[1], size):
            own = slice(start, start + size)
            options = {"positions": positions[:, own], "documents": documents[:, own], "cache": cache}
            parts.append(run(module, x[:, own], **options))
        assert_close(torch.cat(parts, dim=1), y, f"packed row in chunks of {size}")
