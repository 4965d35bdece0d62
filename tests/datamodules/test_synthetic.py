"""Synthetic tasks: every row is what the task says, batches are pure functions of their place, lengths generalise."""

import lightning as L
import pytest
import torch
from torch import nn

from cubelet.datamodules.synthetic import SyntheticDataModule


def rows_of(batch):
    return zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True)


def whole(tokens, targets):
    """A row with its predicted tokens in place, and where they stand."""
    text = [*tokens, None]
    places = [i + 1 for i, target in enumerate(targets) if target != -100]
    for place in places:
        if text[place] is None:
            text[place] = targets[place - 1]
        assert text[place] == targets[place - 1]  # a target is the next token
    return text, places


def number(digits):
    return sum(digit * 10**place for place, digit in enumerate(digits))


def is_right(task, question, answer):
    """Whether an answer is what the task asks for, said another way than the task makes it."""
    if task == "copy":
        return answer == question
    if task == "reverse":
        return answer == list(reversed(question))
    if task == "sort":
        return answer == sorted(set(question)) and len(answer) == len(question)
    if task == "addition":
        n = question.index(10)
        first, plus, second = question[:n], question[n], question[n + 1 :]
        return plus == 10 and len(first) == len(second) and number(answer) == number(first) + number(second)
    return set(question) <= {0, 1} and answer == [question[: i + 1].count(1) % 2 for i in range(len(question))]


@pytest.mark.parametrize("task", ["copy", "reverse", "sort", "addition", "parity"])
def test_rows_are_a_question_a_separator_and_the_right_answer(task):
    data = SyntheticDataModule(task, 33, 128, min_length=9, symbols=64)
    sizes = set()
    for tokens, targets in rows_of(next(iter(data.train_dataloader()))):
        n = tokens.index(64)
        text, places = whole(tokens, targets)
        assert is_right(task, tokens[:n], [text[p] for p in places])
        assert places == list(range(n + 1, n + 1 + len(places)))
        assert all(t == 64 for t in text[places[-1] + 1 :] if t is not None)
        sizes.add(n)
    assert sizes == (set(range(5, 22, 2)) if task == "addition" else set(range(4, 17)))


def test_recall_rows_ask_every_key_once_and_answer_by_its_value():
    data = SyntheticDataModule("recall", 32, 64, min_length=8, symbols=40)
    counts, moved = set(), 0
    for tokens, targets in rows_of(next(iter(data.train_dataloader()))):
        text, places = whole(tokens, targets)
        pairs = len(places)
        counts.add(pairs)
        given = dict(zip(text[: 2 * pairs : 2], text[1 : 2 * pairs : 2], strict=True))
        assert len(given) == pairs
        assert all(k < 20 <= v < 40 for k, v in given.items())
        asked = text[2 * pairs : 4 * pairs : 2]
        assert sorted(asked) == sorted(given)
        assert places == list(range(2 * pairs + 1, 4 * pairs, 2))
        assert all(text[p] == given[text[p - 1]] for p in places)
        moved += asked != list(given)
    assert counts == set(range(2, 9))
    assert moved > 50


@pytest.mark.parametrize("task", ["copy", "addition", "recall"])
def test_batches_follow_from_seed_and_place_alone(task):
    one, two, other = (SyntheticDataModule(task, 32, 4, seed=s) for s in (0, 0, 1))
    torch.manual_seed(123)
    first, again, unlike = (list(zip(range(3), d.train_dataloader(), strict=False)) for d in (one, two, other))
    for (_, a), (_, b), (_, c) in zip(first, again, unlike, strict=True):
        assert torch.equal(a["tokens"], b["tokens"])
        assert torch.equal(a["targets"], b["targets"])
        assert not torch.equal(a["tokens"], c["tokens"])
    assert not torch.equal(first[0][1]["tokens"], first[1][1]["tokens"])
    val, val_other = list(one.val_dataloader()), list(other.val_dataloader())
    assert len(val) == 8
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(val, val_other, strict=True))


def test_length_batches_fill_the_length():
    data = SyntheticDataModule("recall", 32, 4, symbols=256)
    (batch, more) = data.length_batches(512, 8)
    assert batch["tokens"].shape == (4, 512)
    assert ((batch["targets"] != -100).sum(1) == 128).all()
    assert not torch.equal(batch["tokens"], more["tokens"])
    with pytest.raises(ValueError, match=r"recall at length 1024 needs at least 512 symbols, got 256"):
        next(data.length_batches(1024, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sorting"}, "task 'sorting' is unknown; choose one of copy, reverse, sort, addition, parity, recall"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"min_length": 65}, "min_length 65 must lie between 5 and context_length 64"),
        ({"task": "recall", "symbols": 31}, "needs at least 32 symbols"),
        ({"task": "sort", "symbols": 30}, "needs at least 31 symbols"),
        ({"task": "addition", "symbols": 10}, "needs at least 11 symbols"),
    ],
)
def test_bad_arguments_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticDataModule(**options)


class Reader(L.LightningModule):
    """Records what it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, index):
        self.seen.append(batch["tokens"])
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.slow
def test_a_resumed_run_sees_the_batches_it_would_have_seen(tmp_path):
    def fit(steps, path=None):
        options = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
        trainer = L.Trainer(max_steps=steps, default_root_dir=tmp_path, **options)
        model = Reader()
        trainer.fit(model, SyntheticDataModule("copy", 16, 2, batches_per_epoch=4), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return model.seen

    whole, half = fit(10), fit(5)
    rest = fit(10, tmp_path / "5.ckpt")
    assert len(whole) == 10
    assert len(rest) == 5
    assert all(torch.equal(a, b) for a, b in zip(whole, half + rest, strict=True))
    assert len({tuple(t.flatten().tolist()) for t in whole}) == 10
