"""Checks of arguments: one function for each kind, one wording for each."""

from collections.abc import Collection
from typing import Any, get_args


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise where `value` is none of `choices`.

    Args:
        name: of the argument, as its user writes it.
        value: what was given.
        choices: a `Literal` type, or a collection of allowed values.

    Raises:
        ValueError: names the argument, the value and all choices.

    Example:
        >>> check_choice("order", "randm", ("random", "permutation"))
        Traceback (most recent call last):
        ValueError: order 'randm' is unknown; choose one of random, permutation
    """
    allowed: Collection[Any] = get_args(choices) or choices
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(map(str, allowed))}")


def check_at_least(name: str, value: float, least: float, reason: str = "") -> None:
    """Raise where `value` is below `least` or not a number.

    Args:
        name: of the argument.
        value: what was given.
        least: smallest allowed value.
        reason: what the argument stands for, where that helps; put in brackets.

    Raises:
        ValueError: with both numbers.

    Example:
        >>> check_at_least("layers", 0, 1)
        Traceback (most recent call last):
        ValueError: layers 0 must be at least 1
    """
    if not value >= least:
        raise ValueError(f"{name} {value} must be at least {least}" + (f" ({reason})" if reason else ""))


def check_fraction(name: str, value: float) -> None:
    """Raise where `value` is not in [0, 1): dropout rates, decay rates.

    Raises:
        ValueError: with the value.

    Example:
        >>> check_fraction("dropout", 1.0)
        Traceback (most recent call last):
        ValueError: dropout 1.0 must be at least 0 and below 1
    """
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} {value} must be at least 0 and below 1")
