"""AxialRotary: axes, spacings, ranges, rescaling, partial rotation and xPos, against loops and real libraries."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from cubelet.models.rotary import AxialRotary, NTKScaling, RoPE, grid_positions
from tests.reference import rotary as reference

CONFIGS = Path(__file__).parents[3] / "configs"


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_one_axis_is_rope():
    x, positions = draw(2, 2, 9, 8), torch.arange(9) * 3
    axial = AxialRotary(16, 2, base=77.0)
    assert torch.equal(axial.rotate(x), RoPE(16, 2, base=77.0).rotate(x))
    assert torch.equal(axial.rotate(x, positions), RoPE(16, 2, base=77.0).rotate(x, positions))


def test_each_axis_turns_its_own_features():
    rotary, x, positions = AxialRotary(20, 1, axes=3, base=50.0), draw(1, 1, 24, 20), grid_positions(2, 3, 4)
    assert rotary.pairs_of_axis == (4, 3, 3)
    y = rotary.rotate(x, positions)
    for axis, (begin, end) in enumerate(((0, 8), (8, 14), (14, 20))):
        wanted = reference.rope(x[..., begin:end], positions[:, axis], base=50.0)
        assert torch.allclose(y[..., begin:end].double(), wanted, atol=1e-6)


def test_positions_per_sample_and_embedding_level():
    rotary, x = AxialRotary(16, 2, axes=2), draw(2, 6, 16)
    positions = torch.stack((grid_positions(2, 3), grid_positions(3, 2)))
    y = rotary(x, positions)
    for i in range(2):
        heads = x[i : i + 1].view(1, 6, 2, 8).transpose(1, 2)
        assert torch.allclose(y[i].view(6, 2, 8).transpose(0, 1), rotary.rotate(heads, positions[i])[0], atol=1e-6)


def test_grid_positions_are_row_major():
    assert grid_positions(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert grid_positions(3).tolist() == [[0], [1], [2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_scores_depend_on_differences_along_each_axis(axes, dtype):
    rotary = reference.nudge(AxialRotary(64, 2, axes=axes, learned_frequencies=True))
    shape = {"axes": axes} if axes > 1 else {}
    assert rotary.is_relative
    assert reference.relative_spread(rotary, dtype, **shape) <= (1e-6 if dtype == torch.float32 else 1e-12)


def test_linear_frequencies_at_fractional_positions_agree_with_rotary_embedding_torch():
    library = pytest.importorskip("rotary_embedding_torch", reason="extra `bench` is not installed")
    theirs = library.RotaryEmbedding(dim=8, freqs_for="pixel", max_freq=12.0)
    rotary = AxialRotary(16, 1, axes=2, frequencies="linear", max_frequency=12.0)
    x, line = draw(1, 1, 15, 16), torch.linspace(-1, 1, 5)
    positions = torch.stack((torch.linspace(-1, 1, 3).repeat_interleave(5), line.repeat(3)), dim=-1)
    wanted = library.apply_rotary_emb(theirs.get_axial_freqs(3, 5).flatten(0, 1), x)
    assert torch.allclose(rotary.rotate(x, positions), wanted, atol=1e-5)


def test_ranges_set_the_ends_and_the_spacing():
    ranges = [(2.0, 0.5), (1.0, 0.01)]
    geometric = AxialRotary(24, 2, axes=2, freq_ranges=ranges).frequencies()
    assert torch.allclose(geometric, torch.tensor([2.0, 1.0, 0.5, 1.0, 0.1, 0.01]).double())
    linear = AxialRotary(24, 2, axes=2, freq_ranges=ranges, frequencies="linear").frequencies()
    assert torch.allclose(linear, torch.tensor([2.0, 1.25, 0.5, 1.0, 0.505, 0.01]).double())


def test_rescale_is_ntk_on_every_axis():
    rotary = AxialRotary(32, 1, axes=2, rescale=4.0)
    wanted = NTKScaling(4.0).frequencies(torch.tensor(1e4).double(), 16)
    assert torch.allclose(rotary.frequencies(), torch.cat((wanted, wanted)))


@pytest.mark.parametrize(("dims", "start", "rotated"), [(32, 4, 6), (32, 3, 6), (30, 2, 10), (32, 7, None), (32, 0, 4)])
def test_partial_rotary_turns_only_its_features(dims, start, rotated):
    rotary, x = AxialRotary(dims, 2, start_index=start, rotated=rotated, base=50.0), draw(2, 2, 5, dims // 2)
    end = start + (8 if rotated is None else rotated)
    y = rotary.rotate(x)
    assert torch.equal(y[..., :start], x[..., :start])
    assert torch.equal(y[..., end:], x[..., end:])
    assert torch.allclose(y[..., start:end].double(), reference.rope(x[..., start:end], base=50.0), atol=1e-6)
    assert torch.allclose(rotary(x.transpose(1, 2)).transpose(1, 2), y, atol=1e-6)


def test_xpos_scores_decay_with_distance_and_stay_relative_through_rotate_keys():
    rotary = AxialRotary(32, 1, scale_base=64.0)
    assert not rotary.is_relative
    q, k = draw(1, 1, 1, 32, dtype=torch.float64), draw(1, 1, 1, 32, dtype=torch.float64, seed=1)

    def score(p, j):
        return (rotary.rotate(q, torch.tensor([p])) * rotary.rotate_keys(k, torch.tensor([j]))).sum().item()

    for distance in (0, 3, 50):
        assert score(distance + 11, 11) == pytest.approx(score(distance + 400, 400), rel=1e-9)
        wanted = 0.0
        for m in range(16):
            a = complex(q[0, 0, 0, 2 * m], q[0, 0, 0, 2 * m + 1])
            b = complex(k[0, 0, 0, 2 * m], k[0, 0, 0, 2 * m + 1])
            turn = complex(math.cos(distance * 1e4 ** (-m / 16)), math.sin(distance * 1e4 ** (-m / 16)))
            wanted += (a * turn * b.conjugate()).real * ((2 * m / 32 + 0.4) / 1.4) ** (distance / 64)
        assert score(distance + 11, 11) == pytest.approx(wanted, rel=1e-9)
    plain = AxialRotary(32, 1)
    assert torch.equal(plain.rotate_keys(k), plain.rotate(k))


def test_learned_frequencies_learn_and_move_with_the_base():
    rotary = reference.nudge(AxialRotary(16, 2, axes=2, learned_frequencies=True)).double()
    x, positions = draw(1, 6, 16, dtype=torch.float64).requires_grad_(), grid_positions(2, 3)

    def run(x, residual):
        return torch.func.functional_call(rotary, {"frequency_residual": residual}, (x, positions))

    assert torch.autograd.gradcheck(run, (x, rotary.frequency_residual))
    (run(x, rotary.frequency_residual) * draw(1, 6, 16, dtype=torch.float64, seed=1)).sum().backward()
    assert rotary.frequency_residual.grad.abs().max() > 1e-6
    before = rotary.frequencies()
    rotary.set_base(10.0)
    assert (rotary.frequencies() != before).any()
    rotary.reset_parameters()
    assert rotary.frequency_residual.abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotated": 5}, "rotated 5 from start_index 0 must be even"),
        ({"rotated": 10}, "fit into head_dim 8 (dims 16 / heads 2)"),
        ({"start_index": 7}, "rotated 0 from start_index 7"),
        ({"axes": 5}, "at least 2 for each of the 5 axes"),
        ({"frequencies": "log"}, "frequencies 'log' is unknown"),
        ({"freq_ranges": [(1, 2)]}, "1 pairs (highest, lowest) above 0"),
        ({"axes": 2, "freq_ranges": [(2, 1)]}, "2 pairs (highest, lowest)"),
        ({"rescale": 0.5}, "rescale 0.5 must be at least 1"),
        ({"rescale": 2.0, "frequencies": "linear"}, "rescale moves the base"),
        ({"scale_base": 512.0, "axes": 2}, "needs a single axis, not 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        AxialRotary(16, 2, **arguments)
    assert message in str(error.value)


def test_bad_positions():
    rotary, x = AxialRotary(16, 2, axes=2), draw(1, 2, 6, 8)
    with pytest.raises(ValueError, match="positions of 2 axes have no default"):
        rotary.rotate(x)
    with pytest.raises(ValueError, match=r"positions have shape \(6,\); want \(6, 2\) or \(1, 6, 2\)"):
        rotary.rotate(x, torch.arange(6))
    with pytest.raises(TypeError, match="boolean"):
        rotary.rotate(x, torch.ones(6, 2, dtype=torch.bool))


def test_the_linear_grid_of_the_configs_tells_distances_apart():
    """No period is below two tokens (those would be aliased), and no distance of a context looks like a small one."""
    config = yaml.safe_load((CONFIGS / "rotary" / "axial_linear.yaml").read_text())
    options = config["model"]["rotary"]["init_args"]
    for dims, heads in ((128, 4), (64, 1)):  # of configs/text.yaml and configs/synthetic.yaml
        frequencies = AxialRotary(dims, heads, **options).frequencies()
        assert 2 * math.pi / frequencies.max() >= 2
        assert 2 * math.pi / frequencies.min() >= 256
        scores = torch.cos(torch.arange(257)[:, None] * frequencies).mean(-1)  # of equal vectors, by distance
        assert (scores[16:] < 0.5).all()
    pixels = torch.cos(torch.arange(257)[:, None] * AxialRotary(128, 4, frequencies="linear").frequencies()).mean(-1)
    assert (pixels[2:] > 0.9).any()  # what the config must not be
