"""RoPE, the baseline: nothing learned, R is the identity (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""

from .base import Rotary


class RoPE(Rotary):
    """Rotate pair (2m, 2m+1) of the token at position p by p·base^(−2m/c); arguments, shapes and errors as `Rotary`.

    Scores between two rotated vectors depend on the difference of their positions alone.

    Example:
        >>> import torch
        >>> rope = RoPE(dims=16, heads=2)
        >>> q = k = torch.ones(1, 2, 5, 8)  # (b, h, s, c)
        >>> scores = rope.rotate(q) @ rope.rotate(k, torch.arange(5) + 100).mT
        >>> torch.allclose(scores[..., 0, 0], scores[..., 4, 4], atol=1e-5)
        True
    """
