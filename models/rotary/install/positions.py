"""Attentions without positions of their own: that they have none, and that the positions given for them fit."""

import torch
from torch import Tensor

from ..base import Rotary
from .hooks import bind, parameter_names
from .probe import TOLERANCE, Replay, Site, differs


def check_no_positions(site: Site) -> None:
    """Refuse an attention without tables that has positions of its own all the same.

    The last token's output must not change when the tokens before it are exchanged.

    Raises:
        ValueError: it does.
    """
    replay = Replay(site)
    x = replay.x
    exchanged = torch.cat((x[:, :-1].flip(1), x[:, -1:]), dim=1)
    moved = differs(replay(x=x)[:, -1], replay(x=exchanged)[:, -1])
    if moved > TOLERANCE:
        raise ValueError(
            f"it takes no tables, and has positions of its own: its last output moves by {moved:.2g} of its size when "
            "earlier tokens change places"
        )


def check_given_positions(site: Site, rotary: Rotary, positions: Tensor | None) -> None:
    """Refuse positions of another number of tokens or axes than there are, with the numbers."""
    axes, tokens = rotary.position_axes, bind(parameter_names(site.attention), site.args, site.kwargs)["hidden_states"]
    if positions is None:
        if axes > 1:
            raise ValueError(
                f"{type(rotary).__name__} wants positions of {axes} axes; give positions= of shape (s, {axes})"
            )
        return
    wanted = (tokens.shape[1],) if axes == 1 else (tokens.shape[1], axes)
    if tuple(positions.shape) != wanted:
        raise ValueError(
            f"positions have shape {tuple(positions.shape)}, and it gets {tokens.shape[1]} tokens: want {wanted} (a "
            "class token or registers in front are the prefix of grid_positions)"
        )
