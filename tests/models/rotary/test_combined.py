"""CombinedRotary against the product of its rotations, one at a time, and what must stay true while it learns."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from cubelet.models.rotary import CombinedRotary, LinearScaling, RoPE
from tests.reference import rotary as reference

OPTIONS = {
    "default": {},
    "shared": {"shared_theta": True},
    "adjacent": {"pairs": "adjacent", "rotations": 7},
    "many": {"rotations": 11},
    "listed": {"pairs": [(0, 3), (3, 1), (1, 0), (5, 4)]},
    "few": {"rotations": 2},
    "no_matrix": {"matrix": "none"},
    "fixed": {"matrix": "fixed"},
    "free": {"matrix": "free"},
    "matrix_only": {"rotations": 0},
    "direction": {"direction": True},
    "plain_angles": {"theta_scale": False, "rotation_scale": False},
    "frequencies": {"learned_frequencies": True},
    "checkpoint": {"checkpoint": True},
    "scaled": {"output_scale": 3.0, "scaling": LinearScaling(2.0)},
}


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def build(option="default", dims=16, heads=2, amount=0.3, **more):
    torch.manual_seed(0)
    rotary = CombinedRotary(dims, heads, **{"seed": 4, **OPTIONS[option], **more})
    return reference.nudge(rotary, amount) if amount else rotary


def truth(rotary):
    """R by the literal product."""
    c = rotary.head_dim
    M = {"orthogonal": rotary.skew, "free": rotary.free}.get(rotary.matrix)
    if rotary.matrix == "orthogonal":
        S = (rotary.skew - rotary.skew.T).detach().double()
        M = rotary.anchor.double() @ torch.linalg.inv(torch.eye(c).double() - S) @ (torch.eye(c).double() + S)
    elif rotary.matrix == "fixed":
        M = rotary.anchor
    n = rotary.rotations * (1.0 if rotary.rotation_scale is None else rotary.rotation_scale.item())
    scale = 1.0 if rotary.theta_scale is None else rotary.theta_scale.item()
    if rotary.direction is not None:
        scale *= 2 / (1 + math.exp(-rotary.direction.item())) - 1
    thetas = rotary.thetas.expand(rotary.rotations).tolist() if rotary.rotations else []
    return reference.combined_mixing(rotary.pairs.tolist(), thetas, c, n, scale, None if M is None else M.detach())


@pytest.mark.parametrize("option", OPTIONS)
def test_mixing_equals_the_literal_product(option):
    rotary = build(option)
    R = rotary.mixing()
    assert R.dtype == torch.float32
    assert (R.double() - truth(rotary)).abs().max() < 1e-6
    assert not torch.allclose(R, torch.eye(8), atol=0.1)


@pytest.mark.parametrize("option", OPTIONS)
def test_rotate_is_mixing_then_rope(option):
    rotary, x = build(option, base=300.0), draw(2, 2, 5, 8)
    if option in ("frequencies", "scaled"):
        m = torch.arange(4).double()
        residual = (
            rotary.frequency_residual.double() if option == "frequencies" else torch.tensor(-math.log(2)).double()
        )
        angles = torch.arange(5)[:, None] * 300.0 ** (-m / 4) * residual.exp()
        pairs = torch.view_as_complex((x.double() @ truth(rotary)).view(2, 2, 5, 4, 2))
        gain = 3.0 if option == "scaled" else 1.0
        wanted = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles) * gain, angles)).flatten(-2)
    else:
        wanted = reference.rope(x.double() @ truth(rotary), base=300.0)
    assert torch.allclose(rotary.rotate(x).double(), wanted, atol=2e-6)
    assert torch.equal(rotary.turn(x @ rotary.mixing()), rotary.rotate(x))
    heads = rotary(x.transpose(1, 2))
    assert torch.allclose(heads.transpose(1, 2), rotary.rotate(x), atol=1e-6)
    assert torch.allclose(rotary(x.transpose(1, 2).flatten(2)), heads.flatten(2), atol=1e-6)


def test_the_orthogonal_matrix_is_that_of_torch_parametrizations():
    rotary = build(rotations=0)
    theirs = parametrizations.orthogonal(nn.Linear(8, 8, bias=False), orthogonal_map="cayley", use_trivialization=True)
    theirs.parametrizations.weight[0].base.copy_(rotary.anchor)
    with torch.no_grad():  # theirs takes the lower triangle and halves it
        theirs.parametrizations.weight.original.copy_(2 * (rotary.skew - rotary.skew.T))
    assert torch.allclose(rotary.mixing(), theirs.weight, atol=1e-6)


def test_soft_count_equals_the_integer_count_at_integers():
    rotary = build("many", matrix="none", rotation_scale=True)
    for n in (0, 1, 5, 11):
        nn.init.constant_(rotary.rotation_scale, n / 11)
        first = CombinedRotary(16, 2, pairs=rotary.pairs[:n].tolist(), matrix="none", rotation_scale=False)
        if n == 0:
            assert torch.allclose(rotary.mixing(), torch.eye(8), atol=1e-6)
            continue
        with torch.no_grad():
            first.thetas.copy_(rotary.thetas[:n])
            first.theta_scale.copy_(rotary.theta_scale)
        assert torch.allclose(rotary.mixing(), first.mixing(), atol=2e-6)


def test_angles_start_at_zero_so_that_it_starts_as_rope():
    rotary, x = CombinedRotary(16, 2, matrix="none"), draw(1, 2, 9, 8)
    assert torch.equal(rotary.rotate(x), RoPE(16, 2).rotate(x))


def test_it_can_start_as_rope_with_a_matrix_that_learns():
    rotary, x = CombinedRotary(16, 2, start="identity"), draw(1, 2, 9, 8)
    assert torch.allclose(rotary.rotate(x), RoPE(16, 2).rotate(x), atol=1e-6)
    (rotary.rotate(x) * draw(1, 2, 9, 8, seed=1)).sum().backward()
    assert rotary.skew.grad.abs().max() > 1e-3


def test_layers_differ_unless_seeded_and_follow_torchs_generator():
    torch.manual_seed(3)
    a, b = CombinedRotary(64, 2), CombinedRotary(64, 2)
    assert not torch.equal(a.pairs, b.pairs)
    torch.manual_seed(3)
    assert torch.equal(CombinedRotary(64, 2).pairs, a.pairs)
    assert torch.equal(CombinedRotary(64, 2, seed=1).pairs, CombinedRotary(64, 2, seed=1).pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("option", ["default", "free", "frequencies"])
def test_scores_depend_on_differences_only(option, dtype):
    rotary = build(option, dims=64)
    assert rotary.is_relative
    assert reference.relative_spread(rotary, dtype) <= (1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("option", ["default", "many", "no_matrix", "direction"])
def test_orthogonal_after_500_steps_of_adam_and_under_autocast(option):
    rotary = build(option, dims=64, amount=0)
    optimizer = torch.optim.Adam(rotary.parameters(), lr=1e-2)
    target = draw(32, 32)
    start = rotary.mixing().detach()
    for _ in range(500):
        optimizer.zero_grad()
        (rotary.mixing() - target).square().sum().backward()
        optimizer.step()
    assert reference.orthogonality_error(rotary.mixing()) <= 1e-6
    assert torch.linalg.det(rotary.mixing().double()).item() == pytest.approx(1, abs=1e-5)
    assert (rotary.mixing() - start).abs().max() > 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reference.orthogonality_error(rotary.mixing()) <= 1e-6
        x = draw(1, 2, 4, 32)
        y = rotary.rotate(x)
    assert torch.equal(y, rotary.rotate(x))  # float32 inputs lose nothing to autocast


def test_free_matrix_penalty_is_its_distance_from_orthogonal():
    rotary = build("free")
    M = rotary.free.detach().double()
    assert rotary.penalty().item() == pytest.approx((M.T @ M - torch.eye(8)).square().sum().item(), rel=1e-5)
    rotary.penalty().backward()
    assert rotary.free.grad.abs().max() > 0
    assert build("default").penalty().item() == 0
    assert build("free", amount=0).penalty().item() < 1e-9


@pytest.mark.parametrize("option", OPTIONS)
def test_every_parameter_learns(option):
    rotary, x = build(option, amount=0.1), draw(1, 2, 6, 8)
    if rotary.rotation_scale is not None:
        nn.init.constant_(rotary.rotation_scale, 0.7)  # off the clamp's corners
    (rotary.rotate(x) * draw(1, 2, 6, 8, seed=1)).sum().backward()
    for name, parameter in rotary.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-6, name


def test_gradients_at_the_initial_values():
    rotary, x = build("frequencies", amount=0, direction=True), draw(1, 2, 6, 8)
    (rotary.rotate(x) * draw(1, 2, 6, 8, seed=1)).sum().backward()
    for name in ("thetas", "skew", "frequency_residual"):
        assert getattr(rotary, name).grad.abs().max() > 1e-6, name
    for name in ("theta_scale", "rotation_scale", "direction"):  # they scale angles that are zero
        assert getattr(rotary, name).grad.abs().max() == 0, name


@pytest.mark.parametrize("option", ["default", "many", "frequencies", "free", "direction", "checkpoint"])
def test_gradcheck(option):
    rotary = build(option, dims=12, rotations=4).double() if option != "many" else build("many").double()
    if rotary.rotation_scale is not None:
        nn.init.constant_(rotary.rotation_scale, 0.62)
    names = [name for name, _ in rotary.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(rotary, dict(zip(names, values, strict=True)), (x,))

    x = draw(1, 2, rotary.dims, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *rotary.parameters()))


@torch.no_grad()
def test_kept_mixing_follows_every_change_of_what_it_is_made_of():
    rotary = build("many")
    first = rotary.mixing()
    assert rotary.mixing() is first
    for name in ("thetas", "theta_scale", "rotation_scale", "skew", "anchor", "pairs"):
        value = getattr(
            rotary, "pairs_digits" if name == "pairs" else name
        ).data  # writing through .data counts no version
        if name == "pairs":
            value.copy_(value.flip(0))
            rotary.load_state_dict(rotary.state_dict())
        elif name == "anchor":
            value.copy_(value.flip(0))
        else:
            value.mul_(0.5)
        assert torch.equal(rotary.mixing(), rotary._compose()), name
        assert not torch.equal(rotary.mixing(), first), name
        first = rotary.mixing()
    with torch.inference_mode():
        kept = build().mixing()
    assert not kept.is_inference()
    with torch.enable_grad():
        assert rotary.mixing().requires_grad
    assert rotary.double().mixing().dtype == torch.float64


def test_checkpointing_changes_nothing():
    plain, saving, x = build(), build("checkpoint"), draw(1, 2, 6, 8)
    assert torch.equal(plain.rotate(x), saving.rotate(x))
    plain.rotate(x).square()[..., 0].sum().backward()
    saving.rotate(x).square()[..., 0].sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_learned_frequencies_keep_a_base_that_moves():
    rotary, x = build("frequencies"), draw(1, 2, 30, 8)
    before = rotary.rotate(x)
    rotary.set_base(50.0)
    assert not torch.allclose(rotary.rotate(x), before, atol=1e-2)
    ratio = rotary.frequencies() / 50.0 ** (-torch.arange(4).double() / 4)
    assert torch.allclose(ratio, rotary.frequency_residual.double().exp())


def test_output_scale_of_the_notes_is_the_root_of_dims():
    rotary = build(output_scale="sqrt_dims")
    x = draw(1, 5, 16)
    assert torch.allclose(rotary(x), 4 * build()(x), atol=1e-5)


@pytest.mark.parametrize("option", ["many", "frequencies", "fixed"])
def test_state_dict_gives_bit_equal_outputs(option):
    rotary, x = build(option), draw(1, 2, 9, 8)
    rotary.set_base(77.0)
    fresh = CombinedRotary(16, 2, **{"seed": 99, **OPTIONS[option]})
    assert not torch.equal(fresh.rotate(x), rotary.rotate(x))
    fresh.load_state_dict(rotary.state_dict())
    assert torch.equal(fresh.rotate(x), rotary.rotate(x))
    assert torch.equal(copy.deepcopy(rotary).rotate(x), rotary.rotate(x))


def test_built_on_meta_then_loaded():
    rotary, x = build("many"), draw(1, 2, 9, 8)
    with torch.device("meta"):
        other = CombinedRotary(16, 2, **OPTIONS["many"])
    other.to_empty(device="cpu")
    other.load_state_dict(rotary.state_dict())
    assert torch.equal(other.rotate(x), rotary.rotate(x))
    with torch.device("meta"):
        third = CombinedRotary(16, 2, **OPTIONS["many"])
    third.to_empty(device="cpu").reset_parameters()
    assert torch.isfinite(third.rotate(x)).all()
    assert reference.orthogonality_error(third.mixing()) < 1e-6


def test_a_bfloat16_model_keeps_a_float32_rotary():
    rotary, x = build("frequencies"), draw(1, 2, 2000, 8)
    y = rotary.rotate(x)
    model = nn.ModuleList([rotary, nn.Linear(2, 2)]).bfloat16()
    assert model[1].weight.dtype == torch.bfloat16
    assert torch.equal(rotary.rotate(x), y)


@pytest.mark.slow
def test_compiled_equals_eager_for_one_graph_over_lengths_and_bases():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    rotary = build("many", learned_frequencies=True, direction=True)
    compiled = torch.compile(rotary.rotate, fullgraph=True, dynamic=True)
    optimizer = torch.optim.SGD(rotary.parameters(), lr=1e-3)
    stats = torch._dynamo.utils.counters["stats"]
    for length, base in ((9, 10_000.0), (20, 20.0), (31, 21.0)):
        rotary.set_base(base)
        x, w = draw(1, 2, length, 8), draw(1, 2, length, 8, seed=1)
        gradients = []
        for run in (rotary.rotate, compiled):
            optimizer.zero_grad()
            y = run(x)
            (y * w).sum().backward()
            gradients.append((y.detach(), *(p.grad.clone() for p in rotary.parameters())))
        for a, b in zip(*gradients, strict=True):
            assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)
        optimizer.step()
        assert stats["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotations": 29}, "rotations 29 is outside 0…28: head_dim 8 has only 28 random pairs"),
        ({"rotations": 9, "pairs": "adjacent"}, "head_dim 8 has only 8 adjacent pairs"),
        ({"rotations": -1}, "outside 0…28"),
        ({"pairs": "nearby"}, "pairs 'nearby' is unknown"),
        ({"pairs": [(0, 1)], "rotations": 3}, "rotations 3 but 1 pairs"),
        ({"matrix": "skew"}, "matrix 'skew' is unknown"),
        ({"output_scale": "sqrt"}, "output_scale 'sqrt' is unknown"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        CombinedRotary(16, 2, **arguments)
    assert message in str(error.value)
