"""Forced alignment: the likeliest of all paths of a text, the same in a batch as alone."""

import itertools

import pytest
import torch

from cubelet.models.ctc_alignment import align_ctc
from tests.reference.speech import best_path


def spans_of(path):
    """(first, behind the last) frame of each run of one token that is no blank."""
    place, spans = 0, []
    for token, run in itertools.groupby(path):
        length = len(list(run))
        if token:
            spans.append((place, place + length))
        place += length
    return spans


def probabilities(rows, frames, vocabulary, seed):
    draw = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, frames, vocabulary, generator=draw)).log_softmax(-1)


@pytest.mark.parametrize("text", [[1], [1, 2], [1, 1], [2, 2, 1], [1, 2, 1, 2]])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_likeliest_of_all_paths(text, seed):
    log_probs = probabilities(1, 6, 3, seed)
    starts, ends = align_ctc(log_probs, torch.tensor([6]), torch.tensor([text]), torch.tensor([len(text)]))
    expected = spans_of(best_path(log_probs[0].numpy(), text))
    assert list(zip(starts[0].tolist(), ends[0].tolist(), strict=True)) == expected


def test_a_row_in_a_batch_is_aligned_as_alone():
    log_probs = probabilities(4, 40, 6, 0)
    lengths, counts = torch.tensor([40, 33, 12, 5]), torch.tensor([7, 10, 1, 5])
    tokens = torch.randint(1, 6, (4, 10), generator=torch.Generator().manual_seed(1))
    tokens[3, :5] = torch.arange(1, 6)  # as many states as tokens
    log_probs[1, 33:] = float("nan")
    for row, count in zip(tokens, counts, strict=True):
        row[count:] = 0
    starts, ends = align_ctc(log_probs, lengths, tokens, counts)
    for i in range(4):
        alone = align_ctc(log_probs[i : i + 1, : lengths[i]], lengths[i : i + 1], tokens[i : i + 1], counts[i : i + 1])
        assert torch.equal(starts[i], alone[0][0])
        assert torch.equal(ends[i], alone[1][0])
        told = slice(0, int(counts[i]))
        assert (starts[i, told] < ends[i, told]).all()
        assert (starts[i, told][1:] >= ends[i, told][:-1]).all()
        assert ends[i].max() <= lengths[i]
        assert (starts[i, counts[i] :] == -1).all()


def test_a_text_that_does_not_fit_and_an_empty_one_have_no_times():
    log_probs = probabilities(2, 3, 3, 0)
    starts, ends = align_ctc(
        log_probs, torch.tensor([3, 3]), torch.tensor([[1, 1, 1], [0, 0, 0]]), torch.tensor([3, 0])
    )
    assert (starts == -1).all()
    assert (ends == -1).all()
