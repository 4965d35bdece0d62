"""Length curves against a plain loop, and what cannot be measured."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cubelet.callbacks.length_curve import LengthPoint, length_curve, text_windows
from cubelet.common.files import to_finite
from cubelet.datamodules import SyntheticDataModule, TextDataModule
from cubelet.lightning_modules import LanguageModel
from cubelet.models.rotary import RoPE
from tests.reference.nudge import nudge


@pytest.fixture
def data(tmp_path):
    (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return TextDataModule(str(tmp_path / "words.txt"), context_length=8, batch_size=4, cache_dir=str(tmp_path / "c"))


def test_every_length_predicts_the_same_tokens(data):
    text = data.val_dataloader().windows.tokens
    kept = []
    for length in (8, 16, 32):
        rows = []
        for batch in text_windows(data, length, 32, 5):
            assert batch["tokens"].shape[1] == length
            for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
                assert targets[:-8] == [-100] * (length - 8)
                window = [*tokens, targets[-1]]
                assert any(window == text[i : i + length + 1].tolist() for i in range(len(text) - length))
                rows.append(targets[-8:])
        kept.append(rows)
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) == 5


def test_length_curve_is_the_mean_over_those_tokens(data):
    model = LanguageModel(data.vocab_size, dims=16, layers=1, heads=2, rotary=RoPE)
    nudge(model)
    found = length_curve(model, data, [1, 2], rows=4)
    assert model.training
    model.eval()
    text = torch.from_numpy(np.asarray(data.val_dataloader().windows.tokens).astype(np.int64))
    last = (len(text) - 1) // 8
    ends = [int(e) * 8 for e in np.linspace(2, last, 4).round()]
    for length in (8, 16):
        losses = []
        for end in ends:
            logits = model(text[end - length : end][None])[0, -8:]
            losses.append(F.cross_entropy(logits, text[end - 7 : end + 1]))
        assert found[length].loss == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-5)


class Oracle(torch.nn.Module):
    """Writes what is right, but for the last symbol of the first row of each batch of 128 tokens."""

    device = torch.device("cpu")

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, 257)
        for row, text in enumerate(tokens.tolist()):
            n = text.index(256)
            answer = text[:n][::-1]
            if tokens.shape[1] == 128 and row == 0:
                answer[-1] = (answer[-1] + 1) % 256
            for place, symbol in enumerate(answer):
                logits[row, n + place, symbol] = 10.0
        return logits


def test_a_row_is_exact_only_if_its_last_token_is():
    curve = length_curve(Oracle(), SyntheticDataModule("reverse", 64, 4), [1, 2], rows=8)
    assert curve[64].exact == 1.0
    assert curve[128].exact == 0.75
    right = torch.log(1 + 256 * torch.exp(torch.tensor(-10.0)))
    assert curve[64].loss == pytest.approx(float(right), rel=1e-4)


def test_what_cannot_be_measured_is_none(data):
    model = LanguageModel(33, dims=16, layers=1, heads=2, rotary=RoPE)
    found = length_curve(model, SyntheticDataModule("recall", 64, 4, symbols=32), [1, 2], rows=4)
    assert found[64].loss is not None
    assert found[128] == LengthPoint()  # 32 symbols are too few for that many keys
    assert length_curve(model, data, [1, 10_000], rows=4)[80_000] == LengthPoint()
    assert to_finite({"a": [1.0, float("nan")], 2: (float("inf"), "x")}) == {"a": [1.0, None], "2": [None, "x"]}


def test_data_that_have_one_length_have_no_curve():
    class Own:
        context_length = 8

        def val_dataloader(self):
            return torch.utils.data.DataLoader([{"tokens": torch.zeros(8)}])

    assert length_curve(LanguageModel(5, dims=8, layers=1, heads=2), Own(), [1, 2], rows=4) == {}
