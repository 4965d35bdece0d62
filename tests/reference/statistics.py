"""Paired t-interval and Holm's correction, by their definitions and slow numerical integration."""

import math


def t_density(x, degrees):
    top = math.gamma((degrees + 1) / 2)
    return top / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2) * (1 + x * x / degrees) ** (-(degrees + 1) / 2)


def t_two_sided(t, degrees, cells=20_000):
    """P(|T| > t) by Simpson's rule on [0, |t|]."""
    width = abs(t) / cells
    total = sum((1 if i in (0, cells) else 4 if i % 2 else 2) * t_density(i * width, degrees) for i in range(cells + 1))
    return 1 - 2 * total * width / 3


def t_quantile(level, degrees):
    """t with P(|T| ≤ t) = level, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - t_two_sided(middle, degrees, 2000) < level else (low, middle)
    return (low + high) / 2


def t_interval(differences, level=0.95):
    """(mean, low, high, p)"""
    n = len(differences)
    mean = sum(differences) / n
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    reach = t_quantile(level, n - 1) * error
    return mean, mean - reach, mean + reach, t_two_sided(mean / error, n - 1)


def holm(p):
    """Adjusted p-values: the i-th smallest times how many are left, never below one before it, at most 1."""
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, p[index] * (len(p) - rank)))
        adjusted[index] = worst
    return adjusted
