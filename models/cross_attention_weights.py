"""Where a decoder looks while it writes: the weights of its cross-attention, for pictures.

SDPA does not hand out its weights, so they are computed once more from what each layer reads.
"""

import torch
from torch import Tensor

from .attention import MultiHeadAttention
from .attention.projections import project_context
from .decoder import Decoder


@torch.no_grad()
def cross_attention_weights(
    decoder: Decoder, tokens: Tensor, context: Tensor, context_mask: Tensor | None = None
) -> Tensor:
    """Return the weights of every block that attends to a context, mean over heads: (layers, b, t, s), rows sum to 1.

    Args:
        decoder: built with `cross_attention=True`, in evaluation mode.
        tokens: (b, t) that it reads.
        context: (b, s, dims). context_mask: (b, s) bool, True = may be attended.

    Raises:
        ValueError: a decoder without cross-attention.

    Example:
        >>> decoder = Decoder(10, 32, 2, 4, cross_attention=True).eval()
        >>> cross_attention_weights(decoder, torch.ones(1, 3, dtype=torch.int64), torch.randn(1, 5, 32)).shape
        torch.Size([2, 1, 3, 5])
    """
    if not decoder.cross_attention:
        raise ValueError("this decoder has no cross-attention: build it with cross_attention=True")
    found: list[Tensor] = []

    def look(module: MultiHeadAttention, inputs: tuple[Tensor, Tensor], options: dict, output: Tensor) -> None:
        q, k, _ = project_context(module, *inputs[:2], context_mask, options.get("positions"), None)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (b, h, s, c)
        scores = (q @ k.transpose(-1, -2)).float() / module.head_dim**0.5  # (b, h, t, s)
        if context_mask is not None:
            scores = scores.masked_fill(~context_mask[:, None, None], -torch.inf)
        found.append(scores.softmax(-1).mean(1))

    handles = [m.cross_attention.register_forward_hook(look, with_kwargs=True) for m in decoder.blocks]  # pyright: ignore
    try:
        decoder(tokens, context, context_mask=context_mask)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found)
