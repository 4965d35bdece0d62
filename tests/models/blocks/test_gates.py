import pytest
import torch

from cubelet.models.blocks.gates import budget_penalty, gated_update, hard_choice, hard_gate, mean_over_tokens


def test_a_hard_gate_has_the_gradient_of_its_probability():
    p = torch.tensor([0.2, 0.5, 0.7], requires_grad=True)
    g = hard_gate(p)
    assert g.tolist() == [0, 0, 1]
    g.sum().backward()
    assert p.grad is not None
    assert p.grad.tolist() == [1, 1, 1]


def test_a_hard_choice_is_the_best_and_has_the_softmaxs_gradient():
    logits = torch.tensor([[0.1, 2.0, -1.0]], requires_grad=True)
    weight = torch.tensor([1.0, -2.0, 3.0])
    choice = hard_choice(logits, noisy=False)
    assert choice.tolist() == [[0, 1, 0]]
    (got,) = torch.autograd.grad((choice * weight).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(-1) * weight).sum(), logits)
    assert torch.allclose(got, expected)


def test_noisy_choices_follow_the_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0])
    share = hard_choice(logits.expand(20_000, 3), noisy=True).mean(0)
    assert torch.allclose(share, logits.softmax(-1), atol=0.015)


def test_means_leave_out_padding_and_budgets_are_free_below():
    values = torch.tensor([[1.0, 2.0, 6.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert mean_over_tokens(values, None) == 3
    assert mean_over_tokens(values, mask) == 1.5
    assert mean_over_tokens(values, torch.zeros(1, 3, dtype=torch.bool)) == 0
    assert budget_penalty(torch.tensor(0.4), 0.5, 2.0) == 0
    assert budget_penalty(torch.tensor(0.7), 0.5, 2.0).item() == pytest.approx(0.08)


def test_gates_that_are_closed_for_good_hand_no_denormal_gradients_on():
    x, y = torch.zeros(2, 1, 3), torch.ones(2, 1, 3, requires_grad=True)
    soft = torch.tensor([1e-3, 1e-37])[:, None, None]
    gated_update(x, y, torch.zeros(2, 1, 1), soft).sum().backward()
    assert y.grad is not None
    assert y.grad[:, 0, 0].tolist() == [pytest.approx(1e-3), 0.0]
