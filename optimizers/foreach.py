"""The standing step of an optimizer: which tensors are updated together, with everything precomputed that can be.

- A small model's step takes microseconds per tensor, so nothing is looked up twice: tensors with equal settings are
  grouped once, and again only where the set of gradients, a setting or an α' changes.
- What a step was built from may be changed by anyone between steps, so all of it is compared in every step (`origin`).
- Step counts and products of α' live in CPU tensors that NumPy shares: counting costs one call and no host reads.
- Every update is elementwise or takes whole matrices, so a DTensor is updated through its local shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cubelet.common.sharded_tensors import to_local

from .origin import UPDATE_SETTINGS, Origin
from .updates import UPDATE_RULES, StepInputs, UpdateRule


def to_real(tensor: Tensor) -> Tensor:
    """Return a DTensor's local shard, any other tensor itself; complex numbers as pairs of reals."""
    tensor = to_local(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def parameter_names(group: dict[str, Any], number: int) -> list[str]:
    """Return the parameters' qualified names, or, in unnamed groups, their places."""
    return group.get("param_names") or [f"group{number}.{i}" for i in range(len(group["params"]))]


class LocalParameter:
    """One parameter that is updated, seen as a plain local tensor.

    Args:
        parameter: the tensor.
        group: number of its param group.
        name: for messages.
    """

    __slots__ = ("group", "name", "numel", "parameter", "plain", "process_groups")

    def __init__(self, parameter: Tensor, group: int, name: str) -> None:
        self.parameter, self.group, self.name = parameter, group, name
        self.plain = not hasattr(parameter, "to_local") and not parameter.is_complex()
        self.numel = parameter.numel()
        # The process groups over which a DTensor's pieces are spread.
        mesh: Any = getattr(parameter, "device_mesh", None)
        placements = getattr(parameter, "placements", ())
        self.process_groups = tuple(mesh.get_group(dim) for dim, place in enumerate(placements) if place.is_shard())

    def tensor(self) -> Tensor:
        """Return the local, real values (not cached: sharded parameters may be given new storage)."""
        return self.parameter if self.plain else to_real(self.parameter)

    def gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient's local, real values.

        Raises:
            RuntimeError: for sparse gradients.
        """
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"{self.name}: sparse gradients (layout {grad.layout}) are not supported; "
                "use sparse=False in the embedding, or torch.optim.SparseAdam for this parameter"
            )
        placements = getattr(self.parameter, "placements", None)
        if placements is not None and getattr(grad, "placements", placements) != placements:
            grad = grad.redistribute(placements=placements)  # type: ignore[attr-defined]  # a DTensor's
        return grad if self.plain else to_real(grad)


class TensorGroup:
    """Tensors that one call updates: same rule, settings, α', ν', device and type, and where it matters same history.

    Args:
        tensors: the standing step.
        indices: the tensors' numbers in it.
    """

    def __init__(self, tensors: GroupedStep, indices: list[int]) -> None:
        self.tensors, self.indices, self.first = tensors, indices, indices[0]
        self.group = group = tensors.group_of(self.first)
        self.rule = tensors.rules[self.first]
        self.alpha, self.nu = float(tensors.alphas[self.first]), float(tensors.nus[self.first])
        self.is_plain = all(tensors.local(i).plain for i in indices)
        self.params, self.state = self._read()
        fused, foreach = group["fused"], group["foreach"]
        self.by_tensor = foreach is False and not fused and not tensors.capturable
        # A kernel that ignores strides is right only where parameter, gradient and state have the same ones.
        self.strides = [param.stride() for param in self.params]
        wanted = not tensors.capturable and (fused or (fused is None and foreach is None))
        self.fuses = bool(wanted and all(tensors.fusable[i] for i in indices))

    def _read(self) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """Parameters and state as plain local tensors."""
        states = [self.tensors.states[i] for i in self.indices]
        params = [self.tensors.params[i] for i in self.indices]
        if self.is_plain:
            return params, {key: [state[key] for state in states] for key in self.rule.keys}
        return [*map(to_real, params)], {key: [to_real(state[key]) for state in states] for key in self.rule.keys}

    def update(self, all_grads: list[Any]) -> None:
        """Update these tensors by their gradients among all of the step's."""
        tensors = self.tensors
        grads = [all_grads[i] for i in self.indices]
        params, state = (self.params, self.state) if self.is_plain else self._read()
        inputs = tensors.inputs(self)
        if not self.fuses:
            (self.rule.single if self.by_tensor else self.rule.foreach)(params, grads, state, inputs)
            return
        if [*map(Tensor.stride, grads)] == self.strides and {grad.dtype for grad in grads} == {params[0].dtype}:
            self.rule.fused(params, grads, state, inputs)
            return
        for k, (grad, stride) in enumerate(zip(grads, self.strides, strict=True)):
            same = grad.stride() == stride and grad.dtype is params[k].dtype
            part = {key: [parts[k]] for key, parts in state.items()}
            (self.rule.fused if same else self.rule.foreach)([params[k]], [grad], part, inputs)


class GroupedStep:
    """Everything a step needs, rebuilt where anything that it was built from has changed.

    Args:
        groups: the optimizer's param groups.
        state: the optimizer's state; what is missing is created for tensors that have a gradient.
    """

    capturable = False

    def __init__(self, groups: list[dict[str, Any]], state: Any) -> None:
        self.groups, self.state = groups, state
        self.params: list[Tensor] = [param for group in groups for param in group["params"]]
        self.locals: list[LocalParameter | None] = []
        self.states: list[dict[str, Any]] = []
        self.rules: list[UpdateRule] = []
        for number, group in enumerate(groups):
            hidden = group.get("hidden", True)
            for place, (name, param) in enumerate(zip(parameter_names(group, number), group["params"], strict=True)):
                tracked = param.grad is not None or bool(state.get(param))
                self.locals.append(LocalParameter(param, number, name) if tracked else None)
                self.states.append(state[param] if tracked else {})
                is_hidden = hidden[place] if isinstance(hidden, Sequence) else hidden
                self.rules.append(UPDATE_RULES[group["base"]].rule_for(param, is_hidden))
        self.tracked = [i for i, local in enumerate(self.locals) if local is not None]
        self.plain = [local.parameter for local in self.locals if local is not None and local.plain]
        self.group_numbers = np.array([n for n, group in enumerate(groups) for _ in group["params"]], dtype=np.int64)
        self.scratch: dict[Any, Tensor] = {}  # of the updates; it goes with the optimizer
        # The same number for groups that update alike.
        alike = [tuple(map(group.get, UPDATE_SETTINGS)) for group in groups]
        self.kinds = [alike.index(settings) for settings in alike]
        self._fill_state()
        self.fusable = [local is not None and self._is_fusable(i) for i, local in enumerate(self.locals)]
        self._share_counts()
        self.adapted = {key: np.zeros(len(self.params), dtype=bool) for key in ("alpha", "nu")}
        self.base_alphas, self.alphas, self.nus = (np.zeros(len(self.params)) for _ in range(3))
        self.live: list[Any] = []
        self.mask: list[bool] = []
        self.active = np.zeros(len(self.params), dtype=bool)
        self.common_step: int | None = None  # of all tensors, while all have gradients and equal counts
        self.tensor_groups: list[TensorGroup] = []
        self._read_live_settings()

    def local(self, i: int) -> LocalParameter:
        """Return a tracked tensor."""
        local = self.locals[i]
        assert local is not None
        return local

    def group_of(self, i: int) -> dict[str, Any]:
        """Return the param group of a tensor."""
        return self.groups[self.group_numbers[i]]

    def _fill_state(self) -> None:
        for i in self.tracked:
            local, state, group = self.local(i), self.states[i], self.group_of(i)
            fresh = self.rules[i].state(local.parameter)
            if state:
                missing = [key for key in fresh if key not in state]
                if missing and float(state.get("step", 0)) > 0:
                    raise ValueError(
                        f"{local.name}: base {group['base']!r} needs {', '.join(missing)}, and the state holds "
                        f"{', '.join(map(str, state))}: it was made with another base; set the base it was made with, "
                        "or delete optimizer.state[parameter] to start anew"
                    )
            for key, value in fresh.items():
                held = state.setdefault(key, value)
                if held.shape != value.shape:
                    raise ValueError(
                        f"{local.name} has shape {tuple(local.parameter.shape)}, and its state {key} has "
                        f"{tuple(held.shape)} where it needs {tuple(value.shape)}; resize both, or delete "
                        "optimizer.state[parameter] to start anew"
                    )
            state.setdefault("step", torch.zeros((), dtype=torch.float32, device="cpu"))
            if self.rules[i].tracks_product and "beta1_product" not in state:
                # Of a checkpoint of torch's AdamW: it had one β₁ in all steps.
                product = float(group["alpha"]) ** float(state["step"])
                state["beta1_product"] = torch.tensor(product, dtype=torch.float64, device="cpu")

    def _is_fusable(self, i: int) -> bool:
        tensor, rule, state = self.local(i).tensor(), self.rules[i], self.states[i]
        full = [to_real(state[key]) for key in rule.full_keys]
        same = all(part.stride() == tensor.stride() and part.dtype is tensor.dtype for part in full)
        return same and rule.can_fuse(tensor.dtype, tensor.device)

    def _share_counts(self) -> None:
        """Move step counts and products into one CPU tensor each, shared with NumPy."""
        count = len(self.params)
        self.packed_steps = torch.zeros(count, dtype=torch.float32, device="cpu")
        self.packed_products = torch.ones(count, dtype=torch.float64, device="cpu")
        self.steps: np.ndarray = self.packed_steps.numpy()
        self.products: np.ndarray = self.packed_products.numpy()
        for i in self.tracked:
            state = self.states[i]
            self.packed_steps[i] = float(state["step"])
            state["step"] = self.packed_steps[i]
            if "beta1_product" in state:
                self.packed_products[i] = float(state["beta1_product"])
                state["beta1_product"] = self.packed_products[i]

    def remember(self) -> None:
        """Note what this step was built from; to be called last."""
        self.origin = Origin(self.groups, self.state, self.plain)

    def is_current(self, grads: list[Tensor | None]) -> bool:
        """Whether parameters, state and settings are those that this step was built for, and all gradients known."""
        mask = [grad is not None for grad in grads]
        if mask != self.mask and any(has and local is None for has, local in zip(mask, self.locals, strict=True)):
            return False
        return self.origin.is_current()

    def begin(self, grads: list[Tensor | None]) -> list[Tensor | None]:
        """Count one more step of the tensors that have gradients. Return these as plain local tensors."""
        mask = [grad is not None for grad in grads]
        if mask != self.mask:
            self.mask, self.active, self.tensor_groups = mask, np.array(mask, dtype=bool), []
            counts = self.steps[self.active]
            self.common_step = int(counts[0]) if all(mask) and len(counts) and (counts == counts[0]).all() else None
        self.steps += self.active
        if self.common_step is not None:
            self.common_step += 1
        self._read_live_settings()
        return [
            grad
            if local is None or grad is None or (local.plain and grad.layout is torch.strided)
            else local.gradient(grad)
            for local, grad in zip(self.locals, grads, strict=True)
        ]

    def _read_live_settings(self) -> None:
        """Look which groups share rates, and take over changed α and ν."""
        read = id if self.capturable else float  # a rate that only the device knows is told apart by its tensor
        live = [
            (read(group["lr"]), group["weight_decay"], group.get("beta2"), group.get("alpha", 0.0),
             group.get("muon_alpha", 0.0), group.get("nu"))
            for group in self.groups
        ]  # fmt: skip
        if live == self.live:
            return
        # Which groups share rates, not what these are: a schedule changes all of them in every step.
        shared = [live.index(row) for row in live]
        numbers = [row[2:] for row in live]
        if not self.live or shared != self.shared or numbers != [row[2:] for row in self.live]:
            self.shared, self.tensor_groups = shared, []
            for i in self.tracked:
                *_, alpha, muon_alpha, nu = live[self.group_numbers[i]]
                self.base_alphas[i] = alpha if self.rules[i].name != "muon" else muon_alpha
                if not self.adapted["alpha"][i]:
                    self.alphas[i] = self.base_alphas[i]
                if not self.adapted["nu"][i]:
                    self.nus[i] = self._base_nu(i, nu)
        self.live = live

    def _base_nu(self, i: int, nu: float | None) -> float:
        if nu is not None:
            return float(nu)
        return self.alphas[i] if self.group_of(i).get("nesterov") else 1.0

    def inputs(self, group: TensorGroup) -> StepInputs:
        """Return the numbers of this step for one group of tensors."""
        step, product = int(self.steps[group.first]), float(self.products[group.first])
        return StepInputs(group.group, float(group.group["lr"]), group.alpha, group.nu, step, product, self.scratch)

    def counts(self, numbers: np.ndarray) -> Any:
        """Return the step counts of some tensors as integers."""
        return self.steps[numbers].astype(np.int64)

    def adapt(self, key: str, numbers: np.ndarray, values: np.ndarray) -> None:
        """Take over the α' or ν' of some tensors."""
        held = self.alphas if key == "alpha" else self.nus
        if not self.adapted[key][numbers].all() or not np.array_equal(held[numbers], values):
            held[numbers], self.adapted[key][numbers] = values, True
            self.tensor_groups = []
            if key == "alpha":
                for i in numbers if any(group.get("nesterov") for group in self.groups) else ():
                    if not self.adapted["nu"][i]:
                        self.nus[i] = self._base_nu(i, self.group_of(i)["nu"])

    def grouped(self) -> list[TensorGroup]:
        """Multiply this step's α' into the products. Return the tensors as groups that one call updates each."""
        np.multiply(self.products, self.alphas, out=self.products, where=self.active)
        if not self.tensor_groups:
            members: dict[Any, list[int]] = {}
            for i in np.flatnonzero(self.active).tolist():
                tensor, rule, number = self.params[i], self.rules[i], self.group_numbers[i]
                if self.local(i).numel == 0:
                    continue
                key = (self.kinds[number], self.shared[number], rule.name, self.alphas[i], self.nus[i])
                key += (tensor.device, tensor.dtype)
                key += (self.steps[i],) if rule.tracks_step else ()
                key += (self.products[i],) if rule.tracks_product else ()
                members.setdefault(key, []).append(i)
            self.tensor_groups = [TensorGroup(self, indices) for indices in members.values()]
        return self.tensor_groups


class CapturableStep(GroupedStep):
    """A step without a single host read, so that a graph can be captured around it.

    Step counts, α', ν' and products stay on the device, one number for each tensor; the updates are the same lines.
    Everything else is decided by masks, so every step transforms every window: slower than the step above.
    """

    capturable = True

    def _share_counts(self) -> None:
        for i in self.tracked:
            device, state = self.local(i).tensor().device, self.states[i]
            state.update({key: state[key].to(device) for key in ("step", "beta1_product") if key in state})
        self.steps, self.products = np.zeros(len(self.params)), np.ones(len(self.params))  # not used

    def begin(self, grads: list[Tensor | None]) -> list[Tensor | None]:
        real = super().begin(grads)
        self.common_step = None
        if self.active.any():
            torch._foreach_add_([self.states[i]["step"] for i in np.flatnonzero(self.active)], 1)
        return real

    def counts(self, numbers: np.ndarray) -> Any:
        return torch.stack([self.states[i]["step"] for i in numbers]).long()

    def _numbers(self, group: TensorGroup, key: str, values: np.ndarray) -> Tensor:
        """State `key` of the tensors of a group where they have it, otherwise a constant: (k,) float32."""
        device = group.params[0].device
        constants = torch.as_tensor(values[group.indices], dtype=torch.float32, device=device).unbind()
        return torch.stack([self.states[i].get(key, c) for i, c in zip(group.indices, constants, strict=True)])

    def inputs(self, group: TensorGroup) -> StepInputs:
        alpha, settings = self._numbers(group, "alpha", self.base_alphas), group.group
        nu: Any = alpha if settings.get("nesterov") and settings["nu"] is None else self._numbers(group, "nu", self.nus)
        if not settings.get("nesterov") and settings["nu"] in (None, 1) and settings["rule"] != "damp":
            nu = 1.0
        states, product = [self.states[i] for i in group.indices], 0.0
        if group.rule.tracks_product:
            products = [state["beta1_product"] for state in states]
            torch._foreach_mul_(products, list(alpha.unbind()))
            product = torch.stack(products)
        step = torch.stack([state["step"] for state in states]).double()
        return StepInputs(settings, settings["lr"], alpha, nu, step, product, self.scratch)
