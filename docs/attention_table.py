"""The table of what each attention and block supports, found out by trying.

    python docs/attention_table.py            prints it
    python docs/attention_table.py --write    puts it into docs/attention.md

A test compares the file with what the code does today.
"""

import argparse
import inspect
from pathlib import Path

import torch
from torch import nn

from cubelet.models import attention, blocks
from cubelet.models.cache import LayerCache
from cubelet.models.rotary import RoPE

ATTENTIONS = (
    "MultiHeadAttention",
    "SlidingWindowAttention",
    "HybridAttention",
    "AdaptiveSpanAttention",
    "ContentGatedAttention",
    "IntegratedAttention",
    "DynamicConvAttention",
    "RelativeForceAttention",
    "ForgettingAttention",
    "CoPEAttention",
    "GatedOutputAttention",
    "SinkAttention",
    "ScalableSoftmaxAttention",
    "DifferentialAttention",
    "LatentAttention",
)
BLOCKS = ("ResidualBlock", "ShortConvBlock", "SkippingBlock", "MixtureOfDepthsBlock", "MyelinatedBlock")
BEGIN, END = "<!-- table: python docs/attention_table.py --write -->", "<!-- end of table -->"
DOCUMENT = Path(__file__).with_name("attention.md")


def works(call) -> bool:
    """Whether a call succeeds; only a clear refusal counts as no."""
    try:
        call()
    except (ValueError, TypeError):
        return False
    return True


def caches(cache) -> list[LayerCache]:
    """All layer caches below."""
    return [cache] if isinstance(cache, LayerCache) else [c for part in cache.parts for c in caches(part)]


def cached_rows(module: nn.Module) -> str:
    """What a cache keeps per token or per window, in words."""
    kinds = ["all" if c.window is None else f"{c.window - 1}" for c in caches(module.new_cache(1, 4096))]
    return " + ".join(kinds)


def attention_row(name: str) -> list[str]:
    make = getattr(attention, name)
    module = make(32, 4, rotary=RoPE(32, 4))
    x, context = torch.randn(1, 6, 32), torch.randn(1, 3, 32)
    moves = [word for word in ("set_window", "set_span", "refine") if hasattr(module, word)]
    inner = [
        f"`{name}.{word}`" for name, child in module.named_children() for word in ("set_span",) if hasattr(child, word)
    ]
    return [
        f"`{name}`",
        "yes" if works(lambda: make(32, 4, causal=False)(x)) else "no",
        "yes" if works(lambda: module(x, context)) else "no",
        "yes" if works(lambda: make(32, 4, kv_heads=2)) else "no",
        "yes" if works(lambda: make(32, 4, qk_norm=True)) else "no",
        cached_rows(module),
        ", ".join([f"`{word}`" for word in moves] + inner) or "–",
    ]


def block_row(name: str) -> list[str]:
    make = getattr(blocks, name)
    block = make(32, 4, rotary=RoPE)
    x, context = torch.randn(1, 6, 32), torch.randn(1, 3, 32)
    costs = block(x)[1] is not None or (
        "budget" in inspect.signature(make).parameters and make(32, 4, budget=0.0)(x)[1] is not None
    )
    return [
        f"`{name}`",
        "yes" if works(lambda: make(32, 4, cross_attention=True)(x, context)) else "no",
        "yes" if costs else "no",
        "yes" if torch.equal(block(x)[0], x) else "no",
    ]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables() -> str:
    """Both tables in Markdown."""
    torch.manual_seed(0)
    attentions = markdown(
        [
            "attention",
            "`causal=False`",
            "context",
            "`kv_heads`",
            "`qk_norm`",
            "rows in the cache",
            "moves between steps",
        ],
        [attention_row(name) for name in ATTENTIONS],
    )
    blocks_ = markdown(
        ["block", "cross-attention", "returns a cost", "starts as the identity"], [block_row(name) for name in BLOCKS]
    )
    return f"{attentions}\n\n{blocks_}"


def written(text: str) -> str:
    """The tables that stand in a document."""
    return text.split(BEGIN)[1].split(END)[0].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        before, rest = DOCUMENT.read_text().split(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{rest.split(END)[1]}")
    else:
        print(tables())


if __name__ == "__main__":
    main()
