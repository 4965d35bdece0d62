"""The rotary checks: each passes on rotaries of the project and fails on one that has just the fault it looks for."""

import random

import pytest
import torch
from torch import nn

from cubelet import testing
from cubelet.models.rotary import AxialRotary, QuaternionRotary, RoPE


@pytest.mark.parametrize("check", testing.ROTARY_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", [RoPE, QuaternionRotary, AxialRotary])
def test_rotaries_of_the_project_pass(kind, check):
    check(lambda: kind(24, 2))


class Wide(RoPE):
    def rotate(self, x, positions=None):
        return super().rotate(x, positions).double()


class Nothing(RoPE):
    def rotate(self, x, positions=None):
        return x


class Neighbour(RoPE):
    def rotate(self, x, positions=None):
        return super().rotate(x, positions) + 1e-3 * x.roll(1, dims=2)


class Counts(RoPE):
    """Ignores the positions it is given."""

    def rotate(self, x, positions=None):
        return super().rotate(x)


class NewBase(RoPE):
    def set_base(self, base):
        self.base = torch.tensor(float(base))
        self.base_version += 1


class Uncounted(RoPE):
    def set_base(self, base):
        with torch.no_grad():
            self.base.fill_(float(base))


class HalfPositions(nn.Module):
    """Angles in the dtype of x: at position 4,095 bfloat16 knows every sixteenth number only."""

    dims, heads = 24, 2

    def rotate(self, x, positions=None):
        angles = positions.to(x.dtype)[:, None] * torch.ones(6, dtype=x.dtype)
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        cis = torch.polar(torch.ones_like(angles, dtype=torch.float32), angles.float())
        return torch.view_as_real(pairs * cis).flatten(-2).to(x.dtype)


class Forgetful(RoPE):
    """Has a factor that no state holds."""

    def __init__(self, dims, heads):
        super().__init__(dims, heads)
        self.factor = 1 + random.random()

    def rotate(self, x, positions=None):
        return super().rotate(x, positions) * self.factor


class Unused(RoPE):
    def __init__(self, dims, heads):
        super().__init__(dims, heads)
        self.unused = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize(
    ("faulty", "check", "words"),
    [
        (Wide, testing.check_shapes, "float64"),
        (Nothing, testing.check_shapes, "changes nothing"),
        (Neighbour, testing.check_own_token, "another one"),
        (Counts, testing.check_chunks, "chunks"),
        (NewBase, testing.check_base, "replaces the tensor"),
        (Uncounted, testing.check_base, "base_version"),
        (HalfPositions, testing.check_half_precision, "off by"),
        (Forgetful, testing.check_rotary_copies, "meta"),
        (Unused, testing.check_rotary_gradients, "unused got no gradient"),
    ],
)
def test_a_faulty_rotary_fails(faulty, check, words):
    factory = (lambda: faulty()) if faulty is HalfPositions else (lambda: faulty(24, 2))
    with pytest.raises(AssertionError, match=words):
        check(factory)


class RoundedAway(nn.Module):
    """Picks features by an index table in an integer buffer, which averaging spoils."""

    dims = 16

    def __init__(self, dtype=torch.long):
        super().__init__()
        self.register_buffer("order", torch.arange(16, dtype=dtype).flip(0))

    def forward(self, x):
        return x[..., self.order.round().long()]


def test_an_integer_table_does_not_survive_averaging():
    testing.check_averaging(lambda: RoundedAway(torch.float64))
    with pytest.raises(AssertionError, match="after averaging with decay"):
        testing.check_averaging(RoundedAway)
