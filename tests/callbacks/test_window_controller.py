import pytest
import torch
from torch import nn

from cubelet.callbacks import SpanController, WindowController
from tests.reference.callbacks import MemoryLogger, Small, bases, follow, train


class Windowed(nn.Module):
    def __init__(self, window: int | None = 64) -> None:
        super().__init__()
        self.window = window
        self.writes: list[int] = []

    def set_window(self, window: int) -> None:
        assert isinstance(window, int)
        self.window = window
        self.writes.append(window)


class Spanned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("span", torch.full((4,), 0.5))

    def set_span(self, span: float) -> None:
        self.span.fill_(span)


def model(attention: nn.Module, losses: list[float], rows: int = 64) -> Small:
    module = Small(losses=losses, rows=rows)
    module.attention = attention
    return module


LOSSES = [2.0, 2.5, 3.0, 2.9, 3.2, 3.6, 3.1, 3.7, 4.0, 3.3]


def test_the_window_widens_on_worse_losses_in_whole_multiples():
    logger = MemoryLogger()
    module = model(Windowed(), LOSSES)
    train(module, [WindowController(mode="previous", every_n_steps=1, factor=1.1, multiple_of=8)], 10, logger=logger)
    expected = bases([-d for d in follow(LOSSES, "previous")], 64, 1.1, 16, 4096)
    assert [value for _, value in logger.series("window")] == pytest.approx([64, *expected])
    assert module.attention.window == 8 * round(expected[-1] / 8)


def test_a_window_is_written_only_when_its_rounded_value_changes():
    module = model(Windowed(), [float(i) for i in range(10)])  # each write may cost a compilation
    train(module, [WindowController(mode="previous", every_n_steps=1, factor=1.05, multiple_of=16)], 10)
    assert module.attention.writes == [80, 96]  # 64·1.05⁹ = 99.3


def test_bounds_direction_and_windows_that_are_off():
    attention = Windowed(20)
    module = model(nn.ModuleList([attention, Windowed(None)]), LOSSES)
    train(
        module,
        [WindowController(mode="previous", every_n_steps=1, factor=1.5, multiple_of=4, max_window=32, better=1)],
        10,
    )
    expected = bases(follow(LOSSES, "previous"), 20, 1.5, 16, 32)
    assert attention.window == 4 * round(expected[-1] / 4)
    assert max(attention.writes) <= 32
    assert min(attention.writes) >= 16


def test_a_window_is_restored_on_resume_although_it_is_no_tensor(tmp_path):
    def callback():
        return WindowController(mode="previous", every_n_steps=1, factor=1.1, multiple_of=4)

    whole = model(Windowed(), LOSSES, rows=4)
    train(whole, [callback()], 10)
    trainer = train(model(Windowed(), LOSSES, rows=4), [callback()], 6)
    trainer.save_checkpoint(tmp_path / "six.ckpt")
    resumed = model(Windowed(), LOSSES[6:], rows=4)
    train(resumed, [callback()], 10, ckpt_path=tmp_path / "six.ckpt")
    assert resumed.attention.window == whole.attention.window != 64
    assert whole.attention.writes[-len(resumed.attention.writes) + 1 :] == resumed.attention.writes[1:]


def test_the_span_follows_too():
    module = model(Spanned(), LOSSES)
    train(module, [SpanController(mode="previous", every_n_steps=1, factor=1.3)], 10)
    expected = bases([-d for d in follow(LOSSES, "previous")], 0.5, 1.3, 0.05, 1.0)
    torch.testing.assert_close(module.attention.span, torch.full((4,), expected[-1]))
    assert max(expected) == 1.0


@pytest.mark.parametrize(("kind", "word"), [(WindowController, "set_window"), (SpanController, "set_span")])
def test_idle_or_strict(kind, word):
    with pytest.warns(UserWarning, match=word):
        train(Small(), [kind()], 1)
    with pytest.raises(ValueError, match=word):
        train(Small(), [kind(strict=True)], 1)


def test_bad_bounds():
    with pytest.raises(ValueError, match=r"1\.5"):
        SpanController(max_span=1.5)
    with pytest.raises(ValueError, match="multiple_of 0"):
        WindowController(multiple_of=0)


def test_on_the_projects_own_attentions():
    attention = pytest.importorskip("cubelet.models.attention")
    module = model(
        nn.ModuleList([attention.HybridAttention(16, 2, window=64), attention.AdaptiveSpanAttention(16, 2)]), LOSSES
    )
    controllers = [
        WindowController(mode="previous", every_n_steps=1, factor=1.5, multiple_of=4),
        SpanController(mode="previous", every_n_steps=1, factor=0.5 + 1, min_span=0.01),
    ]
    train(module, controllers, 3)  # both losses after the first are worse: wider, but a span cannot exceed 1
    assert module.attention[0].local.window == 144
    assert float(module.attention[1].span) == 1.0
    train(model(module.attention, [1.0, 0.9, 0.8]), controllers, 3)
    assert float(module.attention[1].span) < 1.0
