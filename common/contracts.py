"""Contracts of components: what one needs to have is checked where it is built in, and what it lacks is named."""

from collections.abc import Mapping
from typing import Any


def check_contract(kind: str, component: Any, needs: Mapping[str, str], base: str) -> None:
    """Raise where a component lacks part of what is called on it later.

    Args:
        kind: what it is used as, such as "rotary".
        component: the object.
        needs: name of an attribute or method → what it is.
        base: class to derive from, which has all of them.

    Raises:
        TypeError: names the first that is missing, with its meaning, and the others.

    Example:
        >>> check_contract("rotary", object(), {"rotate": "(x, positions) → x"}, "cubelet.models.rotary.Rotary")
        Traceback (most recent call last):
        TypeError: object is no rotary: it has no `rotate`, (x, positions) → x; derive it from ...
    """
    missing = [name for name in needs if not hasattr(component, name)]
    if not missing:
        return
    others = f" (nor {', '.join(f'`{name}`' for name in missing[1:])})" if missing[1:] else ""
    raise TypeError(
        f"{type(component).__name__} is no {kind}: it has no `{missing[0]}`, {needs[missing[0]]}{others}; derive it "
        f"from {base}, which has all a {kind} needs"
    )
