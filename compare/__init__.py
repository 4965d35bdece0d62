"""`cubelet compare`: paired runs of variants against a baseline, and an honest table.

`experiment` reads a file, `plan` makes runs of it, `execute` does them, `measure` says how good they are, `tune` picks
settings on other seeds, `statistics` finds the words, `report` writes them down; `command` is the command line.
"""

from .measure import Measures

__all__ = ["Measures"]
