"""Sampling: filters against their definitions, draws against the probabilities they should follow."""

import pytest
import torch

from cubelet.models.sampling import check_sampling, filter_logits, sample


def test_top_k_keeps_exactly_the_largest():
    logits = torch.tensor([[0.1, 3.0, 2.0, -1.0], [5.0, 4.0, 3.0, 2.0]])
    kept = filter_logits(logits, top_k=2).isfinite()
    assert kept.tolist() == [[False, True, True, False], [True, True, False, False]]


def test_top_k_beyond_the_vocabulary_changes_nothing():
    logits = torch.randn(3, 7)
    assert torch.equal(filter_logits(logits, top_k=9), logits)


@pytest.mark.parametrize(("p", "count"), [(0.05, 1), (0.5, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, count):
    probabilities = torch.tensor([[0.2, 0.5, 0.0001, 0.2999]])
    kept = filter_logits(probabilities.log(), top_p=p).isfinite()
    assert int(kept.sum()) == count
    assert kept[0, 1]  # the largest is never dropped


def test_temperature_zero_is_greedy():
    logits = torch.randn(5, 11)
    assert torch.equal(sample(logits, temperature=0), logits.argmax(-1))


def test_draws_follow_the_tempered_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20_000, 3)
    drawn = sample(logits, temperature=2.0, generator=torch.Generator().manual_seed(0))
    expected = (logits[0] / 2).softmax(-1)
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    assert torch.allclose(share, expected, atol=0.02)


def test_the_generator_is_the_only_source_of_randomness():
    logits = torch.randn(8, 50)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sample(logits, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(sample(logits, generator=torch.Generator().manual_seed(3)), first)


@pytest.mark.parametrize(
    ("settings", "number"),
    [((-1.0, None, None), "-1.0"), ((1.0, 0, None), "top_k 0"), ((1.0, None, 0.0), "0.0"), ((1.0, None, 1.5), "1.5")],
)
def test_impossible_settings_are_named(settings, number):
    with pytest.raises(ValueError, match=number):
        check_sampling(*settings)


def test_of_equal_logits_top_k_keeps_no_more_than_k():
    assert int(filter_logits(torch.zeros(1, 6), top_k=2).isfinite().sum()) == 2


@pytest.mark.parametrize("temperature", [1e-40, 1e-320, 1e-3])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = torch.tensor([[0.0, 3.0, 2.5], [1e4, -1e4, 0.0]])
    assert sample(logits, temperature=temperature).tolist() == [1, 0]


def test_a_generator_a_row_draws_as_alone():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    together = sample(logits, generator=[torch.Generator().manual_seed(i) for i in range(3)])
    alone = [sample(logits[i : i + 1], generator=torch.Generator().manual_seed(i)) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
