"""torch.compile: one graph without breaks, and no new one for every length."""

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from .subject import Factory, assert_close, build, noise, run, width


def check_compile(factory: Factory, *, lengths: tuple[int, ...] = (96, 130, 17, 63), backend: str = "inductor") -> None:
    """`fullgraph=True` forward and backward equal eager, with at most 2 graphs over all lengths.

    The lengths lie on both sides of what variants cut sequences into. The backend "aot_eager" checks the same graphs
    without generating code for them, in a tenth of the time.
    """
    torch._dynamo.reset()
    module = build(factory)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for length in lengths:
        leaf, twin = (noise(2, length, width(module), seed=length).requires_grad_() for _ in range(2))
        weight = noise(2, length, width(module), seed=1)
        module.zero_grad()
        y = run(module, leaf)
        (y * weight).sum().backward()
        expected = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
        module.zero_grad()
        z = run(compiled, twin)
        (z * weight).sum().backward()
        assert_close(z, y, f"compiled forward at {length} tokens")
        assert leaf.grad is not None
        assert twin.grad is not None
        assert_close(twin.grad, leaf.grad, f"compiled gradient of x at {length} tokens", 5e-5)
        got = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        assert len(got) == len(expected), "compiled backward reaches other parameters than eager"
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other, f"compiled gradient of a parameter at {length} tokens", 5e-5)
    assert counter.frame_count <= 2, f"{counter.frame_count} graphs for {len(lengths)} lengths"
    torch._dynamo.reset()
