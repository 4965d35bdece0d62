import torch
from torch import nn

from cubelet.callbacks.offers import (
    OffersBase,
    OffersSamples,
    OffersWindow,
    any_matches,
    clean,
    matches,
    named_modules,
    number,
    offering,
)

NAMES = ["blocks.0.weight", "blocks.0.bias", "blocks.10.weight", "head.weight"]


def test_patterns_are_globs_then_parts_then_expressions():
    assert matches("blocks.*.weight", NAMES) == ["blocks.0.weight", "blocks.10.weight"]
    assert matches("blocks.?.weight", NAMES) == ["blocks.0.weight"]
    assert matches("head", NAMES) == ["head.weight"]
    assert matches(r"\d\d\.weight$", NAMES) == ["blocks.10.weight"]
    assert matches("", NAMES) == NAMES
    assert matches("tail", NAMES) == []
    assert matches("(tail", NAMES) == []  # neither a part of a name nor an expression
    assert any_matches(["head", "bias"], NAMES) == ["blocks.0.bias", "head.weight"]


def test_wrappers_leave_no_trace_in_names():
    model = nn.ModuleDict({"a": torch.compile(nn.Linear(2, 2), backend="eager"), "b": nn.Linear(2, 2)})
    assert dict(named_modules(model)).keys() == {"", "a", "b"}
    assert [clean(name) for name, _ in model.named_parameters()] == ["a.weight", "a.bias", "b.weight", "b.bias"]


def test_shared_modules_are_found_once():
    class Offers(nn.Module):
        base = 1.0

        def set_base(self, base):
            self.base = base

    shared = Offers()
    model = nn.ModuleDict({"first": nn.Sequential(shared), "second": shared})
    assert list(offering(model, "base", "set_base")) == ["first.0"]
    assert isinstance(shared, OffersBase)
    assert not isinstance(shared, OffersWindow | OffersSamples)


def test_numbers():
    assert number(3) == 3.0
    assert number(torch.tensor([1.0, 2.0], requires_grad=True)) == 1.5
