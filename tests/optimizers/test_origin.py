"""What a standing step was built from: every change is found, and nothing else counts as one."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from cubelet.optimizers import FAM
from cubelet.optimizers.origin import Origin, ParameterState

CHANGES = {
    "set": lambda state: state.__setitem__("step", state["step"].clone()),
    "delete": lambda state: state.__delitem__("mean"),
    "update": lambda state: state.update(step=state["step"].clone()),
    "or": lambda state: state.__ior__({"step": state["step"].clone()}),
    "pop": lambda state: state.pop("step"),
    "popitem": lambda state: state.popitem(),
    "setdefault": lambda state: state.setdefault("new", torch.zeros(())),
    "clear": lambda state: state.clear(),
    "another tensor": lambda state: state.update(mean=state["mean"].clone()),
}


def built(kind: type = ParameterState):
    params = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(4, 3).t()), nn.Parameter(torch.ones(1))]
    state = {param: kind(step=torch.tensor(2.0), mean=torch.zeros_like(param)) for param in params}
    groups = [{"params": params[:2], "base": "adamw"}, {"params": params[2:], "base": "adamw"}]
    return groups, state, params, Origin(groups, state, params)


@pytest.mark.parametrize("kind", [ParameterState, dict])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_state_is_found_even_if_it_holds_equal_numbers(change, kind):
    _, state, params, origin = built(kind)
    assert origin.is_current()
    CHANGES[change](state[params[2]])
    assert not origin.is_current()
    assert Origin(origin.groups, state, params).is_current()


@pytest.mark.parametrize("kind", [ParameterState, dict])
def test_an_equal_dict_or_parameter_in_the_place_of_another_is_found(kind):
    _, state, params, origin = built(kind)
    state[params[2]] = kind(state[params[2]])
    assert not origin.is_current()
    groups, _, params, origin = built(kind)
    groups[1]["params"][0] = nn.Parameter(torch.ones(1))
    assert not origin.is_current()
    groups[1]["params"][0] = params[2]
    assert origin.is_current()
    groups[0]["base"] = "muon"
    assert not origin.is_current()


def test_data_of_another_layout_is_found():
    for change in (torch.Tensor.t, lambda data: data[:2], lambda data: data.t().contiguous().t()):
        _, _, params, origin = built()
        params[0].data = change(params[0].data)
        assert not origin.is_current()
    _, _, params, origin = built()
    params[0].data = params[0].data.clone()
    assert origin.is_current()


def test_what_others_do_is_no_change():
    _, _, _, origin = built()
    one = ParameterState(step=1)
    one["step"] = 2
    assert origin.is_current()
    assert origin.changes == ParameterState.changes  # looked at once, not in every step from now on


def test_arrays_in_the_state_do_not_disturb():
    _, state, params, _ = built(dict)
    state[params[0]]["mine"] = np.zeros(3)
    origin = Origin([{"params": params, "base": "adamw"}], state, params)
    assert origin.is_current()
    state[params[0]]["mine"] = np.zeros(3)
    assert not origin.is_current()


def test_state_of_an_optimizer_stays_plain_outside_of_it(tmp_path):
    params = [nn.Parameter(torch.randn(8, 8)) for _ in range(2)]
    optimizer = FAM(params, lr=0.01)
    held = optimizer.state[params[0]]  # taken before the first step, and good after it
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    assert held["step"] == 1
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(type(state) is dict for state in loaded["state"].values())
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    optimizer.load_state_dict(loaded)
    for one in (optimizer, *copies):
        assert all(isinstance(state, ParameterState) for state in one.state.values())
        assert one.state["a new one"] == {}
