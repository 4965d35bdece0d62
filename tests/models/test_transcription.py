"""Decoding: CTC's path, the decoder's own steps, both together; in a batch as alone, bounded, and silent on silence."""

import pytest
import torch

from cubelet.models import Decoder, Encoder
from cubelet.models.encoder import EncoderOutput
from cubelet.models.log_mel import LogMel
from cubelet.models.rotary import RoPE
from cubelet.models.transcriber import BLANK, BOS, EOS, Transcriber
from cubelet.models.transcription import greedy_attention, greedy_ctc, score_texts, select_rows, transcribe
from tests.reference.nudge import nudge
from tests.reference.speech import collapse, ctc_score

VOCAB = 7
METHODS = ("joint", "attention", "ctc", "beam")


@pytest.fixture(params=[None, RoPE], ids=["", "positions across"])
def model(request):
    torch.manual_seed(0)
    encoder = Encoder(20, 32, 2, 4)
    decoder = Decoder(VOCAB, 32, 2, 4, cross_attention=True, cross_rotary=request.param)
    return nudge(Transcriber(encoder, decoder, log_mel=LogMel(20)), scale=0.3).eval()


def waves_of(*lengths, filler=0.0):
    waves = torch.full((len(lengths), max(lengths)), filler)
    for i, (row, length) in enumerate(zip(waves, lengths, strict=True)):
        row[:length] = 0.3 * torch.randn(length, generator=torch.Generator().manual_seed(i))
    return waves, torch.tensor(lengths)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_in_a_batch_says_what_it_says_alone(model, method):
    waves, lengths = waves_of(16_000, 11_000, 6_400, 2_000, 400, filler=float("nan"))
    together = transcribe(model, model.encode(waves, lengths), method)
    assert any(together.ctc)
    for i, length in enumerate(lengths.tolist()):
        alone = transcribe(model, model.encode(waves[i : i + 1, :length], lengths[i : i + 1]), method)
        for mine, own in zip(together, alone, strict=True):
            assert mine[i] == own[0]


def test_greedy_ctc_collapses_the_likeliest_path():
    log_probs = torch.randn(5, 30, VOCAB, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    log_probs[:, :, 1:3] = -9.0  # BOS and EOS are no sounds
    lengths = torch.tensor([30, 20, 9, 1, 0])
    expected = [list(collapse(row[:n].argmax(-1).tolist())) for row, n in zip(log_probs, lengths, strict=True)]
    assert greedy_ctc(log_probs, lengths) == expected


def test_greedy_attention_takes_the_likeliest_token_of_the_whole_text_so_far(model):
    waves, lengths = waves_of(9_600, 5_000)
    output = model.encode(waves, lengths)
    for i, text in enumerate(greedy_attention(model, output)):
        part = select_rows(output, [i])
        said = [BOS]
        for _ in range(int(part.lengths)):
            logits = model.decoder(torch.tensor([said]), model.context(part))[0, -1].detach()
            logits[[BLANK, BOS]] = -torch.inf
            said.append(int(logits.argmax()))
            if said[-1] == EOS:
                break
        assert text == [token for token in said[1:] if token != EOS]


def test_both_heads_score_a_text_by_their_definitions(model):
    waves, lengths = waves_of(3_200, 1_900)
    output = model.encode(waves, lengths)
    log_probs = model.ctc_log_probs(output.states).detach()
    texts = [[3, 4], [5]]
    for weight in (0.0, 0.3, 1.0):
        scores = score_texts(model, output, log_probs, texts, weight)
        for i, text in enumerate(texts):
            by_ctc = ctc_score(log_probs[i, : output.lengths[i]].numpy(), text)
            chances = model.decoder(torch.tensor([[BOS, *text]]), model.context(select_rows(output, [i])))
            chances = chances.log_softmax(-1)[0]
            by_attention = sum(float(chances[t, token]) for t, token in enumerate([*text, EOS]))
            expected = weight * by_ctc + (1 - weight) * by_attention
            assert float(scores[i].detach()) == pytest.approx(expected, rel=1e-4)


def test_joint_takes_the_text_that_both_heads_find_likelier(model):
    waves, lengths = waves_of(16_000, 12_000, 8_000)
    output = model.encode(waves, lengths)
    log_probs = model.ctc_log_probs(output.states).detach()
    for weight in (0.0, 0.5, 1.0):
        found = transcribe(model, output, "joint", ctc_weight=weight, veto=False)
        scores = torch.stack(
            [score_texts(model, output, log_probs, texts, weight) for texts in (found.attention, found.ctc)]
        )
        for i in range(3):
            assert found.best[i] == (found.attention[i] if scores[0, i] >= scores[1, i] else found.ctc[i])


def test_more_beams_never_find_a_less_likely_text(model):
    waves, lengths = waves_of(8_000, 6_000)
    output = model.encode(waves, lengths)
    log_probs = model.ctc_log_probs(output.states).detach()

    def score(found):
        return score_texts(model, output, log_probs, found.best, 0.5)

    joint, beam = (transcribe(model, output, method, veto=False) for method in ("joint", "beam"))
    assert (score(beam) >= score(joint) - 1e-4).all()


def say_blank(model):
    with torch.no_grad():
        model.ctc_head.weight.zero_()
        model.ctc_head.bias.zero_()
        model.ctc_head.bias[BLANK] = 9.0


@pytest.mark.parametrize("method", METHODS)
def test_where_ctc_hears_nothing_attention_is_not_asked(model, method, monkeypatch):
    waves, lengths = waves_of(8_000, 400)
    output = model.encode(waves, lengths)
    say_blank(model)
    assert any(transcribe(model, output, "attention", veto=False).best)

    def refuse(*arguments, **options):
        raise AssertionError("attention was asked")

    monkeypatch.setattr(model.decoder, "forward", refuse)
    assert transcribe(model, output, method) == ([[], []], [[], []], [[], []])


@pytest.mark.parametrize("method", METHODS)
def test_no_text_is_longer_than_the_sound_has_states(model, method):
    with torch.no_grad():  # a decoder that never ends
        model.decoder.embedding.weight[EOS] = -100 * model.decoder.embedding.weight[3]
    waves, lengths = waves_of(8_000, 3_000, 400)
    output = model.encode(waves, lengths)
    for texts in transcribe(model, output, method, veto=False):
        assert all(len(text) <= limit for text, limit in zip(texts, output.lengths.tolist(), strict=True))


def test_an_unknown_method_is_refused(model):
    output = EncoderOutput(torch.zeros(1, 3, 32), torch.ones(1, 3, dtype=torch.bool), None)
    with pytest.raises(ValueError, match="method 'best' is unknown; choose one of joint, attention, ctc, beam"):
        transcribe(model, output, "best")
