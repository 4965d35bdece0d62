"""The interface every rotary shares, on plain RoPE: tables, entrances, positions, base, precision, state."""

import copy
import io

import pytest
import torch
from torch import nn

from cubelet.models.rotary import RoPE
from tests.reference import rotary as reference


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("base", [10_000.0, 37.5])
def test_rotate_equals_the_loop_over_tokens_and_pairs(base):
    rotary, x = RoPE(24, 3, base=base), draw(2, 3, 9, 8)
    assert torch.allclose(rotary.rotate(x).double(), reference.rope(x, base=base), atol=1e-6)


def test_agrees_with_rotary_embedding_torch():
    library = pytest.importorskip("rotary_embedding_torch", reason="extra `bench` is not installed")
    x = draw(2, 3, 50, 16)
    theirs = library.RotaryEmbedding(dim=16).rotate_queries_or_keys(x)
    assert torch.allclose(RoPE(48, 3).rotate(x), theirs, atol=2e-5)


def test_chunks_at_their_positions_equal_the_whole():
    rotary, x = RoPE(16, 2), draw(2, 2, 40, 8)
    whole = rotary.rotate(x)
    parts = [rotary.rotate(x[:, :, a:b], torch.arange(a, b)) for a, b in ((0, 1), (1, 7), (7, 40))]
    assert torch.allclose(torch.cat(parts, dim=2), whole, atol=1e-6)


def test_left_padded_samples_equal_each_alone():
    rotary, x = RoPE(16, 2), draw(2, 2, 6, 8)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]])  # two padding tokens in the second
    padded = rotary.rotate(x, positions)
    assert torch.allclose(padded.double(), reference.rope(x, positions), atol=1e-6)
    assert torch.allclose(padded[1:, :, 2:], rotary.rotate(x[1:, :, 2:]), atol=1e-6)


def test_positions_changed_in_place_are_read_again():
    rotary, x, positions = RoPE(16, 2), draw(1, 2, 4, 8), torch.arange(4)
    rotary.rotate(x, positions)
    positions += 5
    assert torch.allclose(rotary.rotate(x, positions).double(), reference.rope(x, positions), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_depend_on_differences_only(dtype):
    assert reference.relative_spread(RoPE(64, 2), dtype) <= (1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_at_4096_positions_is_exact_to_its_own_rounding(dtype):
    rotary, x = RoPE(32, 1), draw(1, 1, 4096, 32, dtype=dtype)
    angles = torch.arange(4096, dtype=torch.float64)[:, None] * 10_000.0 ** (-torch.arange(0, 32, 2).double() / 32)
    truth = torch.view_as_real(
        torch.view_as_complex(x.double().view(1, 1, 4096, 16, 2)) * torch.polar(torch.ones_like(angles), angles)
    )
    truth, got = truth.flatten(-2), rotary.rotate(x)
    assert got.dtype == dtype
    unavoidable = (truth.to(dtype).double() - truth).abs()
    assert ((got.double() - truth).abs() - unavoidable).max() <= 1e-5
    assert (got.double() - truth).abs().max() <= 0.016  # half a step of bfloat16 between 4 and 8


@pytest.mark.parametrize("view", ["transposed", "sliced", "odd_offset", "strided", "expanded"])
def test_any_memory_layout(view):
    x = draw(2, 5, 3, 16)
    q = {
        "transposed": lambda: x[..., :8].contiguous().transpose(1, 2),
        "sliced": lambda: draw(2, 5, 3, 3, 8)[:, :, :, 1].transpose(1, 2),
        "odd_offset": lambda: draw(2, 5, 3, 9)[..., 1:].transpose(1, 2),
        "strided": lambda: x[..., ::2].transpose(1, 2),
        "expanded": lambda: x[:1, :, :, :8].expand(2, 5, 3, 8).transpose(1, 2),
    }[view]()
    assert torch.allclose(RoPE(24, 3).rotate(q).double(), reference.rope(q), atol=1e-6)


def test_memory_order_of_the_projections_is_kept():
    q = draw(2, 5, 3, 8).transpose(1, 2)
    assert RoPE(24, 3).rotate(q).stride() == q.stride()


@pytest.mark.parametrize("shape", [(2, 7, 24), (2, 7, 3, 8)])
def test_embedding_level_rotates_each_head(shape):
    rotary, x = RoPE(24, 3), draw(*shape)
    heads = x.view(2, 7, 3, 8).transpose(1, 2)
    y = rotary(x)
    assert y.shape == x.shape
    assert torch.allclose(y, rotary.rotate(heads).transpose(1, 2).reshape(shape))
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [9, 1, 0, 3, 2, 5, 4]])
    assert torch.allclose(
        rotary(x, positions).view(2, 7, 3, 8).transpose(1, 2).double(), reference.rope(heads, positions), atol=1e-6
    )


def test_no_token_sees_another():
    rotary, x = RoPE(24, 3), draw(1, 3, 9, 8)
    moved = x.clone()
    moved[:, :, 5] += 1
    same = rotary.rotate(x) == rotary.rotate(moved)
    assert same[:, :, :5].all()
    assert same[:, :, 6:].all()
    assert torch.equal(rotary.rotate(x[:, :, :4]), rotary.rotate(x)[:, :, :4])


def test_gradient_is_the_inverse_rotation():
    x = draw(2, 2, 5, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(RoPE(16, 2).rotate, (x,))
    y = RoPE(16, 2).rotate(x)
    (back,) = torch.autograd.grad(y, x, y.detach())
    assert torch.allclose(back, x)


# -- base --


def test_set_base_moves_the_frequencies_in_place_and_counts():
    rotary, x = RoPE(16, 2), draw(1, 2, 50, 8)
    rotary.rotate(x)
    buffer, names = rotary.base, set(rotary.state_dict())
    rotary.set_base(500.0)
    assert rotary.base is buffer
    assert buffer.item() == 500.0
    assert buffer.dtype == torch.float32
    assert buffer.ndim == 0
    assert rotary.base_version == 1
    assert set(rotary.state_dict()) == names
    assert not list(rotary.parameters())
    assert torch.allclose(rotary.rotate(x).double(), reference.rope(x, base=500.0), atol=1e-5)
    rotary.set_base(torch.tensor(700.0))
    assert torch.allclose(rotary.rotate(x).double(), reference.rope(x, base=700.0), atol=1e-5)


def test_a_base_written_behind_its_back_is_noticed():
    """Averaged models and DDP copy buffers in place; no table may outlive that."""
    rotary, x = RoPE(16, 2), draw(1, 2, 50, 8)
    rotary.rotate(x)
    with torch.no_grad():
        rotary.base.copy_(torch.tensor(500.0))
    assert torch.allclose(rotary.rotate(x).double(), reference.rope(x, base=500.0), atol=1e-5)


def test_state_dict_carries_the_base():
    trained, fresh, x = RoPE(16, 2), RoPE(16, 2), draw(1, 2, 50, 8)
    trained.set_base(123.0)
    fresh.rotate(x)
    fresh.load_state_dict(trained.state_dict())
    assert fresh.base_version > 0
    assert torch.equal(fresh.rotate(x), trained.rotate(x))


def test_deepcopy_pickle_and_save():
    rotary, x = RoPE(16, 2), draw(1, 2, 50, 8)
    rotary.set_base(123.0)
    y = rotary.rotate(x)
    twin = copy.deepcopy(rotary)
    twin.set_base(7.0)
    assert torch.equal(rotary.rotate(x), y)
    assert not torch.equal(twin.rotate(x), y)
    file = io.BytesIO()
    torch.save(rotary, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False).rotate(x), y)


def test_validation_in_inference_mode_does_not_spoil_training():
    rotary, x = RoPE(16, 2), draw(1, 2, 50, 8)
    with torch.inference_mode():
        rotary.rotate(x)
        rotary.rotate(x, torch.arange(50))
    x.requires_grad_()
    rotary.rotate(x).sum().backward()
    assert x.grad is not None


def test_built_on_meta_then_loaded():
    with torch.device("meta"):
        rotary = RoPE(16, 2)
    assert rotary.base.is_meta
    assert rotary.rotate(torch.empty(1, 2, 5, 8, device="meta")).shape == (1, 2, 5, 8)
    x, trained = draw(1, 2, 50, 8), RoPE(16, 2, base=300.0)
    assigned = copy.deepcopy(rotary)
    rotary.to_empty(device="cpu").load_state_dict(trained.state_dict())
    assigned.load_state_dict(trained.state_dict(), assign=True)
    assert torch.equal(rotary.rotate(x), trained.rotate(x))
    assert torch.equal(assigned.rotate(x), trained.rotate(x))
    rotary.reset_parameters()
    assert rotary.base.item() == 10_000.0


@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half, nn.Module.double])
def test_casting_the_model_keeps_base_and_tables(cast):
    model, x = nn.ModuleList([RoPE(16, 2, base=12_345.0)]), draw(1, 2, 3000, 8)
    y = model[0].rotate(x)
    cast(model)
    assert model[0].base.dtype == torch.float32
    assert model[0].base.item() == 12_345.0
    assert torch.equal(model[0].rotate(x), y)


@pytest.mark.slow
def test_compiled_equals_eager_over_lengths_bases_and_layouts_without_recompiling():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    rotary = RoPE(16, 2)
    optimizer_step = torch.compile(rotary.rotate, fullgraph=True, dynamic=True)
    compiles = torch._dynamo.utils.counters["stats"]
    for length, base in ((33, 10_000.0), (70, 10_000.0), (70, 20.0), (129, 21.0)):
        rotary.set_base(base)
        x = draw(2, length, 2, 8).transpose(1, 2).requires_grad_()
        y = optimizer_step(x)
        (g,) = torch.autograd.grad(y, x, y.detach())
        assert torch.allclose(y, rotary.rotate(x), atol=1e-6)
        assert torch.allclose(g, x, atol=1e-5)
        assert compiles["unique_graphs"] == 1


# -- errors --


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((252, 4), "head_dim 63 is odd; rotary needs an even head_dim (dims 252 / heads 4)"),
        ((10, 3), "dims 10 is not divisible by heads 3"),
        ((10, 0), "dims 10 is not divisible by heads 0"),
    ],
)
def test_bad_widths(arguments, message):
    with pytest.raises(ValueError) as error:
        RoPE(*arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("base", [1.0, 0.5, -10.0, float("nan"), float("inf")])
def test_bad_bases(base):
    with pytest.raises(ValueError, match="finite number above 1"):
        RoPE(16, 2, base=base)
    rotary = RoPE(16, 2)
    with pytest.raises(ValueError, match="finite number above 1"):
        rotary.set_base(base)
    assert rotary.base.item() == 10_000.0


@pytest.mark.parametrize(
    ("positions", "error"),
    [
        (torch.arange(4), ValueError),
        (torch.zeros(3, 5, dtype=torch.long), ValueError),
        (torch.zeros(1, 1, 5, dtype=torch.long), ValueError),
        (torch.arange(5).float(), TypeError),
        (torch.ones(5, dtype=torch.bool), TypeError),
        ([0, 1, 2, 3, 4], TypeError),
    ],
)
def test_bad_positions(positions, error):
    with pytest.raises(error, match="positions"):
        RoPE(16, 2).rotate(draw(2, 2, 5, 8), positions)


def test_bad_inputs():
    with pytest.raises(ValueError, match=r"last of head_dim 8"):
        RoPE(16, 2).rotate(draw(2, 2, 5, 6))
    with pytest.raises(ValueError, match=r"want \(b, s, 16\) or \(b, s, 2, 8\)"):
        RoPE(16, 2)(draw(2, 5, 8))
    with pytest.raises(ValueError, match=r"merge\(q_proj, k_proj\)"):
        RoPE(16, 2).merge()
    with pytest.raises(ValueError, match="no multiple of head_dim 8"):
        RoPE(16, 2).merge(nn.Linear(16, 12))
