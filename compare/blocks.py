"""The parts that reports are made of; `render.py` gives them their form."""

from collections.abc import Sequence
from dataclasses import dataclass

PICTURES = {
    "differences": "Difference to the baseline",
    "curves": "Training loss over optimizer steps",
    "clock": "Training loss over CPU-seconds of training",
    "exact": "Rows right to the last token, by length",
    "lengths": "Length curves: loss of the same tokens with longer contexts",
    "time": "Final loss against time",
    "ladder": "Difference to the baseline at growing sizes",
}


@dataclass(frozen=True)
class Heading:
    text: str
    is_top: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph; `kind` is "alarm", "caution", "faint" or nothing."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class ListOf:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table of text; `is_text` where its cells are words and may be broken into lines."""

    head: Sequence[str]
    rows: list[list[str]]
    is_text: bool = False


@dataclass(frozen=True)
class Picture:
    """`NAME-light.png` and `NAME-dark.png` of `figures.draw`; `name` is a key of `PICTURES`."""

    name: str


@dataclass(frozen=True)
class Preformatted:
    text: str


@dataclass(frozen=True)
class Links:
    """(words, path relative to the report); shown on the page alone."""

    items: Sequence[tuple[str, str]]


Block = Heading | Text | ListOf | Table | Picture | Preformatted | Links
