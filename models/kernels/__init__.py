"""Fast paths, the only part of `models` that asks about the machine.

A file here holds one operation: its formula in one line, a faster way to the same numbers with the measured ratio, and
a public function that chooses. The choice is asked for in one place, `use_fast_path`:

    if not use_fast_path("rms_norm"):
        return F.rms_norm(x, x.shape[-1:], eps=eps)

`with formulas_only():` (or `formulas_only("rms_norm")`) switches fast paths off: for tests that both ways agree, and
for measurements of what each is worth.
"""

from .switch import formulas_only, use_fast_path

__all__ = ["formulas_only", "use_fast_path"]
