"""Slow, obvious optimizers in NumPy float64: one tensor at a time, one loop per idea, written from the formulas."""

from __future__ import annotations

import math

import numpy as np


def window(grad: np.ndarray) -> np.ndarray:
    """At most 16 evenly spaced rows of 64 entries, missing ones zero."""
    flat = grad.reshape(-1)
    row_length = flat.size // grad.shape[0] if grad.ndim > 1 else 0
    if row_length < 64:
        row_length = min(64, flat.size)
    rows = [flat[start : start + row_length] for start in range(0, flat.size - row_length + 1, row_length)]
    rows = rows[:: max(1, len(rows) // 16)][:16]
    padded = np.zeros((16, 64))
    for i, row in enumerate(rows):
        padded[i, : len(row[:64])] = row[:64]
    return padded


def index_magnitudes(grad: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.rfft(window(grad), axis=1)).sum(0)


def time_magnitudes(windows: list[np.ndarray]) -> np.ndarray:
    """Magnitudes along the list, oldest first, summed over the entries of the windows."""
    return np.abs(np.fft.rfft(np.stack(windows), axis=0)).sum((1, 2))


def bands_of(magnitudes: np.ndarray, n: int, handler: str) -> np.ndarray:
    """Shares of n bands."""
    bins = len(magnitudes)
    shares = np.zeros(n)
    for f, magnitude in enumerate(magnitudes / magnitudes.sum()):
        if handler == "attention":
            low, half = (bins + 1) // 2, n // 2
            band = f * half // low if f < low else half + (f - low) * (n - half) // (bins - low)
        elif handler == "conv":
            edges = [0]
            for i in range(1, n):
                edges.append(max(edges[-1] + 1, min(round(bins ** (i / n)), bins - (n - i))))
            band = max(i for i, edge in enumerate(edges) if f >= edge)
        else:
            band = f * n // bins
        shares[band] += magnitude
    return shares


def white_shares(length: int, n: int, handler: str) -> np.ndarray:
    level = np.full(length // 2 + 1, math.sqrt(math.pi) / 2)
    level[0] = math.sqrt(2 / math.pi)
    if length % 2 == 0:
        level[-1] = math.sqrt(2 / math.pi)
    return bands_of(level, n, handler)


def chosen_alpha(shares: np.ndarray, white: np.ndarray, alpha: float, handler: str, rule: str) -> float:
    """α' as the text of the four handlers and three rules says."""
    n = len(shares)
    if rule == "ratio":
        return max(alpha, min(0.98, alpha + 0.05 * shares[n // 2 :].sum())) if alpha < 0.98 else alpha

    def above(first: int, last: int, threshold: float) -> bool:
        share, level = shares[first:last].sum(), white[first:last].sum()
        return share > threshold if rule == "absolute" else share / level - 1 > threshold

    def raised(boost: float, cap: float) -> float:
        return max(alpha, min(cap, alpha + boost))

    if handler == "default":
        return raised(0.05, 0.95) if above(n // 2, n, 0.3) else alpha
    if handler == "embedding":
        return raised(0.08, 0.98) if above(3 * n // 4, n, 0.2) else alpha
    if handler == "conv":
        if above(n // 4, 3 * n // 4, 0.4):
            return raised(0.07, 0.97)
        return raised(0.05, 0.95) if above(3 * n // 4, n, 0.3) else alpha
    strength = shares if rule == "absolute" else shares / white
    strongest = int(strength.argmax())
    if rule == "excess" and strength[strongest] <= 1.2:
        return alpha
    if strongest < n / 4:
        return min(alpha, max(0.85, alpha - 0.05))
    return raised(0.08, 0.98) if strongest > 3 * n / 4 else alpha


def damped_nu(shares: np.ndarray, white: np.ndarray, alpha: float, nu: float, length: int) -> float:
    """ν at which an oscillator with the memory τ = α/(1−α), heard at its frequency, has the damping ratio 1/√2."""
    excess = [shares[k] / white[k] - 1 for k in range(1, len(shares))]
    peak = max(range(len(excess)), key=excess.__getitem__)
    wanted = 1.0
    if excess[peak] > (0.1 if nu < 1 else 0.2):
        around = [k for k in (peak - 1, peak, peak + 1) if 0 <= k < len(excess)]
        weight = [max(excess[k], 0) for k in around]
        omega = 2 * math.pi * sum(w * (k + 1) for w, k in zip(weight, around, strict=True)) / sum(weight) / length
        memory = alpha / (1 - alpha)
        # ζ = (1/τ + ω²·τ·(1−ν)) / 2ω = 1/√2
        wanted = min(1.0, max(0.5, 1 - (math.sqrt(2) * omega - 1 / memory) / (omega**2 * memory)))
    return round(wanted / 0.05) * 0.05 if abs(wanted - nu) >= 0.05 else nu


def orthogonalised(u: np.ndarray) -> np.ndarray:
    """Five Newton-Schulz steps with Muon's coefficients."""
    x = u / np.linalg.norm(u)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x


class ReferenceFAM:
    """FAM for one tensor, settings as FAM's keywords."""

    def __init__(self, w: np.ndarray, **settings) -> None:
        defaults = {
            "lr": 1e-3, "alpha": 0.9, "beta": 0.99, "n_bands": 8, "start_step": 100, "min_size": 256,
            "weight_decay": 0.0, "analyse_every": 10, "handler": "default", "rule": "excess", "axis": "index",
            "base": "adamw", "beta2": 0.999, "eps": 1e-8, "history": 24, "decoupled_weight_decay": True,
            "maximize": False, "nu": None, "nesterov": False, "muon_alpha": 0.95,
        }  # fmt: skip
        self.s = {**defaults, **settings}
        self.w = w.astype(np.float64)
        self.m = np.zeros_like(self.w)
        self.v = np.zeros_like(self.w)
        self.factors = None
        self.bands = None
        self.alpha = self.s["alpha"]
        self.muon = self.s["base"] == "muon" and self.w.ndim == 2
        if self.muon:
            self.alpha = self.s["alpha"] = self.s["muon_alpha"]
        self.nu = 1.0
        self.windows: list[np.ndarray] = []
        self.product, self.t = 1.0, 0

    def analyse(self, grad: np.ndarray) -> None:
        s = self.s
        if self.w.size < max(1, s["min_size"]):
            return
        self.windows = [*self.windows, window(grad)][-s["history"] :]
        if self.t <= s["start_step"] or self.t % s["analyse_every"]:
            return
        if s["axis"] == "time":
            if self.t < s["history"]:
                return
            magnitudes, length = time_magnitudes(self.windows), s["history"]
        else:
            magnitudes, length = index_magnitudes(grad), 64
        total = magnitudes.sum()
        if not np.isfinite(total) or total == 0:
            return
        shares = bands_of(magnitudes, s["n_bands"], s["handler"])
        keep = s["beta"] ** s["analyse_every"]
        if s["rule"] == "damp":
            shares = magnitudes / total
            self.bands = shares if self.bands is None else keep * self.bands + (1 - keep) * shares
            white = np.full(len(shares), math.sqrt(math.pi) / 2)
            white[0] = math.sqrt(2 / math.pi)
            if length % 2 == 0:
                white[-1] = white[0]
            self.nu = damped_nu(self.bands, white / white.sum(), s["alpha"], self.nu, length)
            return
        self.bands = shares if self.bands is None else keep * self.bands + (1 - keep) * shares
        white = white_shares(length, s["n_bands"], s["handler"])
        self.alpha = chosen_alpha(self.bands, white, s["alpha"], s["handler"], s["rule"])

    def step(self, grad: np.ndarray) -> np.ndarray:
        s = self.s
        self.t += 1
        grad = grad.astype(np.float64)
        self.analyse(grad)
        a = self.alpha
        if s["maximize"]:
            grad = -grad
        step = 0.0
        if s["base"] == "maxfactor":
            step = max(1e-3, rms(self.w)) * min(s["lr"], 1 / math.sqrt(self.t))
        if s["decoupled_weight_decay"]:
            self.w = self.w * (1 - s["lr"] * s["weight_decay"])
        else:
            grad = grad + s["weight_decay"] * self.w
        nu = s["nu"] if s["nu"] is not None else a if s["nesterov"] else 1.0
        if s["rule"] == "damp" and self.bands is not None:
            nu = self.nu
        if s["base"] == "maxfactor":
            update, self.factors = maxfactor_direction(grad, self.factors, self.t)
            self.m = a * self.m + (1 - a) * update
            self.w = self.w - step * (nu * self.m + (1 - nu) * update)
            return self.w
        self.m = a * self.m + (1 - a) * grad
        if s["base"] == "momentum":
            self.w = self.w - s["lr"] * (nu * self.m + (1 - nu) * grad)
            return self.w
        if self.muon:
            scale = 0.2 * math.sqrt(max(self.w.shape))
            self.w = self.w - s["lr"] * scale * orthogonalised(nu * self.m + (1 - nu) * grad)
            return self.w
        self.product *= a
        self.v = s["beta2"] * self.v + (1 - s["beta2"]) * grad**2
        v_hat = self.v / (1 - s["beta2"] ** self.t)
        u = nu * self.m / (1 - self.product) + (1 - nu) * grad
        self.w = self.w - s["lr"] * u / (np.sqrt(v_hat) + s["eps"])
        return self.w


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))


def maxfactor_direction(grad, factors, t, *, decay=-0.8, gamma=0.99, eps=1e-8, d=1.0):
    """The bounded update of MaxFactor, entry by entry, and the new second moment."""
    if grad.ndim < 2:
        v = (np.zeros_like(grad) if factors is None else factors) * gamma + (1 - gamma) * grad**2
        u = grad / np.sqrt(np.maximum(v, eps**2))
        u = u / max(np.abs(u).max(), eps)
        return u / max(1, rms(u) / d), v
    g = grad.reshape(grad.shape[0], -1)
    row, col = (np.zeros(g.shape[0]), np.zeros(g.shape[1])) if factors is None else factors
    weight = t**decay
    row = (1 - weight) * row + weight * (g**2).mean(1)
    col = (1 - weight) * col + weight * (g**2).mean(0)
    u = np.zeros_like(g)
    for i in range(g.shape[0]):
        for j in range(g.shape[1]):
            variance = max(row[i], eps**2) * max(col[j], eps**2) / max(row.max(), eps**2)
            u[i, j] = g[i, j] / math.sqrt(variance)
    u = u / max(np.abs(u).max(), eps)
    update = np.sign(u) * np.abs(u).max(1, keepdims=True) / max(1, rms(u) / d)
    return update.reshape(grad.shape), (row, col)


class ReferenceMaxFactor:
    """MaxFactor for one tensor."""

    def __init__(self, w: np.ndarray, lr=0.025, weight_decay=0.01, eps=(1e-8, 1e-3), d=1.0, decay=-0.8, gamma=0.99):
        self.w, self.factors, self.t = w.astype(np.float64), None, 0
        self.lr, self.weight_decay, self.eps, self.d, self.decay, self.gamma = lr, weight_decay, eps, d, decay, gamma

    def step(self, grad: np.ndarray) -> np.ndarray:
        self.t += 1
        step = max(self.eps[1], rms(self.w)) * min(self.lr, 1 / math.sqrt(self.t))
        update, self.factors = maxfactor_direction(
            grad.astype(np.float64), self.factors, self.t, decay=self.decay, gamma=self.gamma, eps=self.eps[0], d=self.d
        )
        self.w = self.w * (1 - self.lr * self.weight_decay) - step * update
        return self.w


def low_rank_gradients(shape: tuple[int, ...], steps: int, frequency: float, seed: int = 0, noise: float = 0.05):
    """Gradients of one frequency along the trailing index (1 is Nyquist), rank 1 plus a little noise."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        size = int(np.prod(shape))
        rows = shape[0] if len(shape) > 1 else 1
        columns = size // max(1, rows)
        wave = np.cos(np.pi * frequency * np.arange(columns) + rng.uniform(0, 1))
        grad = np.outer(rng.standard_normal(rows), wave).reshape(shape)
        yield (grad + noise * rng.standard_normal(shape)).astype(np.float32)
