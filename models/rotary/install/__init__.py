"""`install` and `uninstall`: a rotary of this room in somebody else's model, without touching its code.

Three places, found from the model or named by `at`:

- attentions. Where the model makes tables (cos, sin) and hands them to its attentions, each gets tables of our rotary
  instead, for the same positions and in the same form; R goes behind its projections. An attention without positions of
  its own (Whisper's) has the output of `q_proj` and `k_proj` rotated;
- a module whose forward takes queries, keys and positions: replaced by one with the same signature;
- an embedding: its output is rotated.

Choices: forward hooks, because they leave classes, weights and state_dict names of the model alone, work per instance,
and come off without a trace. Every attention is tried out before anything is hooked on (`probe.py`): what does not fit
is refused with the numbers, and then nothing was installed.
"""

import difflib
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cubelet.common.checks import check_choice

from ..base import Rotary
from . import probe
from .hooks import (
    KEY_NAMES,
    POSITION_NAMES,
    QUERY_NAMES,
    EmbeddingHook,
    HandleHook,
    ProjectionHook,
    TableHook,
    _RotaryWrapper,
    parameter_names,
)
from .positions import check_given_positions, check_no_positions
from .tables import TableForm, mark_tables

RotaryFactory = Callable[..., Rotary]


def install(
    model: nn.Module,
    rotary: Rotary | RotaryFactory,
    *,
    at: str | None = None,
    layout: str | None = None,
    head_axis: int = 1,
    positions: Tensor | None = None,
    example: dict[str, Any] | None = None,
) -> nn.ModuleList:
    """Put a rotary into a model, or in place of its own; `uninstall` restores the model exactly.

    Args:
        model: changed in place; the rotaries become its submodule `cubelet_rotary`, so they train and are saved.
        rotary: a `Rotary` shared by all places, or a callable (dims, heads) → Rotary that makes one for each. One that
            takes `base` and `scaling` and leaves them open (a class does) gets those of the model's configuration; one
            that takes `layer` and `layer_type` is told the attention's name and the model's name for its kind.
        at: name of a submodule: an embedding to put the rotary after, a module that takes (q, k, positions), the
            model's own rotary embedding, or a part whose attentions get the rotary. None: every attention.
        layout: of a module that takes (q, k, positions), or of attentions without positions of their own: how it pairs
            features, "interleaved" (2m, 2m + 1; the default) or "half" (m, m + c/2). Elsewhere it is found out.
        head_axis: for a module that takes (q, k, positions): 1 for (b, h, s, c), 2 for (b, s, h, c).
        positions: of the tokens of attentions without positions of their own, (s,) or (s, n), where they are not
            0…s−1: of image patches behind a class token, `grid_positions(rows, columns, prefix=1)`.
        example: arguments of a small forward, with which the model is tried out; by default six tokens, or an image.

    Returns: the rotaries, in the order of the places.

    Raises:
        ValueError: no such submodule, nothing to install at, or a place that cannot serve, with what was tried.

    Example:
        >>> import torch
        >>> from cubelet.models.rotary import RoPE, install, uninstall
        >>> model = nn.Sequential(nn.Embedding(50, 24), nn.Linear(24, 4))
        >>> rotaries = install(model, RoPE(24, heads=3), at="0")
        >>> model(torch.arange(5)[None]).shape
        torch.Size([1, 5, 4])
        >>> uninstall(model)
    """
    if layout is not None:
        check_choice("layout", layout, ("half", "interleaved"))
    target = _find(model, at)
    installed = _Installed()
    kind = _target_kind(target, at) if at else "attention"
    if positions is not None and kind != "attention":
        raise ValueError(f"positions= is for attentions without positions of their own; {at} is none")
    if kind == "table":  # it makes cos and sin for the attentions beside it
        at = (at or "").rpartition(".")[0]
        target, kind = model.get_submodule(at), "attention"
    if kind == "attention":
        _install_attentions(model, target, at or "", rotary, installed, layout == "half", positions, example)
    elif kind == "qk":
        assert at is not None
        parent, _, name = at.rpartition(".")
        made = _build_rotary(rotary, None, None, at, installed.rotaries)
        installed.replaced = (parent, name, [target])  # in a list: the original must not become a submodule
        setattr(model.get_submodule(parent), name, _RotaryWrapper(made, target, layout == "half", head_axis))
    else:
        assert at is not None
        _check_free(target, at)
        made = _build_rotary(rotary, getattr(target, "embedding_dim", None), None, at, installed.rotaries)
        installed.hooks.append(EmbeddingHook(target, model.get_submodule(at.rpartition(".")[0]), made))
    name = "cubelet_rotary"
    while name in model._modules:
        name += "_"
    model.add_module(name, installed)
    return installed.rotaries


def uninstall(model: nn.Module) -> None:
    """Take out all that `install` put into this model.

    Raises:
        ValueError: nothing is installed.
    """
    found = [(name, module) for name, module in model.named_children() if isinstance(module, _Installed)]
    if not found:
        raise ValueError(f"no rotary is installed in this {type(model).__name__}")
    for name, installed in reversed(found):
        for hook in installed.hooks:
            hook.remove()
        if installed.replaced is not None:
            parent, place, (original,) = installed.replaced
            setattr(model.get_submodule(parent), place, original)
        delattr(model, name)
    for module in model.modules():
        module.__dict__.pop("_cubelet_hook", None)


def load_rotary(model: nn.Module, folder: Path | str) -> None:
    """Read the rotaries of a model with an installed rotary back from what its `save_pretrained` wrote.

    `from_pretrained` knows the model's own weights only. So: `from_pretrained`, `install` as before, then this.

    Raises:
        FileNotFoundError: no safetensors file in the folder.
        ValueError: nothing is installed, or the files hold no rotary.
    """
    from safetensors.torch import load_file

    if not any(isinstance(module, _Installed) for module in model.children()):
        raise ValueError("nothing is installed in this model; install the rotary as it was, then load")
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    saved = {k: v for name in names for k, v in load_file(folder / name).items() if k.startswith("cubelet_rotary")}
    if not saved:
        raise ValueError(f"{folder} holds no rotary: none was installed when the model was saved")
    for name, module in model.named_children():
        if isinstance(module, _Installed):
            module.load_state_dict({k[len(name) + 1 :]: v for k, v in saved.items() if k.startswith(f"{name}.")})


class _Installed(nn.Module):
    """The rotaries of one installation, and how to undo it."""

    def __init__(self) -> None:
        super().__init__()
        self.rotaries = nn.ModuleList()
        self.hooks: list[Any] = []
        self.replaced: tuple[str, str, list[nn.Module]] | None = None

    def forward(self, x: Any) -> Any:
        """The identity: an `nn.Sequential` calls every child, this one too."""
        return x


# -- finding places --


def _find(model: nn.Module, at: str | None) -> nn.Module:
    names = dict(model.named_modules())
    if not at:
        return model
    if at not in names:
        close = difflib.get_close_matches(at, names, n=3, cutoff=0.4)
        raise ValueError(
            f"{type(model).__name__} has no submodule {at!r}" + (f"; did you mean {close}?" if close else "")
        )
    return names[at]


def _target_kind(target: nn.Module, at: str) -> str:
    names = set(parameter_names(target))
    if any(name.endswith("inv_freq") for name, _ in target.named_buffers(recurse=False)):
        return "table"
    has_query, has_key = not names.isdisjoint(QUERY_NAMES), not names.isdisjoint(KEY_NAMES)
    if has_query and (has_key or not names.isdisjoint(POSITION_NAMES)) and "value" not in names:
        return "qk"
    if any(_attentions(target)):
        return "attention"
    if isinstance(target, nn.Embedding) or hasattr(target, "embedding_dim"):
        return "embedding"
    raise ValueError(
        f"{type(target).__name__} at {at} takes no queries and keys with positions, holds no attention that can be "
        "served, and is no embedding: there is nothing to rotate"
    )


def _attentions(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Self-attentions: what takes tables and has heads, or is the innermost to take them, or has q_proj and k_proj.

    A layer takes tables to hand them on; an attention may do so too, to a part of its own.
    """
    takers = {
        name: part
        for name, part in module.named_modules()
        if {"position_embeddings", "hidden_states"} <= set(parameter_names(part))
    }
    headed = {name for name, part in takers.items() if hasattr(part, "head_dim") or hasattr(part, "num_heads")}

    def below(name: str, other: str) -> bool:
        return other != name and name.startswith(f"{other}." if other else "")

    chosen = {name for name in headed if not any(below(name, other) for other in headed)}
    for name in takers:
        if not any(below(other, name) or below(name, other) or other == name for other in chosen):
            chosen |= set() if any(below(other, name) for other in takers) else {name}
    for name, part in module.named_modules():
        own = name.rpartition(".")[2]
        crosses = "cross" in own or own == "encoder_attn"
        projects = all(hasattr(part, wanted) for wanted in ("q_proj", "k_proj", "head_dim"))
        plain = projects and name not in takers and "hidden_states" in parameter_names(part)
        if not crosses and (name in chosen or plain):
            yield f"{prefix}.{name}".strip("."), part


def _check_free(module: nn.Module, name: str) -> None:
    if "_cubelet_hook" in module.__dict__ or any(
        isinstance(getattr(hook, "__self__", None), EmbeddingHook) for hook in module._forward_hooks.values()
    ):
        raise ValueError(f"{name} has a rotary already; uninstall it first")


def _build_rotary(
    rotary: Any,
    dims: int | None,
    head_dim: int | None,
    name: str,
    made: nn.ModuleList,
    whole: int | None = None,
    **offered: Any,
) -> Rotary:
    """The rotary for one place: the given one, or a new one; `head_dim` features of `whole` rotate."""
    if isinstance(rotary, Rotary):
        module = rotary
    elif dims is None:
        raise ValueError(f"the width at {name} is unknown; give a rotary, not a class")
    else:
        bound = rotary.keywords if isinstance(rotary, functools.partial) else {}
        takes = inspect.signature(rotary).parameters
        options = {k: v for k, v in offered.items() if k in takes and k not in bound}
        module = rotary(dims, dims // head_dim if head_dim else 1, **options)
    if head_dim is not None and module.head_dim != head_dim:
        own = f"the head_dim {head_dim} of {name}"
        if whole not in (None, head_dim):
            own = f"what {name} rotates, {head_dim} of {whole} features"
        raise ValueError(f"the rotary's head_dim {module.head_dim} is not {own}")
    if head_dim is None and dims is not None and module.dims != dims:
        raise ValueError(f"the rotary's dims {module.dims} are not the width {dims} of {name}")
    if module not in list(made):
        made.append(module)
    return module


# -- attentions --


def _install_attentions(
    model: nn.Module,
    target: nn.Module,
    at: str,
    rotary: Any,
    installed: _Installed,
    half: bool,
    positions: Tensor | None,
    example: Any,
) -> None:
    """Try out every attention below `target`, and hook on only when all of them fit."""
    wanted = dict(_attentions(target, at))
    for name, attention in wanted.items():
        _check_free(attention, name)
    if not wanted:
        raise ValueError(
            f"{type(target).__name__} holds no self-attention that takes tables, or with q_proj and k_proj; name with "
            "at= an embedding, or a module that takes queries, keys and positions"
        )
    sites, called, arguments = probe.record(model, wanted, example)
    with_tables = [site for site in sites if site.tables is not None]
    sources = {site.call.source for site in with_tables if site.call is not None}
    here = {name for name in called if not at or name.startswith(f"{at.rpartition('.')[0]}.")}
    if with_tables and (lost := here - sources):
        raise ValueError(f"{', '.join(sorted(lost))} makes tables that go to no attention found; it would keep its own")
    if with_tables and positions is not None:
        raise ValueError(
            f"{with_tables[0].name} is handed tables for positions of the model's own; positions= is for attentions "
            "without any"
        )
    if not with_tables and not at:
        raise ValueError(
            f"{type(model).__name__} hands no tables to its attentions, so it has no rotary that could be replaced; to "
            "add one where there are no positions, name a part with at="
        )
    plans: list[Callable[[], Any]] = []
    for site in with_tables or sites:
        try:
            if with_tables:
                plan = _plan_tables(model, site, rotary, installed)
            else:
                plan = _plan_projections(site, rotary, installed, half, positions)
        except ValueError as error:
            raise ValueError(f"{site.name} ({type(site.attention).__name__}): {error}") from error
        plans += [] if plan is None else [plan]
    if not plans:
        raise ValueError(
            f"no attention of {type(target).__name__} rotates queries and keys by the tables it is handed "
            f"({len(wanted)} found)"
        )
    if with_tables and not at:
        probe.check_whole(model, arguments, with_tables)
    parts = dict(model.named_modules())
    for name in sources:
        handle = parts[name].register_forward_hook(mark_tables(name), with_kwargs=True)
        installed.hooks.append(HandleHook(handle))
    installed.hooks += [plan() for plan in plans]
    if not with_tables:
        try:
            probe.run(model, arguments)
        except Exception as error:  # whatever the rotary or a stranger's model may raise
            for hook in installed.hooks:
                hook.remove()
            for site in sites:
                site.attention.__dict__.pop("_cubelet_hook", None)
            raise ValueError(f"with the rotary installed the model cannot run: {error}") from error


def _plan_tables(model: nn.Module, site: probe.Site, rotary: Any, installed: _Installed) -> Callable[[], Any] | None:
    if site.call is None:
        raise ValueError("its tables come from a place that does not say which positions they are for")
    form = TableForm.of(site.tables)
    own = probe.own_rotary(model, site, form)
    if not probe.check_attention(site, own, form):
        return None
    heads = _heads(site.attention, form.pairs)
    offered = {"base": own.initial_base, "scaling": own.scaling, "layer": site.name, "layer_type": site.call.layer_type}
    width, whole = 2 * form.pairs, getattr(site.attention, "head_dim", None)
    made = _build_rotary(rotary, width * heads, width, site.name, installed.rotaries, whole, **offered)
    probe.check_rotary(made, form, site.name)
    children, pairs = ((), None) if made.mixing() is None else probe.find_pairs(site, form, own)

    def attach() -> TableHook:
        hook = TableHook(site.attention, made, form, children=children, pairs=pairs)
        site.attention.__dict__["_cubelet_hook"] = hook
        if children:
            made.place_matrix(hook.matrix if children[0] == "q_proj" else None)
        return hook

    return attach


def _plan_projections(
    site: probe.Site, rotary: Any, installed: _Installed, half: bool, positions: Tensor | None
) -> Callable[[], Any]:
    attention: Any = site.attention
    if not all(hasattr(attention, wanted) for wanted in ("q_proj", "k_proj", "head_dim")):
        raise ValueError("it was called without tables")
    check_no_positions(site)
    made = _build_rotary(
        rotary, attention.q_proj.out_features, attention.head_dim, site.name, installed.rotaries, layer=site.name
    )
    check_given_positions(site, made, positions)

    def attach() -> ProjectionHook:
        hook = ProjectionHook(attention, made, half, positions)
        attention.__dict__["_cubelet_hook"] = hook
        return hook

    return attach


def _heads(attention: Any, pairs: int) -> int:
    """Query heads of an attention, where it says so; 1 otherwise."""
    config = getattr(attention, "config", None)
    for owner, name in ((attention, "num_heads"), (attention, "num_attention_heads"), (config, "num_attention_heads")):
        if isinstance(value := getattr(owner, name, None), int):
            return value
    return 1
