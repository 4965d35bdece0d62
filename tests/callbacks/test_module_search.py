import torch
from torch import nn

from cubelet.callbacks.module_search import clean_name, match_any, match_names, modules_with, named_modules, to_float
from cubelet.callbacks.protocols import SupportsSampleText, SupportsSetBase, SupportsSetWindow

NAMES = ["blocks.0.weight", "blocks.0.bias", "blocks.10.weight", "head.weight"]


def test_patterns_are_globs_then_parts_then_expressions():
    assert match_names("blocks.*.weight", NAMES) == ["blocks.0.weight", "blocks.10.weight"]
    assert match_names("blocks.?.weight", NAMES) == ["blocks.0.weight"]
    assert match_names("head", NAMES) == ["head.weight"]
    assert match_names(r"\d\d\.weight$", NAMES) == ["blocks.10.weight"]
    assert match_names("", NAMES) == NAMES
    assert match_names("tail", NAMES) == []
    assert match_names("(tail", NAMES) == []  # neither a part of a name nor an expression
    assert match_any(["head", "bias"], NAMES) == ["blocks.0.bias", "head.weight"]


def test_wrappers_leave_no_trace_in_names():
    model = nn.ModuleDict({"a": torch.compile(nn.Linear(2, 2), backend="eager"), "b": nn.Linear(2, 2)})
    assert dict(named_modules(model)).keys() == {"", "a", "b"}
    assert [clean_name(name) for name, _ in model.named_parameters()] == ["a.weight", "a.bias", "b.weight", "b.bias"]


def test_shared_modules_are_found_once():
    class Movable(nn.Module):
        base = 1.0

        def set_base(self, base):
            self.base = base

    shared = Movable()
    model = nn.ModuleDict({"first": nn.Sequential(shared), "second": shared})
    assert list(modules_with(model, "base", "set_base")) == ["first.0"]
    assert isinstance(shared, SupportsSetBase)
    assert not isinstance(shared, SupportsSetWindow | SupportsSampleText)


def test_numbers():
    assert to_float(3) == 3.0
    assert to_float(torch.tensor([1.0, 2.0], requires_grad=True)) == 1.5
