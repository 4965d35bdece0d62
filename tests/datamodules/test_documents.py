"""Documents, mixtures and corpora for validation and test: against slow loops over lists."""

import hashlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from cubelet.common.errors import ConfigError
from cubelet.datamodules import TextDataModule
from cubelet.datamodules.documents import DocumentIndex
from cubelet.datamodules.sampler import Mixture, TrainingDocuments, TrainingWindows, share_out
from cubelet.lightning_modules import LanguageModel
from tests.reference.data import slow_key, slow_offset, slow_permute

CONTEXT = 8


@pytest.fixture
def texts(tmp_path):
    """30 files, each of its own letter, of 1 to 40 characters."""
    root = tmp_path / "texts"
    root.mkdir()
    draw = np.random.default_rng(1)
    for n in range(30):
        (root / f"{n:02}.txt").write_text(chr(ord("A") + n) * int(draw.integers(1, 40)))
    return root


def make(corpus, cache, **options):
    return TextDataModule(corpus, context_length=CONTEXT, batch_size=3, cache_dir=str(cache), **options)


def rows_of(loader):
    return [
        {name: value[row].tolist() for name, value in batch.items()}
        for batch in loader
        for row in range(len(batch["tokens"]))
    ]


def test_packed_rows_tell_documents_apart_and_predict_nothing_across(texts, cache):
    data = make(str(texts), cache, documents="pack", eos=True)
    tokens = data._train[0].train[:].tolist()
    eos = data.tokenizer.eos_id
    plain = rows_of(make(str(texts), cache, eos=True).train_dataloader())
    packed = rows_of(data.train_dataloader())
    assert len(packed) == len(plain) > 20
    for row, joined in zip(packed, plain, strict=True):
        assert row["tokens"] == joined["tokens"]
        number, ids = 0, []
        for token in row["tokens"]:
            ids.append(number)
            number += token == eos
        assert row["documents"] == ids
        expected = [
            -100 if token == eos else target for token, target in zip(row["tokens"], joined["targets"], strict=True)
        ]
        assert row["targets"] == expected
    assert tokens.count(eos) == data._train[0].taken["documents"] - len(data._val[0].val_documents)


def test_cropped_rows_lie_within_a_document_and_cover_all_of_them(texts, cache):
    data = make(str(texts), cache, documents="crop", eos=True, val_fraction=0.2)
    for loader, part, starts in (
        (data.train_dataloader(), data._train[0].train, data._train[0].train_documents),
        (data.val_dataloader(), data._val[0].val, data._val[0].val_documents),
    ):
        tokens, bounds = part[:].tolist(), [*starts.tolist(), len(part)]
        expected = Counter()
        for a, b in pairwise(bounds):
            for start in range(a, b - 1, CONTEXT):
                window = tokens[start : min(start + CONTEXT + 1, b)]
                row = window[:-1] if len(window) == CONTEXT + 1 else window
                targets = window[1:]
                expected[(*row, *[0] * (CONTEXT - len(row))), (*targets, *[-100] * (CONTEXT - len(targets)))] += 1
        seen = Counter((tuple(row["tokens"]), tuple(row["targets"])) for row in rows_of(loader))
        seen.pop(((0,) * CONTEXT, (-100,) * CONTEXT), None)  # what fills up the last batch of a validation
        if loader.order.__class__ is TrainingDocuments:
            assert not seen - expected
            assert (expected - seen).total() < 3  # less than a batch is left for the next pass
        else:
            assert seen == expected


def test_a_model_takes_packed_rows_as_their_documents_alone(texts, cache):
    data = make(str(texts), cache, documents="pack", eos=True)
    torch.manual_seed(0)
    model = LanguageModel(data.vocab_size, dims=16, layers=2, heads=2).eval()
    batch = next(iter(data.train_dataloader()))
    total = count = 0.0
    for row in range(3):
        for number in batch["documents"][row].unique():
            here = batch["documents"][row] == number
            alone = {name: batch[name][row, here][None] for name in ("tokens", "targets")}
            n = int((alone["targets"] != -100).sum())
            total, count = total + (float(model.loss(alone)[0].detach()) * n if n else 0.0), count + n
    assert float(model.loss(batch)[0].detach()) == pytest.approx(total / count, rel=1e-5)


def test_one_document_of_one_token_cannot_be_cropped(tmp_path, cache):
    index = DocumentIndex([(0, np.array([0, 1, 2]))], 3)
    assert index.crops(4).count == 0
    with pytest.raises(ConfigError, match="no training document has two tokens"):
        TrainingDocuments(0, 4, 1, seed=0)


# Mixtures


def test_shares_are_whole_numbers_in_proportion():
    assert share_out([0.7, 0.3], 1000) == [700, 300]
    assert share_out([1, 1, 1], 1000) == [334, 333, 333]
    assert share_out([1e-9, 1], 1000) == [1, 999]
    for weights in ([], [0, 1], [-1, 2], [float("nan"), 1]):
        with pytest.raises(ConfigError, match=r"weights \[.*\] of corpora must be positive"):
            share_out(weights, 1000)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_mixture_is_the_reference_and_takes_its_shares(world_size):
    lengths, bases, quotas = (5000, 401), (0, 5000), (750, 250)
    parts = [TrainingWindows(length, CONTEXT, 1, seed=n) for n, length in enumerate(lengths)]
    options = {"seed": 3, "batches_per_epoch": 10, "world_size": world_size}
    ranks = [Mixture(parts, [3, 1], bases, 4 // world_size, rank=rank, **options) for rank in range(world_size)]
    drawn = np.concatenate([order.offsets(np.arange(750)) for order in ranks], axis=1).ravel()
    mixture = int.from_bytes(hashlib.sha256(b"mixture").digest()[:8], "little")
    for row, offset in enumerate(drawn.tolist()):
        block, place = divmod(row, 1000)
        slot = slow_permute(place, 1000, slow_key(3, mixture, block))
        which = int(slot >= quotas[0])
        own = block * quotas[which] + slot - which * quotas[0]  # rows of this corpus so far, in the block's own order
        assert offset == bases[which] + slow_offset(which, 0, own, lengths[which], CONTEXT)
    for block in drawn.reshape(-1, 1000):
        assert (block >= 5000).sum() == 250


def test_any_place_of_a_mixture_is_found_at_once():
    parts = [TrainingWindows(5000, CONTEXT, 1, seed=0), TrainingWindows(401, CONTEXT, 1, seed=1)]
    order = Mixture(parts, [3, 1], [0, 5000], 4, seed=0)
    places = np.array([0, 7, 10**9])
    together = order.offsets(places)
    assert all(np.array_equal(order.offsets(places[i : i + 1])[0], together[i]) for i in range(3))


def test_several_corpora_through_the_data_module(tmp_path, cache):
    (tmp_path / "a.txt").write_text("ab" * 1000)
    (tmp_path / "b.txt").write_text("xy" * 300)
    data = make({str(tmp_path / "a.txt"): 1.0, str(tmp_path / "b.txt"): 3.0}, cache, batches_per_epoch=500)
    assert data.vocab_size == 4
    texts = [data.tokenizer.decode(row["tokens"]) for row in rows_of(data.train_dataloader())]
    assert all(set(text) in ({"a", "b"}, {"x", "y"}) for text in texts)  # no window reaches over two corpora
    assert sum("x" in text for text in texts[:1000]) == 750
    held_out = data.tokenizer.decode([t for row in rows_of(data.val_dataloader()) for t in row["targets"] if t >= 0])
    assert held_out == ("ab" * 100 + "xy" * 30)[1:]
    assert data.characters_per_token == 1
    state = data.state_dict()
    (tmp_path / "b.txt").write_text("yx" * 300)
    with pytest.raises(ConfigError, match=r"trained on another text \(corpus 'a\.txt \+ b\.txt'"):
        make({str(tmp_path / "a.txt"): 1.0, str(tmp_path / "b.txt"): 3.0}, cache).load_state_dict(state)


def test_other_corpora_validate_and_test(tmp_path, cache):
    for name, text in (("a", "ab" * 100), ("v", "abc" * 20), ("t", "abd" * 20)):
        (tmp_path / f"{name}.txt").write_text(text)
    options = {"val_corpus": str(tmp_path / "v.txt"), "test_corpus": str(tmp_path / "t.txt")}
    data = make(str(tmp_path / "a.txt"), cache, **options)
    assert data.vocab_size == 4
    assert data._train[0].train_tokens == 200  # nothing of it is held out
    for loader, text in ((data.val_dataloader(), "abc" * 20), (data.test_dataloader(), "abd" * 20)):
        assert data.tokenizer.decode([t for row in rows_of(loader) for t in row["targets"] if t >= 0]) == text[1:]
    only = make(str(tmp_path / "a.txt"), cache, test_corpus=str(tmp_path / "t.txt"))
    assert only._train[0].train_tokens == 180
    assert len(rows_of(only.val_dataloader())) == 3
    assert data.sha256 != only.sha256
