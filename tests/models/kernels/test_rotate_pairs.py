"""The operators of compiled graphs compute the formula, with its gradients; eager code gives the same numbers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

from cubelet.models.kernels.rotate_pairs import rotate_pairs, rotate_real, rotate_steadily
from cubelet.models.rotary import RoPE
from cubelet.models.rotary.base import apply_rotary

ROOT = Path(__file__).parents[3]


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layouts(x):
    odd = torch.cat([x[..., :1], x], dim=-1)[..., 1:]  # memory that is not in pairs
    return [x, x.transpose(1, 2).contiguous().transpose(1, 2), odd]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_eager_and_operators_compute_the_formula(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = 30.0 ** -torch.linspace(0, 1, 8).double()
    angles = torch.arange(9).double()[:, None] * frequencies
    table = torch.stack((angles.cos(), angles.sin()), -1).to(wide) * 1.5
    for x in layouts(draw(2, 3, 9, 16, dtype=dtype)):
        exact = rotate_real(x.to(wide), *table.unbind(-1)).to(dtype)
        for y in (
            apply_rotary(x, torch.view_as_complex(table)),
            rotate_pairs(x, table),
            rotate_steadily(x, frequencies, 1.5, False),
        ):
            assert y.dtype == dtype
            assert torch.allclose(y, exact, atol=0.02 if dtype == torch.bfloat16 else 1e-5)


def test_gradients_of_the_operators():
    x, table = draw(1, 2, 3, 4, dtype=torch.float64), draw(3, 2, 2, dtype=torch.float64, seed=1)
    frequencies = draw(2, dtype=torch.float64, seed=2)
    assert torch.autograd.gradcheck(rotate_pairs, (x.requires_grad_(), table.requires_grad_()))
    assert torch.autograd.gradcheck(lambda x: rotate_steadily(x, frequencies, 0.7, False), (x,))
    for name, arguments in (("rotate_pairs", (x, table)), ("rotate_steadily", (x, frequencies, 0.7, True))):
        op = getattr(torch.ops.cubelet, name).default
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_tangents_pass_without_recording():
    rope = RoPE(32, 2)
    x, tangent = torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5, 16)
    with torch.no_grad(), forward_ad.dual_level():
        out = forward_ad.unpack_dual(rope.rotate(forward_ad.make_dual(x, tangent))).tangent
    assert out is not None
    assert torch.allclose(out, rope.rotate(tangent), atol=1e-6)


def test_rooms_can_be_imported_from_the_repository_beside_the_package():
    code = "from models.decoder import Decoder; import cubelet.models.decoder as c; assert c.Decoder is not Decoder"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
