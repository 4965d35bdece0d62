"""TextDataModule: what it promises a model before any hook, under a Trainer, over ranks, and on resuming."""

import inspect
import json
import math
import shutil

import lightning.pytorch as pl
import pytest
import torch

from cubelet.datamodules import TextDataModule


def make(text, cache, **options):
    return TextDataModule(str(text), **{"context_length": 16, "batch_size": 4, "cache_dir": str(cache), **options})


def targets_of(loader):
    return [t for batch in loader for row in batch["targets"].tolist() for t in row if t != -100]


def test_vocabulary_and_tokenizer_are_there_after_construction(text, cache):
    data = make(text, cache)
    content = text.read_text()
    assert data.vocab_size == len(set(content)) == data.tokenizer.vocab_size
    assert data.tokenizer.decode(data.tokenizer.encode(content)) == content
    assert data.characters_per_token == 1
    assert make(text, cache, tokenizer="byte").vocab_size == 256
    bpe = make(text, cache, tokenizer="bpe", vocab_size=300)
    assert bpe.vocab_size == 300
    assert bpe.characters_per_token > 1.2


def test_defaults_are_the_field_s_small_setting():
    defaults = {name: p.default for name, p in inspect.signature(TextDataModule).parameters.items()}
    assert (defaults["corpus"], defaults["tokenizer"]) == ("shakespeare", "char")
    assert (defaults["context_length"], defaults["batch_size"], defaults["num_workers"]) == (64, 12, 0)


def test_shakespeare_end_to_end(cache):
    data = TextDataModule(cache_dir=str(cache))
    assert data.vocab_size == 64
    batch = next(iter(data.train_dataloader()))
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "tokens": ((12, 64), torch.int64),
        "targets": ((12, 64), torch.int64),
    }
    assert torch.equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    decoded = data.tokenizer.decode(targets_of(data.val_dataloader()))
    assert len(decoded) == 111_591
    assert decoded.endswith("which to do\n")


@pytest.mark.parametrize("options", [{}, {"val_context_length": 40}, {"val_batch_size": 3}, {"tokenizer": "byte"}])
def test_validation_and_test_are_the_whole_held_out_text(text, cache, options):
    data = make(text, cache, **options)
    held_out = text.read_text()[900:]
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert data.tokenizer.decode(targets_of(loader)) == held_out[1:]
        shape = next(iter(loader))["tokens"].shape
        assert shape[1] == options.get("val_context_length", 16)
        assert all(batch["tokens"].shape == shape for batch in loader)


def test_training_never_meets_the_held_out_text(text, cache):
    data = make(text, cache)
    content = text.read_text()
    for batch in data.train_dataloader():
        for row, target in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
            window = data.tokenizer.decode([*row, target[-1]])
            assert window in content[:900]


def test_seed_decides_the_order_and_the_global_one_does_not(text, cache):
    def first(seed, global_seed):
        torch.manual_seed(global_seed)
        return next(iter(make(text, cache, seed=seed).train_dataloader()))["tokens"]

    assert torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))


def test_bits_per_character_do_not_depend_on_the_tokenizer(text, cache):
    # A model that gives every byte the same chance needs 8 bits a byte, however the bytes are cut into tokens.
    data = make(text, cache, tokenizer="bpe", vocab_size=300)
    nats, tokens = 0.0, 0
    for target in targets_of(data.val_dataloader()):
        nats += len(data.tokenizer.decode([target]).encode()) * math.log(256)
        tokens += 1
    assert nats / tokens / math.log(2) / data.characters_per_token == pytest.approx(8)


def test_epochs_can_be_shortened(text, cache):
    assert len(make(text, cache, batches_per_epoch=3).train_dataloader()) == 3
    assert len(make(text, cache).train_dataloader()) == ((900 - 1) // 16 - 1) // 4


@pytest.mark.parametrize(
    "name", ["context_length", "batch_size", "val_context_length", "val_batch_size", "batches_per_epoch"]
)
def test_sizes_below_one_are_refused(text, cache, name):
    with pytest.raises(ValueError, match=f"{name} 0 must be at least 1"):
        make(text, cache, **{name: 0})


def test_other_bad_input_is_refused_at_construction(text, cache, tmp_path):
    with pytest.raises(ValueError, match="num_workers -1 must be at least 0"):
        make(text, cache, num_workers=-1)
    with pytest.raises(ValueError, match=r"training text has 900 tokens, one window needs 2001 \(context_length 2000"):
        make(text, cache, context_length=2000)
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*absent\.txt"):
        make(tmp_path / "absent.txt", cache)
    with pytest.raises(ValueError, match="tokenizer 'words' is unknown"):
        make(text, cache, tokenizer="words")
    (tmp_path / "one.txt").write_text("x")
    with pytest.raises(ValueError, match="leaves no training text"):
        make(tmp_path / "one.txt", cache)


def test_prepare_data_makes_an_emptied_cache_again(text, cache):
    data = make(text, cache)
    shutil.rmtree(cache)
    data.prepare_data()
    assert len(list(data.train_dataloader())) == len(data.train_dataloader())


def test_hyperparameters_are_plain_and_leave_out_where_the_cache_is(text, cache):
    data = make(text, cache)
    assert json.loads(json.dumps(dict(data.hparams)))["context_length"] == 16
    assert "cache_dir" not in data.hparams
    assert TextDataModule(text, cache_dir=str(cache), context_length=8).hparams.corpus == str(text)


# Resuming


def test_state_is_plain_and_accepted_by_the_same_data(text, cache):
    data = make(text, cache)
    state = json.loads(json.dumps(data.state_dict()))
    make(text, cache, batch_size=2, seed=9).load_state_dict(state)
    moved = text.rename(text.with_name("moved.txt"))
    make(moved, cache).load_state_dict(state)  # the text counts, not its name


def test_another_text_is_refused(text, cache):
    state = make(text, cache).state_dict()
    text.write_text(text.read_text()[::-1])
    with pytest.raises(
        ValueError, match=r"trained on another text \(corpus 'words.txt', sha256 \w{12}\) than this one"
    ):
        make(text, cache).load_state_dict(state)


def test_another_vocabulary_is_refused(text, cache):
    state = make(text, cache).state_dict()
    with pytest.raises(ValueError, match=rf"vocabulary \(char, {state['vocab_size']} tokens.*\(byte, 256 tokens"):
        make(text, cache, tokenizer="byte").load_state_dict(state)


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.train_seen, self.val_seen = [], []

    def training_step(self, batch, index):
        self.train_seen.append(batch["tokens"].tolist())
        return (self.weight * batch["tokens"].float().mean()).sum()

    def validation_step(self, batch, index):
        self.val_seen.append(batch["targets"].tolist())

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder, **options):
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


@pytest.mark.filterwarnings("ignore")
def test_trainer_refuses_a_changed_text_for_training_but_may_validate_on_it(text, cache, tmp_path):
    first = trainer(tmp_path, max_steps=3)
    first.fit(Model(), datamodule=make(text, cache))
    first.save_checkpoint(tmp_path / "a.ckpt")
    loaded = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert loaded["TextDataModule"]["corpus_sha256"] == make(text, cache).sha256
    assert loaded["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["batches"] == 3
    text.write_text(text.read_text()[::-1])
    again = {"datamodule": make(text, cache), "ckpt_path": tmp_path / "a.ckpt", "weights_only": True}
    with pytest.raises(ValueError, match="trained on another text"):
        trainer(tmp_path, max_steps=5).fit(Model(), **again)
    trainer(tmp_path).validate(Model(), verbose=False, **again)
    with pytest.raises(ValueError, match="vocabulary"):
        trainer(tmp_path).test(Model(), **{**again, "datamodule": make(text, cache, tokenizer="byte")})


# Several processes


class Recording(Model):
    """Writes what its rank saw, since a forked process keeps nothing for its parent."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_fit_end(self):
        seen = {"train": self.train_seen, "val": self.val_seen}
        (self.folder / f"seen-{self.global_rank}.json").write_text(json.dumps(seen))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_ranks_see_what_one_process_sees_with_twice_the_rows_also_after_resuming(text, cache, tmp_path):
    alone = Model()
    trainer(tmp_path, max_steps=12).fit(alone, datamodule=make(text, cache, batch_size=8, val_batch_size=2))
    start = trainer(tmp_path, max_steps=4)
    start.fit(Model(), datamodule=make(text, cache, batch_size=8, val_batch_size=2))
    start.save_checkpoint(tmp_path / "four.ckpt")

    for checkpoint, skipped in ((None, 0), (tmp_path / "four.ckpt", 4)):
        ranks = trainer(tmp_path, max_steps=12, strategy="ddp_fork", devices=2)
        data = make(text, cache, val_batch_size=1)
        ranks.fit(Recording(tmp_path), datamodule=data, ckpt_path=checkpoint, weights_only=True)
        first, second = (json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1))
        together = [a + b for a, b in zip(first["train"], second["train"], strict=True)]
        assert together == alone.train_seen[skipped:]
        assert len(together) == 12 - skipped
        # Each epoch's validation: every target once, ranks with equally many batches.
        assert len(first["val"]) == len(second["val"])
        rows = [row for seen in (first, second) for batch in seen["val"] for row in batch]
        expected = [row for batch in alone.val_seen for row in batch]
        assert sorted(rows)[-len(expected) :] == sorted(expected)[-len(rows) :]
        targets = [t for row in rows for t in row if t != -100]
        assert len(targets) == 2 * 99
