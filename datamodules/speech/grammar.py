"""Sentences of the corpus `commands`: digits, numbers, times, dates and requests to a house, 145 word types.

A sentence is a pure function of a random generator. Every word is written as it is spoken, so that a transcript needs
no normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
MONTHS = [
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
    "november", "december",
]  # fmt: skip
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
ORDINALS = [
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth",
    "nineteenth", "twentieth",
]  # fmt: skip
ROOMS = ["kitchen", "bedroom", "bathroom", "garage", "garden", "office"]
DEVICES = ["light", "lamp", "heater", "fan", "radio"]
OPENINGS = ["door", "window", "curtain", "gate"]
MUSIC = ["jazz", "rock", "pop", "folk", "classical"]
ITEMS = ["milk", "bread", "butter", "coffee", "apples", "rice", "cheese"]
NAMES = ["anna", "peter", "maria", "john", "susan", "george"]

Draw = np.random.Generator


def pick(draw: Draw, choices: Sequence[str]) -> str:
    """Return one of `choices`."""
    return choices[int(draw.integers(len(choices)))]


def spell_number(n: int) -> str:
    """Return the words of 0 … 9999.

    Example:
        >>> spell_number(1345)
        'one thousand three hundred and forty five'
    """
    if n < 10:
        return DIGITS[n]
    if n < 20:
        return TEENS[n - 10]
    if n < 100:
        return TENS[n // 10 - 2] + (f" {DIGITS[n % 10]}" if n % 10 else "")
    if n < 1000:
        return f"{DIGITS[n // 100]} hundred" + (f" and {spell_number(n % 100)}" if n % 100 else "")
    rest = n % 1000
    joint = "" if not rest else f" and {spell_number(rest)}" if rest < 100 else f" {spell_number(rest)}"
    return f"{DIGITS[n // 1000]} thousand{joint}"


def number(draw: Draw) -> str:
    return spell_number(int(draw.integers(10 ** draw.integers(1, 5))))


def digit_string(draw: Draw) -> str:
    return " ".join(pick(draw, DIGITS) for _ in range(draw.integers(2, 8)))


def time(draw: Draw) -> str:
    hour = spell_number(int(draw.integers(1, 13)))
    minute = spell_number(int(draw.integers(10, 60)))
    return pick(draw, (f"{hour} o'clock", f"half past {hour}", f"quarter to {hour}", f"{hour} {minute}"))


def date(draw: Draw) -> str:
    day = int(draw.integers(1, 32))
    tail = {30: "thirtieth", 31: "thirty first"}.get(day) or (
        ORDINALS[day - 1] if day <= 20 else f"twenty {ORDINALS[day - 21]}"
    )
    month = pick(draw, MONTHS)
    return pick(draw, (f"the {tail} of {month}", f"{month} the {tail}", f"{pick(draw, DAYS)} the {tail} of {month}"))


def command(draw: Draw) -> str:
    room, device = pick(draw, ROOMS), pick(draw, DEVICES)
    amount = spell_number(int(draw.integers(1, 100)))
    requests: tuple[Callable[[], str], ...] = (
        lambda: f"turn {pick(draw, ('on', 'off'))} the {room} {device}",
        lambda: f"turn the {device} in the {room} {pick(draw, ('on', 'off'))}",
        lambda: f"set the {room} {device} to {amount} percent",
        lambda: f"set a timer for {amount} {pick(draw, ('minutes', 'seconds'))}",
        lambda: f"wake me up at {time(draw)}",
        lambda: f"play {pick(draw, MUSIC)} music in the {room}",
        lambda: f"add {pick(draw, ITEMS)} and {pick(draw, ITEMS)} to the list",
        lambda: f"{pick(draw, ('open', 'close', 'lock'))} the {room} {pick(draw, OPENINGS)}",
        lambda: f"what is the weather on {pick(draw, DAYS)}",
        lambda: f"call {pick(draw, NAMES)} {pick(draw, ('today', 'tomorrow'))} at {time(draw)}",
        lambda: f"make the {room} {pick(draw, ('warmer', 'colder', 'brighter', 'darker'))} please",
    )
    return requests[int(draw.integers(len(requests)))]()


KINDS: tuple[tuple[float, Callable[[Draw], str]], ...] = (
    (0.15, number),
    (0.2, digit_string),
    (0.1, time),
    (0.15, date),
    (0.4, command),
)


def sentence(draw: Draw) -> str:
    """Return one sentence."""
    place = draw.random()
    for share, kind in KINDS:
        place -= share
        if place < 0:
            return kind(draw)
    return command(draw)
