"""Texts in batches, in pieces and to a stop text equal those of one prompt alone."""

import pytest
import torch

from cubelet.datamodules import TextDataModule
from cubelet.lightning_modules import LanguageModel
from tests.reference.nudge import nudge

PROMPTS = ["The cat", "A", "the mat and"]


@pytest.fixture
def model(corpus, tmp_path):
    torch.manual_seed(0)
    data = TextDataModule(str(corpus), context_length=16, batch_size=4, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    data.setup("fit")
    model = nudge(LanguageModel(data.vocab_size, dims=32, layers=2, heads=4, context_length=24)).eval()
    model.tokenizer = data.tokenizer
    return model


def prompts_of(model):
    text = model.tokenizer.decode(range(min(20, model.tokenizer.vocab_size)))
    return [text[:7], text[3:4], text[2:14]]


def test_prompts_of_a_batch_go_on_as_alone(model):
    prompts = prompts_of(model)
    together = model.sample_texts(prompts, 30, seed=3)
    assert together == [model.sample_text(prompt, 30, seed=3) for prompt in prompts]
    assert model.predict_step({"prompts": prompts, "generation": {"max_new_tokens": 30, "seed": 3}}, 0) == together
    assert all(
        text.startswith(prompt) and len(text) == len(prompt) + 30
        for text, prompt in zip(together, prompts, strict=True)
    )


def test_several_texts_of_one_prompt(model):
    prompts = prompts_of(model)[:2]
    texts = model.sample_texts(prompts, 12, seed=5, num_return_sequences=3)
    assert texts == [model.sample_text(prompt, 12, seed=5 + copy) for prompt in prompts for copy in range(3)]


@pytest.mark.parametrize("cut", [1, 2])
def test_pieces_and_stop_texts(model, cut):
    prompt = prompts_of(model)[0]
    whole = model.sample_text(prompt, 40, seed=1)
    assert "".join(model.stream_text(prompt, 40, seed=1)) == whole[len(prompt) :]
    added = whole[len(prompt) :]
    stop = added[20 : 20 + cut]
    expected = added[: added.index(stop)]
    assert model.sample_text(prompt, 40, seed=1, stop=stop) == prompt + expected
    assert "".join(model.stream_text(prompt, 40, seed=1, stop=stop)) == expected
