"""The transcriber: its two losses against the definitions, batch = alone with hostile padding, fitting parts."""

import pytest
import torch

from cubelet.models import Decoder, Encoder
from cubelet.models.log_mel import SpecAugment
from cubelet.models.transcriber import BOS, EOS, Transcriber, teacher_forcing
from tests.reference.nudge import nudge
from tests.reference.speech import ctc_score

VOCAB = 6


def make(**options):
    torch.manual_seed(0)
    encoder = Encoder(20, 32, 1, 4)
    decoder = Decoder(VOCAB, 32, 1, 4, cross_attention=True)
    from cubelet.models.log_mel import LogMel

    return nudge(Transcriber(encoder, decoder, log_mel=LogMel(20), **options)).eval()


def batch(filler=0.0):
    lengths = torch.tensor([6_400, 3_840, 1_280])
    waves = torch.full((3, 6_400), filler)
    draw = torch.Generator().manual_seed(3)
    for row, length in zip(waves, lengths, strict=True):
        row[:length] = 0.1 * torch.randn(int(length), generator=draw)
    tokens = torch.tensor([[3, 4, 5], [4, 4, 0], [0, 0, 0]])
    return waves, lengths, tokens, torch.tensor([3, 2, 0])


def test_the_ctc_loss_is_the_sum_over_all_paths():
    model = make()
    waves, lengths, tokens, counts = batch()
    output = model.encode(waves[:, :3_840], lengths.clamp(max=3_840))
    log_probs = model.ctc_log_probs(output.states)
    slow = [
        -ctc_score(log_probs[i, : output.lengths[i]].detach().numpy(), tokens[i, : counts[i]].tolist())
        for i in range(3)
    ]
    assert float(model.ctc_loss(output, tokens, counts).detach()) == pytest.approx(sum(slow) / 3, rel=1e-4)


def test_the_attention_loss_is_the_mean_negative_log_probability_of_text_and_end():
    model = make()
    waves, lengths, tokens, counts = batch()
    output = model.encode(waves, lengths)
    total = 0.0
    for i in range(3):
        text = tokens[i, : counts[i]]
        alone = model.encode(waves[i : i + 1, : lengths[i]], lengths[i : i + 1])
        said = torch.cat([torch.tensor([BOS]), text])[None]
        chances = model.decoder(said, model.context(alone)).log_softmax(-1)[0]
        total -= sum(float(chances[t, token]) for t, token in enumerate([*text.tolist(), EOS]))
    assert float(model.attention_loss(output, tokens, counts)[0].detach()) == pytest.approx(total / 3, rel=1e-5)


def test_hostile_padding_changes_neither_logits_nor_losses_nor_gradients():
    results = []
    for filler in (0.0, float("nan")):
        model = make()
        waves, lengths, tokens, counts = batch(filler)
        output = model.encode(waves, lengths)
        inputs, targets = teacher_forcing(tokens, counts)
        logits = model.decoder(inputs, model.context(output), context_mask=output.key_mask)[targets >= 0]
        loss = model.ctc_loss(output, tokens, counts) + model.attention_loss(output, tokens, counts)[0]
        loss.backward()
        results.append([logits, loss, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_decoder_reads_and_says_a_text_shifted_by_one():
    inputs, targets = teacher_forcing(torch.tensor([[3, 4], [5, 0], [0, 0]]), torch.tensor([2, 1, 0]))
    assert inputs.tolist() == [[BOS, 3, 4], [BOS, 5, 0], [BOS, 0, 0]]
    assert targets.tolist() == [[3, 4, EOS], [5, EOS, -100], [EOS, -100, -100]]


def test_a_text_too_long_for_its_sound_costs_nothing_and_breaks_nothing():
    model = make()
    waves, lengths, _, _ = batch()
    output = model.encode(waves, lengths)
    tokens = torch.randint(3, VOCAB, (3, 30))
    loss = model.ctc_loss(output, tokens, torch.tensor([3, 3, 30]))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.encoder.parameters())


def test_augmentation_works_in_training_only():
    model = make(augment=SpecAugment())
    waves, lengths, _, _ = batch()
    one, other = (model.encode(waves, lengths).states for _ in range(2))
    assert torch.equal(one, other)
    one, other = (model.train().encode(waves, lengths).states for _ in range(2))
    assert not torch.equal(one, other)


def test_parts_that_do_not_fit_are_refused():
    encoder, decoder = Encoder(80, 32, 1, 4), Decoder(VOCAB, 32, 1, 4, cross_attention=True)
    with pytest.raises(ValueError, match="cross_attention=True"):
        Transcriber(encoder, Decoder(VOCAB, 32, 1, 4))
    with pytest.raises(ValueError, match="decoder has dims 64 and the encoder 32"):
        Transcriber(encoder, Decoder(VOCAB, 64, 1, 4, cross_attention=True))
    from cubelet.models.log_mel import LogMel

    with pytest.raises(ValueError, match="log_mel gives 20 bands"):
        Transcriber(encoder, decoder, log_mel=LogMel(20))
