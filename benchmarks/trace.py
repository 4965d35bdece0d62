"""Count of files and functions that a call enters: how far a reader has to walk from a public method to its arithmetic.

`python benchmarks/trace.py` prints, for one layer, `Decoder.forward` up to the rotated query (plain RoPE and the
default), and one FAM step with analysis. Only functions of this package count, each once; lambdas and comprehensions
belong to the function around them.
"""

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
ROTATION = re.compile(r"apply_rotary|apply_positions|rotate|turn_pairs")


def trace(call: Callable[[], Any]) -> list[tuple[str, str]]:
    """Run `call` and return the functions of this package that it entered, in order, as (file, function).

    Args:
        call: what to run; gradients are on, as in training.

    Returns:
        Each (path from the root, qualified name) once.
    """
    entered: dict[tuple[str, str], None] = {}

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or code.co_name.startswith("<") or code.co_filename.startswith("<"):
            return
        path = Path(code.co_filename).resolve()
        if not path.is_relative_to(ROOT) or ".venv" in path.parts or path.is_relative_to(ROOT / "benchmarks"):
            return
        entered.setdefault((str(path.relative_to(ROOT)), code.co_qualname))

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(entered)


def count(entered: list[tuple[str, str]]) -> str:
    """Return "files / functions"."""
    return f"{len({path for path, _ in entered})} / {len(entered)}"


class _Mixed(Exception):
    """Raised where scaled dot-product attention is called: by then query and key are rotated."""


def forward_to_rotated_query(**options: Any) -> list[tuple[str, str]]:
    """Trace a one-layer `Decoder.forward` in training, from the call to the scaled dot-product attention."""
    from cubelet.models.decoder import Decoder

    decoder = Decoder(64, 32, 1, 4, **options)
    tokens = torch.randint(0, 64, (2, 48))
    decoder(tokens)  # tables are there, as after the first step

    def stop(*arguments: Any, **named: Any) -> Any:
        raise _Mixed

    usual = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = stop
    try:
        entered: list[tuple[str, str]] = []

        def call() -> None:
            with contextlib.suppress(_Mixed):
                decoder(tokens)

        entered = trace(call)
    finally:
        torch.nn.functional.scaled_dot_product_attention = usual
    # What comes after the last rotation (masks, the choice of a kernel) is attention's own way.
    last = max((i for i, (_, name) in enumerate(entered) if ROTATION.search(name)), default=len(entered) - 1)
    return entered[: last + 1]


def fam_step(**options: Any) -> list[tuple[str, str]]:
    """Trace one `FAM.step` with analysis, past `start_step`, over the kinds of parameters of a small decoder."""
    from cubelet.models.decoder import Decoder
    from cubelet.optimizers import FAM, parameter_groups

    decoder = Decoder(64, 32, 1, 4)
    optimizer = FAM(parameter_groups(decoder, lr=1e-3), start_step=2, analyse_every=1, min_size=16, **options)
    for _ in range(5):
        for weight in decoder.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    return trace(optimizer.step)


def main() -> None:
    from cubelet.models.rotary import RoPE

    rows = {
        "Decoder.forward -> rotated query, RoPE": forward_to_rotated_query(rotary=RoPE),
        "Decoder.forward -> rotated query, default": forward_to_rotated_query(),
        "one FAM step with analysis": fam_step(),
    }
    for name, entered in rows.items():
        print(f"{name:45} {count(entered)}")
        if "-v" in sys.argv:
            for path, function in entered:
                print(f"    {path:40} {function}")


if __name__ == "__main__":
    main()
