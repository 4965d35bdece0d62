"""RoPE, the baseline: nothing learned, R is the identity (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""

from .base import Rotary


class RoPE(Rotary):
    """Turn pair (2m, 2m+1) of the token at position p by p·base^(−2m/c); arguments, shapes and errors as `Rotary`.

    Scores between two rotated vectors depend on the difference of their positions alone.
    """
