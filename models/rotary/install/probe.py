"""One small forward through a model, and what it tells about where a rotary can go without a silent error.

`record` runs the model once and notes which attention was handed which tables. `check_attention` then replays a copy of
one attention, with random weights and in float32, on tables of its own kind: its output must not change when all
positions shift (queries and keys are rotated once each, by the tables handed in and nothing else), and must change when
nothing is rotated. Where R is to be multiplied behind the projections, rotating each pair of queries and keys by an
angle of its own must not change the output either: that finds how features are paired, and whether anything (a norm
with gains, a clamp) stands between. `check_whole` looks for readers of the tables that were overlooked.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..base import Rotary
from ..rope import RoPE
from ..scaling import Scaling, rope_parameters
from .hooks import bind, parameter_names
from .tables import TableCall, TableForm, call_of, is_table_maker, mark_tables

TOLERANCE = 1e-3  # of outputs, relative to their largest entry; what a wrong rotation changes is 100 × that


@dataclass
class Site:
    """An attention, and the call it got in the recorded forward.

    Args:
        name: of the attention in the model.
        call: positions and layer type of the tables it was handed; None where it takes none.
        tables: those tables.
    """

    name: str
    attention: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    tables: Any = None
    call: TableCall | None = None


def record(
    model: nn.Module, wanted: dict[str, nn.Module], example: dict[str, Any] | None
) -> tuple[list[Site], set[str], dict[str, Any]]:
    """The calls that the `wanted` attentions get in one small forward, who made tables in it, and its arguments.

    Args:
        example: arguments of the model's forward; None: six tokens, or the model's `dummy_inputs`.

    Raises:
        ValueError: the model cannot run on any of these.
    """
    sites: dict[str, Site] = {}
    called: set[str] = set()
    makers = [(name, module) for name, module in model.named_modules() if is_table_maker(module)]
    handles = [module.register_forward_hook(mark_tables(name, called), with_kwargs=True) for name, module in makers]

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            tables = bind(parameter_names(module), args, kwargs).get("position_embeddings")
            sites.setdefault(name, Site(name, module, args, kwargs, tables, call_of(tables)))

        return hook

    handles += [part.register_forward_pre_hook(note(name), with_kwargs=True) for name, part in wanted.items()]
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("the model has parameters on the meta device; load its weights before installing a rotary")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    tries = [example] if example is not None else [*_examples(model, device)]
    problem: Exception | None = None
    with evaluating(model, handles):
        for arguments in tries:
            sites.clear()
            try:
                model(**arguments)
                return list(sites.values()), called, arguments
            except Exception as error:  # whatever a stranger's model may raise on made-up input
                problem = problem or error
    raise ValueError(
        f"{type(model).__name__} cannot be tried out on six tokens ({type(problem).__name__}: {problem}); give "
        "example={…}, arguments of a small forward"
    )


@contextmanager
def evaluating(model: nn.Module, handles: list[Any]) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each part is in the mode it was in, and the hooks are gone."""
    training = [part for part in model.modules() if part.training]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for part in training:
            part.training = True


def check_whole(model: nn.Module, arguments: dict[str, Any], sites: list[Site]) -> None:
    """Refuse a model in which something besides these attentions reads the tables.

    Tables of another base and of positions moved apart are handed out twice: by the modules that make the model's own,
    and to the attentions alone. The results must be the same.

    Raises:
        ValueError: they are not.
    """
    parts = dict(model.named_modules())
    sources = {site.call.source for site in sites if site.call is not None}

    def other(call: TableCall, own: Any) -> Any:
        form = TableForm.of(own)
        return form.write(RoPE(2 * form.pairs, 1, base=3.0).to(_first(own).device), 2 * call.positions + 1, own)

    def at_source(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        call = call_of(output)
        return output if call is None else other(call, output)

    def at_attention(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        own = bind(parameter_names(module), args, kwargs).get("position_embeddings")
        call = call_of(own)
        if call is None:
            return None
        tables = other(call, own)
        if "position_embeddings" in kwargs:
            return args, {**kwargs, "position_embeddings": tables}
        return tuple(tables if argument is own else argument for argument in args), kwargs

    def run(hooks: list[tuple[nn.Module, Any]], before: bool) -> Tensor:
        handles = [parts[name].register_forward_hook(mark_tables(name), with_kwargs=True) for name in sources]
        for part, hook in hooks:
            register = part.register_forward_pre_hook if before else part.register_forward_hook
            handles.append(register(hook, with_kwargs=True))
        with evaluating(model, handles):
            return next(part for part in _tensors(model(**arguments)) if part.is_floating_point())

    to_attentions = run([(site.attention, at_attention) for site in sites], before=True)
    everywhere = run([(parts[name], at_source) for name in sources], before=False)
    if (moved := differs(everywhere, to_attentions)) > 1e-5:
        raise ValueError(
            f"something besides its attentions reads the tables of {type(model).__name__}: with tables handed to the "
            f"attentions alone its output is off by {moved:.2g} of its size"
        )


def _tensors(output: Any) -> list[Tensor]:
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else [output]
    return [value for value in values if isinstance(value, Tensor)]


def _examples(model: nn.Module, device: torch.device) -> list[dict[str, Any]]:
    tokens = torch.arange(1, 7, device=device)[None]  # (1, 6)
    tries: list[dict[str, Any]] = [{"input_ids": tokens, "use_cache": False}, {"input_ids": tokens}]
    with suppress(Exception):
        dummy = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in model.dummy_inputs.items()}  # pyright: ignore
        tries += [dummy, {**dummy, "decoder_input_ids": tokens}]
    with suppress(Exception):  # images
        config: Any = getattr(model.config, "vision_config", model.config)
        sides = config.image_size if isinstance(config.image_size, tuple | list) else (config.image_size,) * 2
        tries.append({"pixel_values": torch.zeros(1, config.num_channels, *sides, device=device)})
    with suppress(Exception):  # Whisper: mel spectra of the one length it takes
        config = model.config
        sound = torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions, device=device)
        tries.append({"input_features": sound, "decoder_input_ids": tokens})
    return tries


def own_rotary(model: nn.Module, site: Site, form: TableForm) -> RoPE:
    """A RoPE with the base and scaling of the model's configuration, checked against its tables.

    Raises:
        ValueError: no configuration, a scaling unknown here, or tables that differ, with the numbers.
    """
    assert site.call is not None
    maker = dict(model.named_modules())[site.call.source]
    config = getattr(maker, "config", None) or getattr(model, "config", None)
    base, scaling = own_base(config, site.call.layer_type), own_scaling(config, site.call.layer_type)
    first = _first(site.tables)
    rope = RoPE(2 * form.pairs, 1, base=base, scaling=scaling).to(first.device)
    if site.call.positions.ndim > 2:
        raise ValueError(f"positions of shape {tuple(site.call.positions.shape)}: several axes have no one angle")
    if site.call.positions.numel() * first.shape[-1] != first.numel():
        raise ValueError(
            f"its tables of shape {tuple(first.shape)} are not one row for each of the {site.call.positions.numel()} "
            "positions it was asked for"
        )
    ours = form.write(rope, site.call.positions, site.tables)
    for own, made in zip(_parts(site.tables), _parts(ours), strict=True):
        error = (own - made).abs().max().item()
        if not error <= 2 * torch.finfo(own.real.dtype).eps + 2e-6:
            raise ValueError(
                f"its tables are not those of base {base:g} and {scaling or 'no scaling'} on {form.pairs} pairs: they "
                f"differ by up to {error:.2g}"
            )
    return rope


def own_base(config: Any, layer_type: str | None) -> float:
    """The base in a configuration of `transformers`.

    Raises:
        ValueError: it names none.
    """
    found = rope_parameters(config, layer_type).get("rope_theta", getattr(config, "rope_theta", None))
    if found is None:
        raise ValueError("its configuration names no rope_theta")
    return float(found)


def own_scaling(config: Any, layer_type: str | None) -> Scaling | None:
    """The scaling in a configuration of `transformers`; see `Scaling.from_config`."""
    return Scaling.from_config(config, layer_type)


def _parts(tables: Any) -> list[Tensor]:
    return [tables] if isinstance(tables, Tensor) else list(tables)


def _first(tables: Any) -> Tensor:
    return _parts(tables)[0]


class Replay:
    """A copy of one attention in float32, called with large random input and the tables it is given."""

    def __init__(self, site: Site, vary_gains: bool = False) -> None:
        # What a module may hold besides its own parts (a cache, its parent) is shared, not copied.
        self.attention = copy.deepcopy(site.attention).float().eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.attention.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                if parameter.ndim >= 2:  # scores of order one: fresh models have next to none, trained ones large ones
                    parameter.copy_(1.5 * noise * parameter.shape[-1] ** -0.5)
                elif vary_gains:  # or a norm would look like none
                    parameter.copy_(1 + 0.5 * noise.sigmoid())
                else:  # a norm with gains behind the rotation is the model's own business
                    parameter.fill_(float(name.endswith("weight")))
        self.names = parameter_names(self.attention)
        arguments = bind(self.names, site.args, site.kwargs)
        self.arguments = {name: self._prepare(value) for name, value in arguments.items()}
        self.arguments = {k: v for k, v in self.arguments.items() if k not in ("past_key_values", "past_key_value")}
        x = self.arguments["hidden_states"]
        self.x = torch.randn(x.shape, generator=generator).to(x.device)  # (b, s, d)

    @staticmethod
    def _prepare(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    @torch.no_grad()
    def __call__(self, tables: Any = None, x: Tensor | None = None) -> Tensor:
        arguments = {**self.arguments, "hidden_states": self.x if x is None else x}
        if tables is not None:
            arguments["position_embeddings"] = tables
        accepted = {k: v for k, v in arguments.items() if k in self.names or "kwargs" in self.names}
        accepted.pop("kwargs", None)
        try:
            output = self.attention(**accepted)
        except Exception as error:  # whatever a stranger's attention may raise
            raise ValueError(f"it cannot be tried out on its own ({type(error).__name__}: {error})") from error
        return output if isinstance(output, Tensor) else output[0]


def differs(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return ((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item()


def check_attention(site: Site, rope: RoPE, form: TableForm) -> bool:
    """Whether the attention rotates by the tables it is handed; False for a layer without positions.

    Raises:
        ValueError: it does, but queries and keys are not both rotated once, by these tables alone.
    """
    assert site.call is not None
    replay = Replay(site)
    positions = site.call.positions
    like = tuple(part.float() for part in site.tables) if not isinstance(site.tables, Tensor) else site.tables
    plain, shifted = (form.write(rope, positions + by, like) for by in (0, 7))
    neutral = tuple(torch.full_like(t, v) for t, v in zip(_parts(plain), (1, 0), strict=False))
    own = replay(plain)
    if differs(own, replay(neutral if len(neutral) == 2 else neutral[0])) < 10 * TOLERANCE:
        return False
    if (moved := differs(own, replay(shifted))) > TOLERANCE:
        raise ValueError(
            f"its output moves by {moved:.2g} of its size when all positions shift by 7: queries and keys are not both "
            "rotated once, by the tables it is handed"
        )
    return True


def find_pairs(site: Site, form: TableForm, rope: RoPE) -> tuple[tuple[str, ...], tuple[str, int]]:
    """Where R can be multiplied, and how the attention pairs features.

    Returns: names of the two children behind which R goes, and (layout, width of a head).

    Raises:
        ValueError: there is no such place.
    """
    replay, attention = Replay(site, vary_gains=True), site.attention
    assert site.call is not None
    like = tuple(part.float() for part in site.tables) if not isinstance(site.tables, Tensor) else site.tables
    tables = form.write(rope, site.call.positions, like)
    width = getattr(attention, "head_dim", None)
    own = replay(tables)
    for children in (("q_norm", "k_norm"), ("q_proj", "k_proj")):
        if not isinstance(width, int) or not all(isinstance(getattr(attention, c, None), nn.Module) for c in children):
            continue
        for layout in ("half", "interleaved"):
            rotate, mix = _matrix_hooks(form.pairs, layout, width)
            if any(_width_of(getattr(replay.attention, c)) % width for c in children):
                continue
            parts = [getattr(replay.attention, child) for child in children]
            # A rotation of pairs commutes with the model's, any other R does not, unless it stands behind it.
            if _moved(replay, own, tables, parts, rotate) > TOLERANCE:
                continue
            if form.pairs == 1 or _moved(replay, own, tables, parts, mix) > 10 * TOLERANCE:
                return children, (layout, width)
    raise ValueError(
        "R has no place in it: behind no pair of q_norm and k_norm, or q_proj and k_proj, does rotating pairs commute "
        "with what it does next (a norm with gains, a clamp, or projections of another kind); give a rotary without R"
    )


def _width_of(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    return weight.shape[0] if isinstance(weight, Tensor) and weight.ndim else 0


def _moved(replay: Replay, own: Tensor, tables: Any, parts: list[nn.Module], hook: Any) -> float:
    """How far the output moves with this hook behind both parts; infinitely far where it cannot stand there."""
    handles = [part.register_forward_hook(hook) for part in parts]
    try:
        return differs(own, replay(tables))
    except ValueError:
        return float("inf")
    finally:
        for handle in handles:
            handle.remove()


def _matrix_hooks(pairs: int, layout: str, width: int) -> list[Callable[[nn.Module, tuple, Tensor], Tensor]]:
    """Two forward hooks: one rotates each of the pairs by an angle of its own, one all that rotates by a random R."""
    turn, mix = torch.eye(width), torch.eye(width)
    generator = torch.Generator().manual_seed(1)
    mix[: 2 * pairs, : 2 * pairs] = torch.linalg.qr(torch.randn(2 * pairs, 2 * pairs, generator=generator)).Q
    for m in range(pairs):
        i, j = (m, m + pairs) if layout == "half" else (2 * m, 2 * m + 1)
        angle = torch.tensor(0.7 + 1.1 * m)
        turn[i, i] = turn[j, j] = angle.cos()
        turn[i, j], turn[j, i] = angle.sin(), -angle.sin()

    def hook(matrix: Tensor, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return (output.unflatten(-1, (-1, width)) @ matrix.to(output.device)).reshape(output.shape)

    return [functools.partial(hook, turn), functools.partial(hook, mix)]


def run(model: nn.Module, arguments: dict[str, Any]) -> None:
    """One forward in evaluation mode without gradients."""
    with evaluating(model, []):
        model(**arguments)


def check_rotary(rotary: Rotary, form: TableForm, name: str) -> None:
    """Refuse a rotary whose rotation these tables cannot carry, with the numbers."""
    if not rotary.is_pairwise or rotary._span is not None or rotary.position_axes > 1:
        raise ValueError(f"{type(rotary).__name__} is more than rotations of pairs; {name} takes nothing else")
    if not rotary.is_relative:
        raise ValueError(f"{type(rotary).__name__} scales queries and keys apart; {name} takes one table for both")
    if rotary.head_dim != 2 * form.pairs:
        raise ValueError(
            f"the rotary's head_dim {rotary.head_dim} is not the {2 * form.pairs} features that {name} rotates"
        )
