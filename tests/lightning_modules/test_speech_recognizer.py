"""SpeechRecognizer: losses, error rates over whole splits, checkpoints, words with times, silence."""

import warnings
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from torchmetrics.text import WordErrorRate

from cubelet.common.errors import ConfigError
from cubelet.datamodules import SpeechDataModule
from cubelet.datamodules.speech import SpeechTokenizer, tokenizer
from cubelet.lightning_modules import SpeechRecognizer
from cubelet.lightning_modules.error_rates import ErrorRates
from cubelet.lightning_modules.transcripts import word_spans
from cubelet.models import transcriber
from cubelet.models.blocks import ResidualBlock, ShortConvBlock
from cubelet.models.rotary import CombinedRotary, RoPE
from cubelet.optimizers import FAM, WarmupCosine
from tests.reference.nudge import nudge

ALPHABET = " 'abcdefghijklmnopqrstuvwxyz"


def small(scale=0.4, **options):
    """A small model that writes something on noise."""
    torch.manual_seed(0)
    sizes = {"dims": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}
    model = SpeechRecognizer(
        3 + len(ALPHABET), **{**sizes, "optimizer": partial(torch.optim.AdamW, lr=1e-3), **options}
    )
    model.tokenizer = SpeechTokenizer(ALPHABET)
    return nudge(model, scale).eval()


def save_checkpoint(model, path):
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    checkpoint["pytorch-lightning_version"] = L.__version__
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


def noises(*seconds):
    draw = np.random.default_rng(0)
    return [(0.3 * draw.standard_normal(round(s * 16_000))).astype(np.float32) for s in seconds]


def trainer(tmp_path, **options):
    settings = {
        "accelerator": "cpu",
        "max_steps": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**(settings | options))


@pytest.fixture
def data(tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "speech"
    return SpeechDataModule(utterances=40, held_out=8, batch_seconds=8.0, cache_dir=str(cache))


def test_a_text_does_not_depend_on_what_is_decoded_beside_it():
    model, waves = small(), noises(1.0, 0.7, 0.31, 0.05)
    together = model.transcribe_words(waves)
    assert together[0].text
    assert together == [model.transcribe_words([wave])[0] for wave in waves]
    assert model.transcribe(waves) == [transcript.text for transcript in together]


def test_words_have_times_in_order_and_inside_the_sound():
    model, waves = small(), noises(2.0, 1.3)
    for wave, (text, words) in zip(waves, model.transcribe_words(waves, method="ctc"), strict=True):
        assert " ".join(word.word for word in words) == text
        borders = [border for word in words for border in (word.start, word.end)]
        assert borders == sorted(borders)
        assert borders[-1] <= len(wave) / 16_000 + 0.04


def test_a_known_text_is_aligned_in_a_batch_as_alone():
    model, waves, texts = small(), noises(2.0, 1.3, 0.3), ["turn on the light", "two", "far too long a text for it"]
    found = model.align(waves, texts)
    assert [" ".join(word.word for word in words) for _, words in found] == [*texts[:2], ""]
    assert found == [model.align([wave], [text])[0] for wave, text in zip(waves, texts, strict=True)]
    with pytest.raises(ValueError, match="3 waves and 1 texts"):
        model.align(waves, texts[:1])


def test_words_span_the_states_of_their_first_and_last_characters():
    letters = SpeechTokenizer(ALPHABET)
    tokens = letters.encode("on it")
    assert word_spans(letters, tokens, [2, 4, 6, 7, 9], [3, 6, 7, 8, 12]) == [("on", 2, 5), ("it", 7, 11)]
    assert word_spans(letters, tokens, [-1] * 5, [-1] * 5) == []


def test_data_and_model_mean_the_same_special_tokens():
    assert [getattr(tokenizer, name) for name in ("BLANK", "BOS", "EOS")] == [
        getattr(transcriber, name) for name in ("BLANK", "BOS", "EOS")
    ]


def test_error_rates_are_those_of_the_whole_split():
    rates = ErrorRates()
    said = ["turn on the light", "two three", "", "caf\u00e9"]
    best = ["turn of the light", "two three four", "", "Cafe\u0301"]
    ctc = ["", "two three", "oh no", "café"]
    for i in range(4):
        rates.update({"best": [best[i]], "ctc": [ctc[i]], "attention": [best[i]]}, [said[i]])
    found = rates.compute()
    expected = WordErrorRate()
    expected.update(["turn of the light", "two three four"], said[:2])
    assert float(found["wer"]) == pytest.approx(2 / 7)
    assert float(found["wer"]) == pytest.approx(float(expected.compute()) * 6 / 7)
    assert float(found["ctc_wer"]) == pytest.approx((4 + 2) / 7)
    assert float(found["cer"]) == pytest.approx((1 + 5) / (17 + 9 + 4))
    assert float(rates.compute()["wer"]) == 0.0  # starts anew


@pytest.mark.slow
def test_validation_is_the_whole_split_whatever_the_batches(data, tmp_path):
    model = small()
    results = []
    for seconds in (8.0, 60.0):
        data.val_batch_seconds = seconds
        (logged,) = trainer(tmp_path).validate(model, data, verbose=False)
        results.append(logged)
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=1e-4), name
    texts = model.transcribe([u.read() for u in data.data.held_out["texts"]])
    expected = WordErrorRate()
    expected.update(texts, [u.text for u in data.data.held_out["texts"]])
    assert results[0]["val_wer"] == pytest.approx(float(expected.compute()))


@pytest.mark.slow
def test_test_measures_each_split_under_its_name(data, tmp_path):
    model = small()
    whole = {}
    for part in trainer(tmp_path).test(model, data, verbose=False):
        whole |= part
    for split in ("texts", "voices"):
        expected = WordErrorRate()
        utterances = data.data.held_out[split]
        expected.update(model.transcribe([u.read() for u in utterances]), [u.text for u in utterances])
        assert whole[f"test_{split}_wer"] == pytest.approx(float(expected.compute()))
    assert {"test_voices_ctc_wer", "test_voices_attention_cer", "test_texts_loss"} <= whole.keys()


@pytest.mark.slow
def test_a_model_built_in_python_trains_and_loads_from_its_path_alone(data, tmp_path):
    parts = {
        "rotary": partial(CombinedRotary, pairs="adjacent"),
        "block": partial(ShortConvBlock, taps=3),
        "optimizer": partial(FAM, lr=1e-3),
        "scheduler": partial(WarmupCosine, warmup=1),
    }
    model = small(scale=0.0, **parts)
    model.tokenizer = None
    fitted = trainer(tmp_path)
    fitted.fit(model, data)
    fitted.save_checkpoint(tmp_path / "model.ckpt")
    torch.load(tmp_path / "model.ckpt", weights_only=True)
    again = SpeechRecognizer.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert again.tokenizer.alphabet == data.tokenizer.alphabet
    waves = noises(0.6, 0.3)
    assert again.transcribe(waves) == model.transcribe(waves)
    for parameter, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_silence_noise_and_short_sounds_are_empty_where_ctc_hears_nothing():
    model = small(scale=0.0)
    with torch.no_grad():
        model.transcriber.ctc_head.bias[0] = 20.0
    for method in ("joint", "attention", "ctc", "beam"):
        assert model.transcribe([np.zeros(8_000, np.float32), *noises(0.5, 0.05)], method=method) == ["", "", ""]
    assert model.transcribe([np.zeros(0, np.float32)]) == [""]


def test_attention_alone_warns_and_is_not_vetoed():
    with pytest.warns(UserWarning, match="ctc_weight 0 trains attention alone"):
        model = small(ctc_weight=0.0)
    assert model.decoding == "attention"
    with torch.no_grad():
        model.transcriber.ctc_head.bias[0] = 100.0
    assert model.transcribe(noises(1.0))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert small(ctc_weight=1.0).decoding == "ctc"


def test_settings_that_do_not_fit_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"ctc_weight 1.5 must lie between"):
        small(ctc_weight=1.5)
    with pytest.raises(ValueError, match="needs a head that ctc_weight 1 does not train"):
        small(ctc_weight=1.0, decoding="joint")
    model = small()
    model.tokenizer = None
    with pytest.raises(RuntimeError, match="no tokenizer"):
        model.transcribe(noises(0.1))
    data.frame_seconds = 0.02
    with pytest.raises(ConfigError, match=r"makes a state of every 0.04 s: set data.frame_seconds to 0.04"):
        trainer(tmp_path).validate(small(), data, verbose=False)


def test_every_parameter_has_a_gradient_and_a_group(data):
    model = small(scale=0.1).train()
    batch = next(iter(data.train_dataloader()))
    total, values = model.training_losses(batch)
    total.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert {"train_loss", "train_ctc", "train_attention"} == values.keys()
    from cubelet.optimizers import parameter_groups

    grouped = [name for group in parameter_groups(model) for name, _ in group["params"]]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())


def test_layers_of_several_kinds_and_positions_across_come_back_from_a_checkpoint(tmp_path):
    kinds = [ResidualBlock, ShortConvBlock]
    model = small(encoder_layers=2, block=kinds, rotary=[None, RoPE], decoder_rotary=[RoPE], cross_rotary=RoPE)
    assert [type(block) for block in model.transcriber.encoder.blocks] == kinds
    assert model.transcriber.decoder.blocks[0].cross_attention.rotate_context
    loaded = SpeechRecognizer.load_from_checkpoint(save_checkpoint(model, tmp_path / "some.ckpt"))
    assert [type(block) for block in loaded.transcriber.encoder.blocks] == kinds
    loaded.tokenizer = model.tokenizer
    assert loaded.eval().transcribe_words(noises(0.5)) == model.transcribe_words(noises(0.5))
