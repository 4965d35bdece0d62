import pytest
import torch

from cubelet.models.cache import CacheGroup, ContextCache, KVCache, LayerCache
from tests.conformance.subject import noise


def rows(n, *, batch=2, seed=0):
    return noise(batch, 3, n, 4, seed=seed), noise(batch, 3, n, 4, seed=seed + 1)


def test_an_unbounded_cache_returns_everything_so_far():
    cache = LayerCache(2, 10, [(3, 4), (3, 4)])
    k, v = rows(7)
    one = cache.update(k[:, :, :4], v[:, :, :4])
    assert cache.length == 4
    assert torch.equal(one[0], k[:, :, :4])
    keys, values, positions = cache.update(k[:, :, 4:], v[:, :, 4:])
    assert torch.equal(keys, k)
    assert torch.equal(values, v)
    assert positions.tolist() == list(range(7))
    assert cache.valid is None


@pytest.mark.parametrize("sizes", [[1] * 9, [4, 1, 1, 3], [9], [2, 7]])
def test_a_windowed_cache_returns_what_the_window_still_reaches(sizes):
    cache = LayerCache(2, 9, [(3, 4), (3, 4)], window=4)
    k, v = rows(9)
    start = 0
    for size in sizes:
        keys, values, positions = cache.update(k[:, :, start : start + size], v[:, :, start : start + size])
        first = max(0, start - 3)
        assert torch.equal(keys, k[:, :, first : start + size])
        assert torch.equal(values, v[:, :, first : start + size])
        assert positions.tolist() == list(range(first, start + size))
        start += size
    assert cache.streams[0].shape[2] <= 3


def test_a_window_of_one_keeps_nothing():
    cache = LayerCache(2, 3, [(3, 4), (3, 4)], window=1)
    for _ in range(3):
        keys, _, positions = cache.update(*rows(1))
        assert keys.shape[2] == 1
    assert positions.tolist() == [2]


@pytest.mark.parametrize("window", [None, 3])
def test_positions_are_those_given_then_counted_on(window):
    cache = LayerCache(2, 9, [(3, 4), (3, 4)], window=window)
    cache.update(*rows(3), positions=torch.tensor([[0, 0, 1], [5, 6, 7]]))
    assert cache.next_positions(2, torch.device("cpu")).tolist() == [[2, 3], [8, 9]]
    *_, positions = cache.update(*rows(2))
    assert positions[:, -3:].tolist() == [[1, 2, 3], [7, 8, 9]]


@pytest.mark.parametrize("window", [None, 4])
def test_padding_is_remembered(window):
    cache = LayerCache(2, 9, [(3, 4), (3, 4)], window=window)
    mask = torch.tensor([[False, True, True], [True, True, True]])
    cache.update(*rows(3), key_mask=mask)
    cache.update(*rows(1))
    assert cache.valid.tolist() == [[False, True, True, True], [True] * 4]
    cache.update(*rows(1), key_mask=torch.tensor([[True, False, True, True, True], [True] * 5]))
    expected = [[True, False, True, True, True], [True] * 5]
    assert cache.valid.tolist() == [row[0 if window is None else 1 :] for row in expected]


@pytest.mark.parametrize("window", [None, 3])
def test_reorder(window):
    cache = LayerCache(2, 6, [(3, 4), (3, 4)], window=window)
    k, v = rows(2)
    cache.update(k, v, positions=torch.tensor([[0, 1], [4, 5]]), key_mask=torch.tensor([[True, True], [False, True]]))
    cache.reorder(torch.tensor([1, 1]))
    new = rows(1, seed=7)
    keys, values, positions = cache.update(*new)
    assert torch.equal(keys[:, :, :2], k[[1, 1]])
    assert torch.equal(values[:, :, :2], v[[1, 1]])
    assert positions.tolist() == [[4, 5, 6]] * 2
    assert cache.valid.tolist() == [[False, True, True]] * 2


def test_rows_keep_their_dtype_and_carry_no_gradient():
    cache = LayerCache(2, 4, [(3, 4), (3, 4)], dtype=torch.float32)
    k, v = (t.bfloat16().requires_grad_() for t in rows(2))
    keys, _, _ = cache.update(k, v)
    assert keys.dtype == torch.bfloat16
    assert not keys.requires_grad
    assert cache.streams[0].dtype == torch.float32


def test_errors_name_the_numbers():
    cache = LayerCache(2, 4, [(3, 4), (3, 4)])
    with pytest.raises(ValueError, match=r"max_length 4 tokens; 0 are held and 5 more"):
        cache.update(*rows(5))
    with pytest.raises(ValueError, match="batch of 2; got 2 for a batch of 3"):
        cache.update(*rows(1, batch=3))
    with pytest.raises(ValueError, match="holds 2 streams"):
        cache.update(rows(1)[0])
    with pytest.raises(ValueError, match="0"):
        LayerCache(2, 0, [(3, 4)])
    with pytest.raises(ValueError, match="window"):
        LayerCache(2, 4, [(3, 4)], window=0)
    with pytest.raises(ValueError, match="at least one layer"):
        KVCache([])


def test_versions_of_the_base():
    cache = LayerCache(2, 4, [(3, 4), (3, 4)])
    cache.check_version(1)
    cache.check_version(2)  # nothing is held yet
    cache.update(*rows(1))
    cache.check_version(2)
    with pytest.raises(RuntimeError, match=r"version 2 → 3\) while 1 keys"):
        cache.check_version(3)


def test_groups_pass_on():
    one, two = (LayerCache(2, 4, [(3, 4), (3, 4)]) for _ in range(2))
    cache = KVCache([CacheGroup(one, ContextCache()), two])
    assert cache.layers[1] is two
    k, v = rows(2)
    for part in (one, two):
        part.update(k, v)
    assert cache.length == 2
    cache.reorder(torch.tensor([1, 0]))
    assert torch.equal(one.streams[0][:, :, :2], k[[1, 0]])
    assert torch.equal(two.streams[1][:, :, :2], v[[1, 0]])


def test_a_reserve_is_kept_of_what_is_known_of_rows_too():
    """Positions, padding and documents of rows that only a reserve holds are there again after `crop`."""
    x, mask = noise(2, 3, 12, 4), torch.ones(2, 12, dtype=torch.bool)
    mask[0, :7] = False
    positions, documents = torch.arange(12) + 5, torch.tensor([[0] * 6 + [1] * 6, [2] * 12])
    cache = LayerCache(2, 20, [(3, 4)], window=4)
    cache.reserve = 5
    for piece in range(3):
        own = slice(4 * piece, 4 * piece + 4)
        cache.update(x[:, :, own], positions=positions[own], key_mask=mask[:, own], documents=documents[:, own])
    cache.crop(8)
    rows, at = cache.update(x[:, :, 8:9])
    assert torch.equal(rows, x[:, :, 5:9])
    assert at.tolist() == [10, 11, 12, 13]
    assert cache.valid is not None
    assert cache.valid.tolist() == [[False, False, True, True], [True] * 4]
    assert cache.documents is not None
    assert cache.documents.tolist() == [[0, 1, 1, 1], [2] * 4]
