"""QuaternionRotary against Rodrigues' formula and Hamilton's product, one group and one token at a time."""

import math

import pytest
import torch

from cubelet.models.rotary import QuaternionRotary
from cubelet.models.rotary.quaternion import quaternion_product
from cubelet.models.rotary.rotation_matrix import frames
from tests.reference import rotary as reference


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def build(dims=22, heads=2, **more):
    torch.manual_seed(0)
    return reference.nudge(QuaternionRotary(dims, heads, **more))


def speed(rotary, side, g, number):
    direction = 1.0
    if rotary.direction is not None:
        direction = 2 / (1 + math.exp(-rotary.direction[side, g].item())) - 1
    return rotary.base.item() ** (-number / (rotary.groups * (rotary.group - 2))) * direction


def by_rodrigues(rotary, x, positions):
    """Groups of three: x + sin φ u×x + (1 − cos φ) u×(u×x)."""
    y = x.double().clone()
    for g in range(rotary.groups):
        u = rotary.axes[0, g].detach().double()
        u = u / u.norm()
        part = x[..., 3 * g : 3 * g + 3].double()
        for t, p in enumerate(positions.tolist()):
            angle, v = p * speed(rotary, 0, g, g), part[:, :, t]
            once = torch.linalg.cross(u.expand_as(v), v)
            twice = torch.linalg.cross(u.expand_as(v), once)
            y[:, :, t, 3 * g : 3 * g + 3] = v + math.sin(angle) * once + (1 - math.cos(angle)) * twice
    return y


def by_quaternions(rotary, x, positions):
    """Groups of four: exp(φ u) x exp(ψ v), real part first."""
    y = x.double().clone()
    for g in range(rotary.groups):
        for t, p in enumerate(positions.tolist()):
            value = x[:, :, t, 4 * g : 4 * g + 4].double()
            sides = []
            for side in (0, 1):
                u = rotary.axes[side, g].detach().double()
                angle = p * speed(rotary, side, g, 2 * g + side)
                sides.append(torch.cat((torch.tensor([math.cos(angle)]).double(), math.sin(angle) * u / u.norm())))
            left, right = (side.expand_as(value) for side in sides)
            y[:, :, t, 4 * g : 4 * g + 4] = quaternion_product(quaternion_product(left, value), right)
    return y


REFERENCES = {3: (22, by_rodrigues), 4: (24, by_quaternions)}


@pytest.mark.parametrize("direction", [True, False])
@pytest.mark.parametrize("group", [3, 4])
def test_rotate_equals_the_formula(group, direction):
    dims, formula = REFERENCES[group]
    rotary = build(dims, group=group, direction=direction, base=50.0)
    x, positions = draw(2, 2, 6, dims // 2), torch.tensor([0, 1, 2, 9, 4, 100])
    wanted = formula(rotary, x, positions)
    assert torch.allclose(rotary.rotate(x, positions).double(), wanted, atol=2e-6)
    embedded = rotary(x.transpose(1, 2), positions).transpose(1, 2)
    assert torch.allclose(embedded.double(), wanted, atol=2e-6)
    assert torch.equal(rotary.turn(x @ rotary.mixing(), positions), rotary.rotate(x, positions))
    assert torch.equal(rotary.rotate(x)[:, :, :3], rotary.rotate(x, torch.arange(6))[:, :, :3])


def test_hamiltons_product_by_hand():
    one, i, j, k = torch.eye(4, dtype=torch.float64)
    for a, b, c in ((i, j, k), (j, k, i), (k, i, j), (i, i, -one), (one, j, j), (j, i, -k)):
        assert torch.equal(quaternion_product(a, b), c)


def test_a_group_of_three_is_conjugation_by_a_unit_quaternion():
    rotary = build(6, 1, direction=False)
    x, u = draw(3, dtype=torch.float64), torch.nn.functional.normalize(rotary.axes[0, 0].detach().double(), dim=0)
    half = torch.tensor(5 * 1.0 / 2).double()  # position 5, frequency 1
    q = torch.cat((half.cos()[None], half.sin() * u))
    conjugate = q * torch.tensor([1, -1, -1, -1])
    turned = quaternion_product(quaternion_product(q, torch.cat((torch.zeros(1), x))), conjugate)
    padded = torch.cat((x, torch.zeros(3)))[None, None, None]
    assert torch.allclose(rotary.rotate(padded, torch.tensor([5]))[0, 0, 0, :3], turned[1:], atol=1e-6)


def test_frames_are_right_handed_about_any_axis():
    axes = torch.cat((draw(500, 3, dtype=torch.float64), torch.eye(3).double(), -torch.eye(3).double()))
    built = frames(axes)
    assert torch.allclose(built @ built.mT, torch.eye(3).double().expand(506, 3, 3), atol=1e-12)
    assert torch.allclose(torch.linalg.det(built), torch.ones(506).double())
    assert torch.allclose(built[:, 2], torch.nn.functional.normalize(axes, dim=-1))


@pytest.mark.parametrize(("group", "dims"), [(3, 64), (3, 66), (4, 64)])
def test_a_true_rotation_that_depends_on_the_position_after_500_steps_of_adam(group, dims):
    rotary = build(dims, group=group)
    optimizer = torch.optim.Adam(rotary.parameters(), lr=1e-2)
    c = rotary.head_dim
    basis, target = torch.eye(c).expand(1, 2, c, c), draw(1, 2, c, c)
    positions = torch.full((c,), 7)
    start = rotary.rotate(basis, positions).detach()
    for _ in range(500):
        optimizer.zero_grad()
        (rotary.rotate(basis, positions) - target).square().sum().backward()
        optimizer.step()
    Q = rotary.rotate(basis, positions)[0, 0]
    assert (Q - start[0, 0]).abs().max() > 0.1
    assert reference.orthogonality_error(Q) <= 1e-6
    assert torch.linalg.det(Q.detach().double()).item() == pytest.approx(1, abs=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reference.orthogonality_error(rotary.rotate(basis, positions)[0, 0]) <= 1e-6
    assert torch.allclose(rotary.rotate(basis, positions * 0), basis, atol=1e-6)
    assert not torch.allclose(rotary.rotate(basis, positions + 1)[0, 0], Q, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"group": 4}, {"stay_in_frame": True}])
def test_scores_depend_on_differences_only(options, dtype):
    rotary = build(64, 2, **options)
    assert rotary.is_relative
    assert reference.relative_spread(rotary, dtype) <= (1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("group", [3, 4])
def test_staying_in_the_frame_leaves_scores_and_embeddings_as_they_are(group):
    dims, _ = REFERENCES[group]
    there, back = build(dims, group=group, stay_in_frame=True), build(dims, group=group)
    q, k = draw(1, 2, 9, dims // 2), draw(1, 2, 9, dims // 2, seed=1)
    scores = [r.rotate(q) @ r.rotate(k).mT for r in (there, back)]
    assert torch.allclose(*scores, atol=1e-5)
    assert not torch.allclose(there.rotate(q), back.rotate(q), atol=0.1)
    assert torch.allclose(there(q.transpose(1, 2)), back(q.transpose(1, 2)), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"group": 4, "dims": 16}, {"stay_in_frame": True}])
def test_gradcheck_and_every_parameter_learns(options):
    rotary = build(**{"dims": 14, **options})
    c = rotary.head_dim
    (rotary.rotate(draw(1, 2, 5, c)) * draw(1, 2, 5, c, seed=1)).sum().backward()
    for name, parameter in rotary.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-6, name
    rotary.double()
    names = [name for name, _ in rotary.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(rotary, dict(zip(names, values, strict=True)), (x,))

    x = draw(1, 2, rotary.dims, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *rotary.parameters()))


def test_merged_projections_keep_the_result():
    x = draw(2, 5, 22)
    for options in ({}, {"stay_in_frame": True}):
        rotary, q = build(**options), torch.nn.Linear(22, 22)
        wanted = rotary.rotate(q(x).unflatten(-1, (2, 11)).transpose(1, 2))
        rotary.merge(q)
        assert rotary.mixing() is None
        assert torch.allclose(rotary.rotate(q(x).unflatten(-1, (2, 11)).transpose(1, 2)), wanted, atol=2e-6)


def test_base_and_state():
    rotary, x = build(), draw(1, 2, 30, 11)
    before = rotary.rotate(x)
    rotary.set_base(99.0)
    assert not torch.allclose(rotary.rotate(x), before, atol=1e-2)
    fresh = QuaternionRotary(22, 2)
    fresh.load_state_dict(rotary.state_dict())
    assert torch.equal(fresh.rotate(x), rotary.rotate(x))
    y = rotary.rotate(x)
    assert torch.equal(rotary.bfloat16().rotate(x), y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": 5}, "group 5 is neither 3"),
        ({"dims": 4}, "head_dim 2 must be at least 3 for groups of 3 (dims 4 / heads 2)"),
        ({"dims": 28, "group": 4}, "head_dim 14 must be a multiple of 4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        build(**arguments)
    assert message in str(error.value)
