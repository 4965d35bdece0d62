import pytest
import torch

from cubelet.models.attention import IntegratedAttention, MultiScaleSpanAttention
from tests.conformance import suite
from tests.conformance.subject import build, noise


def test_hard_windows_cut_wide_spans():
    module = build(lambda: MultiScaleSpanAttention(32, 4, scales=((3, 20), (6, 20)), ramp=2, initial_span=1.0))
    assert module.reaches() == [3, 6]
    suite.check_window(lambda: MultiScaleSpanAttention(32, 4, scales=((3, 20), (6, 20)), ramp=2, initial_span=1.0), 6)


def test_short_groups_are_computed_at_their_own_reach():
    short, long = (
        MultiScaleSpanAttention(32, 4, scales=scales) for scales in (((64, 48), (512, 480)), ((512, 480), (512, 480)))
    )
    from tests.conformance.memory import allocated

    assert allocated(short, 2048) < 0.7 * allocated(long, 2048)


def test_refine_puts_a_span_in_force():
    module = IntegratedAttention(32, 4, refiner={"levels": 4, "exploration": 0.0})
    x = noise(1, 12, 32)
    module.local.set_span(0.1)
    before = module(x)
    assert module.refine(2.0) == 1.0 == float(module.local.span)
    assert not torch.equal(module(x), before)
    spans = {module.refine(2.0 + step) for step in range(20)}  # it only gets worse: it tries others
    assert len(spans) > 1
    assert float(module.local.span) == pytest.approx(module.refiner.span)


def test_passes_use_caches_of_their_own():
    module = IntegratedAttention(32, 4, passes=3)
    assert len(module.new_cache(1, 8).parts) == 4
    assert sum(p.numel() for p in module.parameters()) == sum(
        p.numel() for p in IntegratedAttention(32, 4, passes=1).parameters()
    )


def test_penalty_holds_the_spans():
    module = IntegratedAttention(32, 4, span_penalty=0.5, initial_span=0.5)
    assert module.penalty().item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"scales": ((4, 4),) * 3}, "3 scales do not divide heads 4"),
        ({"scales": ()}, "0 scales"),
        ({"scales": ((0, 4), (4, 4))}, "window 0"),
        ({"passes": 0}, "passes 0"),
        ({"refiner": {"levels": 1}}, "levels 1"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(ValueError, match=word):
        IntegratedAttention(32, 4, **options)
