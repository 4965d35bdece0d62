"""SpeechSamples: what was heard stands in TensorBoard as text, picture and sound; other modules leave it idle."""

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cubelet.callbacks import SpeechSamples
from cubelet.datamodules import SpeechDataModule
from cubelet.models import Decoder
from cubelet.models.cross_attention_weights import cross_attention_weights
from tests.lightning_modules.test_speech_recognizer import small, trainer
from tests.reference.nudge import nudge


@pytest.mark.slow
def test_texts_pictures_and_sounds_are_written(tmp_path):
    data = SpeechDataModule(utterances=40, held_out=8, batch_seconds=8.0, cache_dir=str(tmp_path))
    logger = TensorBoardLogger(tmp_path, "log", "run")
    callback = SpeechSamples(utterances=3)
    trainer(tmp_path, max_steps=2, val_check_interval=1, logger=logger, callbacks=[callback]).fit(small(), data)
    events = EventAccumulator(str(tmp_path / "log" / "run"), size_guidance={"tensors": 0, "images": 0}).Reload()
    tags = events.Tags()
    assert {f"speech/attention_{n}" for n in range(3)} <= set(tags["images"])
    assert {f"speech/sound_{n}" for n in range(3)} <= set(tags["audio"])
    assert len(events.Images("speech/attention_0")) == 2
    assert len(events.Audio("speech/sound_0")) == 1
    (tag,) = [tag for tag in tags["tensors"] if tag.startswith("speech")]
    text = events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
    longest = max(data.data.held_out["texts"], key=lambda u: u.samples)
    assert longest.text in text
    assert callback.state_dict() == {"validations": 2}


def test_another_module_leaves_it_idle_or_raises(tmp_path):
    class Other(L.LightningModule):
        pass

    fitted = trainer(tmp_path)
    callback = SpeechSamples()
    fitted.callbacks.append(callback)
    with pytest.warns(UserWarning, match="SpeechSamples is idle: Other has no method speech_samples"):
        callback.on_fit_start(fitted, Other())
    with pytest.raises(ValueError, match="idle"):
        SpeechSamples(strict=True).on_fit_start(fitted, Other())
    with pytest.raises(ValueError, match="utterances 0 must be at least 1"):
        SpeechSamples(0)


def test_weights_are_those_that_mix_the_context():
    torch.manual_seed(0)
    decoder = nudge(Decoder(10, 32, 2, 4, cross_attention=True), 0.3).eval()
    tokens, context = torch.randint(10, (2, 4)), torch.randn(2, 6, 32)
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    weights = cross_attention_weights(decoder, tokens, context, mask)
    assert weights.shape == (2, 2, 4, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4))
    assert not weights[:, 1, :, 3:].any()
    # With one visible column, or equal values in all, the layer's output tells nothing; with two it tells the weights.
    cross = decoder.blocks[0].cross_attention
    found = {}
    handle = cross.register_forward_hook(lambda module, inputs, output: found.update(x=inputs[0], y=output))
    decoder(tokens, context, context_mask=mask)
    handle.remove()
    heads = []
    for h in range(4):
        rows = slice(8 * h, 8 * h + 8)
        q, k, v = (w[rows] for w in cross.qkv.weight.chunk(3))
        scores = (found["x"] @ q.T) @ (context @ k.T).transpose(1, 2) / 8**0.5
        heads.append(scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1))
        mixed = heads[-1] @ (context @ v.T)
        heads[-1] = (heads[-1], mixed)
    y = torch.cat([mixed for _, mixed in heads], -1) @ cross.out.weight.T
    torch.testing.assert_close(y, found["y"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.stack([w for w, _ in heads]).mean(0), weights[0], atol=1e-5, rtol=1e-4)


def test_a_decoder_without_cross_attention_is_refused():
    with pytest.raises(ValueError, match="no cross-attention"):
        cross_attention_weights(Decoder(10, 32, 1, 4), torch.ones(1, 2, dtype=torch.int64), torch.zeros(1, 3, 32))
