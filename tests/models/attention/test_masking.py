import pytest
import torch

from cubelet.models.attention.masking import AttentionScope
from cubelet.models.kernels.sdpa import sdpa_zero_empty


def test_queries_are_the_last_keys():
    lags = AttentionScope(2, 5, True).lags(torch.device("cpu"))
    assert lags.tolist() == [[3, 2, 1, 0, -1], [4, 3, 2, 1, 0]]


def test_allowed_joins_order_window_and_padding():
    key_mask = torch.tensor([[True, False, True, True]])
    scope = AttentionScope(4, 4, True, key_mask)
    allowed = scope.allowed(torch.device("cpu"), window=2)
    assert allowed is not None
    expected = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert allowed[0, 0].int().tolist() == expected
    both = AttentionScope(4, 4, False).allowed(torch.device("cpu"), window=1)
    assert both is not None
    assert both[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert AttentionScope(1, 4, True).allowed(torch.device("cpu")) is None, "one query at the end sees everything"


def test_distances_follow_positions_where_given():
    positions = torch.tensor([[0, 1, 5], [0, 2, 4]])
    distances = AttentionScope(3, 3, True, None, positions, positions).distances(torch.device("cpu"))
    assert distances[0].tolist() == [[0, -1, -5], [1, 0, -4], [5, 4, 0]]
    assert distances[1, 2].tolist() == [4, 2, 0]


def test_a_query_without_keys_gets_zeros_and_no_nan_flows_back():
    q, k, v = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1]]).bool()
    for bias in (None, torch.zeros(1, 2, 3, 3, requires_grad=True)):
        out = sdpa_zero_empty(q, k, v, mask=mask, bias=bias)
        assert torch.count_nonzero(out[:, :, 1]) == 0
        assert torch.allclose(out[:, :, 0], v[:, :, 0], atol=1e-6)
        out.sum().backward()
        assert all(t.grad is not None and t.grad.isfinite().all() for t in (q, k, v))
        assert bias is None or (bias.grad is not None and bias.grad.isfinite().all())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("told", ["nothing", "padding", "documents", "both"])
def test_visible_counts_what_the_mask_allows(causal, told):
    torch.manual_seed(0)
    mask = torch.rand(3, 7) > 0.3 if told in ("padding", "both") else None
    documents = torch.tensor([[0] * 7, [0, 0, 1, 1, 1, 2, 2], [5, 6, 6, 6, 6, 6, 6]]) if told != "padding" else None
    documents = None if told == "nothing" else documents
    rows = torch.tensor([[0, 3], [2, 6], [5, 5]])
    for queries in (7, 2, "rows"):
        last = 7 if queries == "rows" else queries
        theirs = None if documents is None else documents[:, 7 - last :]
        scope = AttentionScope(last, 7, causal, mask, query_documents=theirs, key_documents=documents)
        if queries == "rows":
            scope.ask_from(rows)
        allowed = scope.allowed(torch.device("cpu"))
        counts = scope.visible(torch.device("cpu"))
        expected = torch.full((3, scope.queries), 7) if allowed is None else allowed[:, 0].sum(-1)
        assert torch.equal(*torch.broadcast_tensors(counts, expected)), (queries, counts, expected)
