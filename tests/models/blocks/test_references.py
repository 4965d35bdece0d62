"""Every block against its slow reference, with and without padding."""

import pytest
import torch

from tests.conformance.subject import assert_close, build, noise
from tests.models.blocks.variants import BLOCKS, factory


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", [name for name, case in BLOCKS.items() if case.reference])
def test_equals_reference(name, padded):
    module = build(factory(name, "combined"), dtype=torch.float64)
    key_mask = torch.ones(2, 14, dtype=torch.bool)
    if padded:
        key_mask[0, -4:] = False
    x, twin = (noise(2, 14, 32, dtype=torch.float64).requires_grad_() for _ in range(2))
    weight = noise(2, 14, 32, seed=1, dtype=torch.float64) * key_mask[..., None]
    y, _ = module(x, key_mask=key_mask if padded else None)
    z = BLOCKS[name].reference(module, twin, key_mask if padded else None)
    assert_close(y * weight, z * weight, "output")
    if name == "myelinated":
        return  # its reference walks: it has values, the gradients of its choices are tested in test_myelinated.py
    (y * weight).sum().backward()
    got = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    (z * weight).sum().backward()
    assert_close(x.grad, twin.grad, "gradient of x")
    for n, gradient in got.items():
        # A bounded parameter's gradient points inward once for each use, and the reference uses it more often.
        if not n.endswith("rotation_scale"):
            assert_close(gradient, dict(module.named_parameters())[n].grad, f"gradient of {n}")
