"""Attention maps of a run: the same text at every validation, a file and pictures, nothing disturbed."""

import json

import numpy as np
import pytest
import torch

from cubelet.callbacks import AttentionMaps
from cubelet.callbacks.attention_maps import heads_picture, token_texts
from cubelet.datamodules import TextDataModule
from cubelet.lightning_modules import LanguageModel
from tests.reference.callbacks import MemoryLogger, Small, pl, train


def fit(corpus, tmp_path, callback, **options):
    data = TextDataModule(str(corpus), context_length=16, batch_size=4, cache_dir=tmp_path / "cache")
    torch.manual_seed(0)
    model = LanguageModel(data.vocab_size, dims=16, layers=2, heads=2)
    logger = MemoryLogger(tmp_path)
    trainer = pl.Trainer(
        max_steps=4, val_check_interval=2, check_val_every_n_epoch=None, num_sanity_val_steps=0, accelerator="cpu",
        logger=logger, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback], **options,
    )  # fmt: skip
    trainer.fit(model, data)
    return model, logger


def test_each_validation_writes_the_maps_of_a_prompt(corpus, tmp_path):
    model, logger = fit(corpus, tmp_path, AttentionMaps("the dog runs"))
    written = json.loads((tmp_path / "attention.json").read_text())
    assert written["step"] == 4
    assert "".join(written["tokens"]) == "the␣dog␣runs"
    assert list(written["weights"]) == ["blocks.0.attention", "blocks.1.attention"]
    weights = np.array(written["weights"]["blocks.0.attention"])
    assert weights.shape == (2, 12, 12)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-3)
    ids = torch.tensor(model.tokenizer.encode("the dog runs"))
    expected = model.eval().attention_maps(ids)["blocks.0.attention"]
    np.testing.assert_allclose(weights, expected.numpy(), atol=1e-4)
    tags = [tag for tag, _ in logger.experiment.images]
    assert tags == ["attention/blocks.0.attention", "attention/blocks.1.attention"] * 2


def test_without_a_prompt_it_is_the_first_text_of_the_validation_data_and_the_run_is_the_same(corpus, tmp_path):
    watched, _ = fit(corpus, tmp_path, AttentionMaps(tokens=7))
    alone, _ = fit(corpus, tmp_path, AttentionMaps(every_n_validations=9))
    written = json.loads((tmp_path / "attention.json").read_text())
    assert len(written["tokens"]) == 7
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))


def test_a_prompt_that_cannot_be_spelt_or_a_module_without_maps_is_told(corpus, tmp_path):
    with pytest.warns(UserWarning, match="AttentionMaps is idle"):
        fit(corpus, tmp_path, AttentionMaps("ÄÖÜ"))
    with pytest.warns(UserWarning, match="no method attention_maps"):
        train(Small(), [AttentionMaps()], 1)
    with pytest.raises(ValueError, match="no method attention_maps"):
        train(Small(), [AttentionMaps(strict=True)], 1)


def test_tokens_without_a_tokenizer_are_numbers_and_heads_stand_below_each_other():
    assert token_texts([3, 11], None) == ["3", "11"]
    one = heads_picture(np.eye(3)[None], ["a", "b", "c"])
    two = heads_picture(np.stack([np.eye(3)] * 2), ["a", "b", "c"])
    assert two.shape == (2 * one.shape[0], *one.shape[1:])
