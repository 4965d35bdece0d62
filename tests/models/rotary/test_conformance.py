"""What holds for every rotary of the room, whatever it computes."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from cubelet.models import rotary as room
from tests.reference import rotary as reference

VARIANTS = {
    "rope": lambda: room.RoPE(24, 2),
    "yarn": lambda: room.RoPE(24, 2, scaling=room.YaRNScaling(4.0)),
    "longrope": lambda: room.RoPE(
        24, 2, scaling=room.LongRoPEScaling(2.0, 8192, (1.0, 1.1, 1.2, 1.3, 1.4, 1.5), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    ),
    "proportional": lambda: room.RoPE(24, 2, scaling=room.ProportionalScaling(1.0, 0.5)),
    "combined": lambda: room.CombinedRotary(24, 2, rotations=9),
    "combined_frequencies": lambda: room.CombinedRotary(24, 2, learned_frequencies=True, checkpoint=True),
    "quaternion3": lambda: room.QuaternionRotary(24, 2),
    "quaternion4": lambda: room.QuaternionRotary(24, 2, group=4, direction=False),
    "quaternion_frame": lambda: room.QuaternionRotary(24, 2, stay_in_frame=True),
    "projected": lambda: room.ProjectedRotary(24, 2, rank=6),
    "axial": lambda: room.AxialRotary(24, 2, rotated=6, start_index=3),
    "axial_learned": lambda: room.AxialRotary(24, 2, learned_frequencies=True, scale_base=64.0),
    "compact": lambda: room.CompactRotary(24, 2, rotations=9),
    "learned_base": lambda: room.LearnedBaseRoPE(24, 2, speed=2.0),
    "mixed": lambda: room.MixedRotary(24, 2, axes=1, matrix=True),
    "mixed_shared": lambda: room.MixedRotary(24, 2, axes=1, per_head=False),
    "liere": lambda: room.LieRERotary(24, 2, axes=1, block=4),
    "liere_heads": lambda: room.LieRERotary(24, 2, axes=1, block=12, per_head=True),
}


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(params=VARIANTS)
def rotary(request):
    torch.manual_seed(0)
    return reference.nudge(VARIANTS[request.param]())


def test_rotate_is_turn_after_mixing(rotary):
    x, positions = draw(2, 2, 5, 12), torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])
    R = rotary.mixing()
    assert R is None or (R.shape == (12, 12) and R.dtype == torch.float32)
    mixed = x if R is None else x @ R
    assert torch.allclose(rotary.turn(mixed, positions), rotary.rotate(x, positions), atol=1e-6)
    assert torch.allclose(rotary.turn_keys(mixed, positions), rotary.rotate_keys(x, positions), atol=1e-6)


def test_chunks_and_samples_at_their_positions_equal_the_whole(rotary):
    x = draw(2, 2, 30, 12)
    whole = rotary.rotate(x)
    parts = [rotary.rotate(x[:, :, a:b], torch.arange(a, b)) for a, b in ((0, 1), (1, 7), (7, 30))]
    assert torch.allclose(torch.cat(parts, dim=2), whole, atol=2e-6)
    padded = torch.cat((torch.zeros(2, 2, 3, 12), x), dim=2)
    positions = torch.cat((torch.zeros(3, dtype=torch.long), torch.arange(30))).expand(2, 33)
    assert torch.allclose(rotary.rotate(padded, positions)[:, :, 3:], whole, atol=2e-6)
    assert torch.allclose(rotary.rotate(x[:, :, :9]), whole[:, :, :9], atol=1e-6)


def test_embedding_level_keeps_the_shape_and_equals_the_heads(rotary):
    x = draw(2, 7, 24)
    y = rotary(x)
    assert y.shape == x.shape
    assert torch.allclose(rotary(x.view(2, 7, 2, 12)).flatten(2), y, atol=1e-6)
    if not getattr(rotary, "stay_in_frame", False):
        assert torch.allclose(
            rotary.rotate(x.view(2, 7, 2, 12).transpose(1, 2)).transpose(1, 2).flatten(2), y, atol=1e-6
        )


def test_base_moves_in_place_and_travels_with_the_state(rotary):
    x, buffer = draw(1, 2, 30, 12), rotary.base
    before = rotary.rotate(x)
    rotary.set_base(40.0)
    assert rotary.base is buffer
    assert rotary.base_version > 0
    assert not torch.allclose(rotary.rotate(x), before, atol=1e-2)
    after = rotary.rotate(x)
    assert torch.equal(copy.deepcopy(rotary).rotate(x), after)
    assert torch.equal(pickle.loads(pickle.dumps(rotary)).rotate(x), after)
    file = io.BytesIO()
    torch.save(rotary.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    rotary.set_base(10_000.0)
    parent, version = nn.ModuleDict({"rotary": rotary}), rotary.base_version
    parent.load_state_dict({f"rotary.{name}": value for name, value in state.items()})
    assert torch.equal(rotary.rotate(x), after)
    assert rotary.base_version > version


def test_half_precision_inputs_lose_no_more_than_their_own_rounding(rotary):
    x, positions = draw(1, 2, 64, 12), torch.arange(4032, 4096)
    exact = rotary.rotate(x.bfloat16().float(), positions)
    half = rotary.rotate(x.bfloat16(), positions)
    assert half.dtype == torch.bfloat16
    bound = 0.015 * max(1.0, exact.abs().max().item() / 4)
    # Where R stands in front, the mixed vector is rounded once more.
    assert (half.float() - exact).abs().max() <= bound * (1 if rotary.mixing() is None else 2)
    kept = rotary.rotate(x, positions)
    assert torch.equal(nn.ModuleList([rotary]).bfloat16()[0].rotate(x, positions), kept)


def test_only_its_own_token_is_read(rotary):
    x = draw(1, 2, 9, 12)
    moved = x.clone()
    moved[:, :, 5] += 1
    same = (rotary.rotate(x) == rotary.rotate(moved)).all(-1).all(1)[0]
    assert same.tolist() == [t != 5 for t in range(9)]


def test_gradients_after_validation_in_inference_mode(rotary):
    x = draw(1, 2, 9, 12)
    with torch.inference_mode():
        rotary.rotate(x)
    x.requires_grad_()
    y = rotary.rotate(x)
    (g,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert g.isfinite().all()
    assert g.abs().max() > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_built_on_meta_then_loaded(name):
    trained = reference.nudge(VARIANTS[name]())
    with torch.device("meta"):
        late, assigned = VARIANTS[name](), VARIANTS[name]()
    late.to_empty(device="cpu").load_state_dict(trained.state_dict())
    assigned.load_state_dict(trained.state_dict(), assign=True)
    x = draw(1, 2, 9, 12)
    assert torch.equal(late.rotate(x), trained.rotate(x))
    assert torch.equal(assigned.rotate(x), trained.rotate(x))


@pytest.mark.slow
def test_all_compiled_in_one_graph_over_lengths_and_bases():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # RoPE and its scalings are compiled by test_base.py, the rest of CombinedRotary by test_combined.py.
    chosen = (
        "yarn",
        "longrope",
        "proportional",
        "combined_frequencies",
        "quaternion3",
        "quaternion4",
        "projected",
        "axial",
        "axial_learned",
        "compact",
        "learned_base",
        "mixed",
        "liere",
    )
    rotaries = nn.ModuleList(reference.nudge(VARIANTS[name]()) for name in chosen)

    def run(x):
        return torch.stack([rotary.rotate(x) for rotary in rotaries])

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for length, base in ((9, 10_000.0), (20, 20.0)):
        for rotary in rotaries:
            rotary.set_base(base)
        gradients = []
        for function in (run, compiled):
            rotaries.zero_grad()
            x = draw(1, length, 2, 12).transpose(1, 2).requires_grad_()
            y = function(x)
            (y * draw(*y.shape, seed=1)).sum().backward()
            gradients.append((y.detach(), x.grad, *(p.grad.clone() for p in rotaries.parameters())))
        for eager, fused in zip(*gradients, strict=True):
            assert torch.allclose(eager, fused, atol=2e-4, rtol=2e-4)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


CLASSES = [room.RoPE, room.CombinedRotary, room.QuaternionRotary, room.ProjectedRotary, room.AxialRotary]


@pytest.mark.parametrize("base", [*CLASSES, room.CompactRotary])
def test_a_subclass_may_have_parameters_and_a_reset_of_its_own(base):
    class Own(base):
        def __init__(self, dims, heads):
            super().__init__(dims, heads)
            self.extra = nn.Parameter(torch.empty(3))
            self.reset_parameters()

        def reset_parameters(self):
            super().reset_parameters()
            nn.init.ones_(self.extra)

    assert Own(24, 2).extra.tolist() == [1, 1, 1]


@pytest.mark.parametrize("make", [room.CombinedRotary, room.QuaternionRotary, room.ProjectedRotary])
def test_each_weight_is_drawn_once(make, monkeypatch):
    drawn = []
    for name in ("normal_", "orthogonal_", "uniform_"):
        original = getattr(nn.init, name)
        monkeypatch.setattr(nn.init, name, lambda t, *a, f=original, **k: drawn.append(id(t)) or f(t, *a, **k))
    make(24, 2)
    assert drawn
    assert len(drawn) == len(set(drawn))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", ["rope", "combined", "projected"])
def test_a_state_in_bfloat16_keeps_the_base_and_orthogonality(name, assign):
    trained, fresh = reference.nudge(VARIANTS[name]()), VARIANTS[name]()
    state = {
        key: value.bfloat16() if value.is_floating_point() else value for key, value in trained.state_dict().items()
    }
    assert state["base"].item() == 9984
    fresh.load_state_dict(state, assign=assign)
    assert fresh.base.item() == 10_000
    assert fresh.base.dtype == torch.float32
    if fresh.mixing() is not None:
        assert reference.orthogonality_error(fresh.mixing()) < 1e-6
    moved = VARIANTS[name]()
    moved.set_base(777.7)
    with pytest.raises(RuntimeError, match=r"holds 9984 in bfloat16.*has 777.7: save the base in float32"):
        moved.load_state_dict(state, assign=assign)


@pytest.mark.parametrize("base", [0.5, -3.0, float("nan"), float("inf")])
def test_a_wrong_base_is_refused_when_loaded(base):
    state = {**room.RoPE(24, 2).state_dict(), "base": torch.tensor(base)}
    with pytest.raises(RuntimeError, match="must be a finite number above 1"):
        room.RoPE(24, 2).load_state_dict(state)


@pytest.mark.parametrize(
    "name", ["combined", "quaternion3", "axial_learned", "mixed", "liere"]
)  # RoPE: tests/models/test_export.py
def test_exported_programs_hold_no_operator_of_this_package(name):
    rotary = reference.nudge(VARIANTS[name]()).eval()
    program = torch.export.export(rotary, (draw(2, 7, 24),), dynamic_shapes={"x": {1: torch.export.Dim.DYNAMIC}})
    assert not any("cubelet" in str(node.target) for node in program.graph.nodes)
    x = draw(2, 11, 24, seed=3)
    assert torch.allclose(program.module()(x), rotary(x), atol=1e-5)


def test_a_shared_rotary_builds_its_table_once(monkeypatch):
    rotary, x, made = room.RoPE(24, 2), draw(2, 2, 9, 12), []
    original = rotary._cis
    monkeypatch.setattr(rotary, "_cis", lambda *a, **k: made.append(1) or original(*a, **k))
    for layer in range(8):  # as a cache does: the same positions in a tensor of each layer's own
        rotary.rotate(x, torch.arange(9) + (layer >= 4))
        rotary.rotate(x, torch.stack([torch.arange(9), torch.arange(9) + 3]))
    assert len(made) == 1
