"""LearnedSinusoidal: starts as sin/cos, learns, keeps its length, and goes on past its table."""

import copy
import math

import pytest
import torch

from cubelet.models.embeddings import LearnedSinusoidal, sinusoids


def by_hand(position, dims, base=10_000.0):
    row = [f(position * base ** (-2 * m / dims)) for m in range(dims // 2) for f in (math.sin, math.cos)]
    return torch.tensor(row, dtype=torch.float64)


def moved(**options):
    embedding = LearnedSinusoidal(8, 10, **options)
    with torch.no_grad():
        embedding.table += 0.3 * torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    return embedding


def test_sinusoids_equal_the_formula():
    for p in (0, 1, 7, 123_456):
        assert torch.allclose(sinusoids(torch.tensor(p), 8, 50.0), by_hand(p, 8, 50.0), atol=1e-9)


def test_starts_analytic_with_rows_of_length_one():
    rows = LearnedSinusoidal(8, 10)(12)  # two rows past the table
    assert rows.shape == (12, 8)
    for p in range(12):
        assert torch.allclose(rows[p].double(), by_hand(p, 8) / by_hand(p, 8).norm(), atol=1e-6)


def test_learned_rows_are_normalized_and_the_rest_is_analytic():
    embedding = moved(scale=3.0)
    rows = embedding(torch.tensor([[9, 2, 10], [500, -1, 2]]))
    assert rows.shape == (2, 3, 8)
    assert torch.allclose(rows.norm(dim=-1), torch.full((2, 3), 3.0))
    assert torch.allclose(rows[0, 1], 3 * embedding.table[2] / embedding.table[2].norm())
    assert torch.equal(rows[0, 1], rows[1, 2])
    for index, p in (((0, 2), 10), ((1, 0), 500), ((1, 1), -1)):
        assert torch.allclose(rows[index].double(), 3 * by_hand(p, 8) / by_hand(p, 8).norm(), atol=1e-5)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_table_learns_where_it_was_read(checkpoint):
    embedding = moved(checkpoint=checkpoint)
    target = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    (embedding(torch.tensor([1, 4, 12])) * target).sum().backward()
    touched = embedding.table.grad.abs().amax(dim=1) > 0
    assert touched.tolist() == [p in (1, 4) for p in range(10)]
    plain = moved()
    (plain(torch.tensor([1, 4, 12])) * target).sum().backward()
    assert torch.equal(embedding.table.grad, plain.table.grad)


def test_gradcheck():
    embedding = moved().double()
    positions = torch.tensor([0, 3, 3, 11])

    def run(table):
        return torch.func.functional_call(embedding, {"table": table}, (positions,))

    assert torch.autograd.gradcheck(run, (embedding.table,))


def test_state_dict_deepcopy_meta_and_half_precision():
    embedding = moved()
    fresh = LearnedSinusoidal(8, 10)
    fresh.load_state_dict(embedding.state_dict())
    assert torch.equal(fresh(12), embedding(12))
    assert torch.equal(copy.deepcopy(embedding)(12), embedding(12))
    with torch.device("meta"):
        late = LearnedSinusoidal(8, 10)
    late.to_empty(device="cpu").reset_parameters()
    assert torch.equal(late(12), LearnedSinusoidal(8, 10)(12))
    half = LearnedSinusoidal(8, 10).bfloat16()
    exact = LearnedSinusoidal(8, 10)(torch.tensor([100_003]))
    assert half(1).dtype == torch.bfloat16
    assert (half(torch.tensor([100_003])).float() - exact).abs().max() < 2e-3  # its position is not rounded


@pytest.mark.slow
def test_compiled_equals_eager_for_one_graph_over_lengths():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    embedding = moved()
    compiled = torch.compile(embedding, fullgraph=True, dynamic=True)
    for length in (5, 9, 14):
        positions = torch.arange(length)
        assert torch.allclose(compiled(positions), embedding(positions), atol=1e-6)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((7,), "dims 7 must be even"), ((8, 0), "max_length 0 must be at least 1")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LearnedSinusoidal(*arguments)
    with pytest.raises(ValueError, match=r"base 0.5 must be a finite number above 1"):
        LearnedSinusoidal(8, base=0.5)
    for wrong in (torch.ones(3), torch.ones(3, dtype=torch.bool)):
        with pytest.raises(TypeError, match="integer tensor"):
            LearnedSinusoidal(8)(wrong)
