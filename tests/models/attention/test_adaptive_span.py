import pytest
import torch

from cubelet.models.attention import AdaptiveSpanAttention
from cubelet.models.rotary import RoPE
from tests.conformance import suite
from tests.conformance.subject import assert_close, build, noise


def make(**options):
    return AdaptiveSpanAttention(32, 4, **{"max_span": 10, "ramp": 4, **options})


def test_the_soft_mask_is_a_ramp():
    module = make(initial_span=0.5)
    m = module.span_bias().exp()[0].tolist()
    assert m == pytest.approx([1] * 6 + [0.75, 0.5, 0.25] + [0] * 5)


def test_span_zero_to_full_reach_exactly_so_far():
    for span, reach in ((0.0, 4), (0.5, 9), (1.0, 14)):
        module = make(initial_span=span)
        x = noise(1, 30, 32).requires_grad_()
        module(x)[0, 25].square().sum().backward()
        assert x.grad is not None
        assert (x.grad[0].abs().amax(-1) > 0).nonzero().flatten().tolist() == list(range(26 - reach, 26))


def test_a_span_past_its_bounds_comes_back():
    module = make()
    for start, wish in ((1.5, -1.0), (-0.5, 1.0)):
        module.span_scale.data.fill_(start)
        module.zero_grad()
        (-wish * module.shares()).sum().backward()  # descent moves the share in the direction of `wish`
        assert (module.span_scale.grad * wish < 0).all(), (start, wish)
        assert module.shares().min() >= 0
        assert module.shares().max() <= 1


def test_penalty_is_the_mean_share():
    module = make(initial_span=0.25, span_penalty=0.1)
    assert module.penalty().item() == pytest.approx(0.025)
    module.set_span(0.5)
    assert module.penalty().item() == pytest.approx(0.0125)
    module.penalty().backward()
    assert (module.span_scale.grad > 0).all()


def test_set_span_scales_every_head_and_is_saved():
    module = make(initial_span=1.0)
    buffer = module.span
    module.set_span(0.5)
    assert module.span is buffer, "the buffer is written in place"
    assert module.head_spans().tolist() == [5.0] * 4
    fresh = make()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(noise(1, 20, 32)), module(noise(1, 20, 32)))


def test_heads_may_differ():
    module = make(max_span=[2, 4, 6, 8], initial_span=1.0)
    assert module.head_spans().tolist() == [2, 4, 6, 8]
    assert module.reach == 12


def test_trim_changes_cost_not_values():
    module = build(lambda: make(initial_span=0.2, rotary=RoPE(32, 4))).train()
    x = noise(1, 40, 32)
    y, cache = module(x), module.new_cache(1, 40)
    assert module.trim() < module.widest
    assert_close(module(x), y, "trimmed")
    with pytest.raises(RuntimeError, match="made for 14"):
        module(x[:, :1], cache=cache)
    assert module.trim(slack=10) == module.widest


def test_what_is_computed_follows_the_spans_by_itself():
    module = build(lambda: make(max_span=60, initial_span=0.1, rotary=RoPE(32, 4))).train()
    x = noise(1, 90, 32)
    assert module.reach == module.widest == 64
    whole = module(x)
    assert module.eval().reach < 32
    assert_close(module(x), whole, "in evaluation")
    module.span_scale.data.fill_(0.7)  # as averaged weights do, behind the module's back
    assert_close(module(x), build_like(module)(x), "after the spans grew")
    cache = module.new_cache(1, 90)
    module(x[:, :40], cache=cache)
    module.span_scale.data.fill_(0.9)
    with pytest.raises(RuntimeError, match="spans grew"):
        module(x[:, 40:41], cache=cache)
    module.set_span(0.1)
    assert module.reach <= 0.1 * 60 + 4
    module.train()
    assert module.reach == 16, "a quarter of the largest distance holds every span that may grow"
    fresh = make(max_span=60).eval()
    fresh.load_state_dict({k: v for k, v in module.state_dict().items() if "rotary" not in k})
    assert fresh.reach <= 0.1 * 60 + 4


def build_like(module):
    twin = make(max_span=60, rotary=RoPE(32, 4)).train()
    twin.load_state_dict(module.state_dict())
    twin.reach = twin.widest
    return twin


def test_temperature_sharpens_wide_heads():
    plain, sharp = (build(lambda t=t: make(initial_span=1.0, temperature_slope=t)) for t in (0.0, 0.5))
    x = noise(1, 12, 32)
    assert (plain(x) - sharp(x)).abs().max() > 1e-3
    for module in (plain, sharp):
        module.span_scale.data.zero_()
    assert torch.equal(plain(x), sharp(x))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_span": 0}, "max_span 0"),
        ({"max_span": [1, 2]}, "2 spans for heads 4"),
        ({"ramp": 0}, "ramp 0"),
        ({"initial_span": 1.5}, "initial_span 1.5"),
        ({"temperature_slope": 1.0}, "temperature_slope 1.0"),
        ({"span_penalty": -1.0}, "span_penalty -1.0"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(ValueError, match=word):
        make(**options)
    with pytest.raises(ValueError, match=r"span 1.5"):
        make().set_span(1.5)


def test_decoding_past_the_reach():
    suite.check_cache(lambda: make(max_span=3, ramp=2))
