import pytest
import torch
from torch import nn

from cubelet.callbacks import SpanQLearning
from tests.reference.callbacks import MemoryLogger, Small, train


class Refined(nn.Module):
    """Halves its span whenever the loss fell; all it knows is in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("span", torch.tensor(1.0))
        self.register_buffer("before", torch.tensor(float("inf"), dtype=torch.float64))
        self.heard: list[float] = []

    def refine(self, loss: float) -> float:
        assert self.training
        assert isinstance(loss, float)
        self.heard.append(loss)
        if loss < self.before:
            self.span /= 2
        self.before.fill_(loss)
        return float(self.span)


LOSSES = [4.0, 3.0, 6.0, 5.0, 2.0, 3.0, 1.0, 2.0]


def fit(losses, steps, callback, rows=4, **arguments):
    module = Small(losses=losses, rows=rows)
    module.attention = Refined()
    return module, train(module, [callback], steps, **arguments)


def test_hears_the_mean_since_the_last_call_and_logs_the_span():
    logger = MemoryLogger()
    module, _ = fit(LOSSES, 8, SpanQLearning(every_n_steps=2), logger=logger)
    assert module.attention.heard == pytest.approx([3.5, 5.5, 2.5, 1.5])
    assert logger.series("refined_span/attention") == [(1, 0.5), (3, 0.5), (5, 0.25), (7, 0.125)]


def test_hears_the_last_step_when_asked():
    module, _ = fit(LOSSES, 8, SpanQLearning(every_n_steps=2, average="step"))
    assert module.attention.heard == pytest.approx([3.0, 5.0, 3.0, 2.0])


def test_steps_without_a_loss_are_not_judged():
    module = Small(output="none")
    module.attention = Refined()
    train(module, [SpanQLearning(every_n_steps=1)], 4)
    assert module.attention.heard == []


def test_a_run_resumed_between_two_calls_hears_the_same(tmp_path):
    whole, _ = fit(LOSSES, 8, SpanQLearning(every_n_steps=4))
    _, trainer = fit(LOSSES, 6, SpanQLearning(every_n_steps=4))
    trainer.save_checkpoint(tmp_path / "six.ckpt")
    resumed, _ = fit(LOSSES[6:], 8, SpanQLearning(every_n_steps=4), ckpt_path=tmp_path / "six.ckpt")
    assert resumed.attention.heard == whole.attention.heard[1:]
    assert torch.equal(resumed.attention.span, whole.attention.span)


def test_on_the_projects_integrated_attention():
    attention = pytest.importorskip("cubelet.models.attention")
    module = Small(losses=[2.0 + 0.1 * (-1) ** i for i in range(40)])
    module.attention = attention.IntegratedAttention(16, 2)
    logger = MemoryLogger()
    train(module, [SpanQLearning(every_n_steps=1)], 40, logger=logger)
    spans = [span for _, span in logger.series("refined_span/attention")]
    assert len(spans) == 40
    assert len(set(spans)) > 1
    assert float(module.attention.local.span) == pytest.approx(spans[-1])


def test_idle_or_strict():
    with pytest.warns(UserWarning, match="refine"):
        train(Small(), [SpanQLearning()], 1)
    with pytest.raises(ValueError, match="refine"):
        train(Small(), [SpanQLearning(strict=True)], 1)
