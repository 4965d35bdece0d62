"""One line about what of a corpus was read, and what was not."""

from typing import Any

from .sources import describe
from .text_files import show


def corpus_line(name: str, taken: dict[str, Any]) -> str:
    """What was taken and what was left out; empty for a single text, of which all was taken.

    Example:
        >>> corpus_line("notes", {"documents": 3, "characters": 4200, "left_out": {"empty": [1, "a.txt"]}})
        'corpus notes: 3 documents, 4,200 characters; left out: 1 empty (a.txt)'
    """
    left_out = taken.get("left_out") or {}
    if not taken.get("joined", True) and not left_out:
        return ""
    size = f"{taken['tokens']:,} tokens" if "tokens" in taken else f"{taken['characters']:,} characters"
    out = f"; left out: {describe({why: tuple(count) for why, count in left_out.items()})}" if left_out else ""
    return f"corpus {show(name)}: {taken['documents']:,} documents, {size}{out}"
