"""Every attention against its slow reference, values and gradients, with and without padding."""

import pytest
import torch

from tests.conformance.subject import assert_close, build, noise
from tests.models.attention.variants import ATTENTIONS, REFERENCES, factory


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_ways"])
@pytest.mark.parametrize("name", REFERENCES)
def test_equals_reference(name, causal):
    if not causal and not ATTENTIONS[name].noncausal:
        with pytest.raises(ValueError, match="causal"):
            factory(name, "combined", causal=False)()
        return
    module = build(factory(name, "combined", causal=causal), dtype=torch.float64)
    reference = REFERENCES[name]
    length = 15
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, -4:] = False
    for key_mask in (None, mask):
        x, twin = (noise(2, length, 32, dtype=torch.float64).requires_grad_() for _ in range(2))
        weight = noise(2, length, 32, seed=1, dtype=torch.float64)
        if key_mask is not None:
            weight = weight * key_mask[..., None]
        y = module(x, key_mask=key_mask)
        (y * weight).sum().backward()
        got = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        module.zero_grad()
        z = reference(module, twin, key_mask)
        (z * weight).sum().backward()
        assert_close(y * weight, z * weight, "output")
        assert_close(x.grad, twin.grad, "gradient of x")
        for n, p in module.named_parameters():
            # A bounded parameter's gradient points inward once for each use, and the reference uses it more often.
            if p.grad is not None and not n.endswith("rotation_scale"):
                assert_close(got[n], p.grad, f"gradient of {n}")
        module.zero_grad()
