"""Draw the pictures of docs/rotary.md: python docs/images/rotary/draw.py (needs matplotlib, extra `dev`)."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch

from cubelet.models.rotary import (
    AxialRotary,
    CombinedRotary,
    LinearScaling,
    Llama3Scaling,
    NTKScaling,
    QuaternionRotary,
    RoPE,
    YaRNScaling,
)

HERE = Path(__file__).parent
mpl.use("agg")
plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False})


def save(figure, name: str) -> None:
    figure.savefig(HERE / f"{name}.png", bbox_inches="tight", dpi=85)
    plt.close(figure)


def planes() -> None:
    """What R looks like: a matching of random pairs, three matchings, and with the orthogonal matrix."""
    torch.manual_seed(1)
    kinds = {
        "K = 8, one matching": CombinedRotary(16, 1, seed=0, matrix="none"),
        "K = 24, three matchings": CombinedRotary(16, 1, seed=0, rotations=24, matrix="none"),
        "K = 8, times orthogonal M": CombinedRotary(16, 1, seed=0),
    }
    figure, axes = plt.subplots(1, 3, figsize=(8, 2.7))
    for axis, (title, rotary) in zip(axes, kinds.items(), strict=True):
        with torch.no_grad():
            rotary.thetas.uniform_(0.4, 1.2)
            image = axis.imshow(rotary.mixing(), cmap="RdBu", vmin=-1, vmax=1)
        axis.set(title=title, xticks=[], yticks=[], xlabel="output feature")
    axes[0].set_ylabel("input feature")
    figure.colorbar(image, ax=axes, shrink=0.8)
    save(figure, "planes")


def paths() -> None:
    """Where one vector goes with the position: a RoPE pair, and a group of three about its axis."""
    torch.manual_seed(3)
    positions = torch.arange(0, 240)
    figure = plt.figure(figsize=(8, 3))
    flat = figure.add_subplot(1, 2, 1)
    x = torch.tensor([1.0, 0.2]).repeat(4).expand(1, 1, 240, 8)
    y = RoPE(8, 1, base=2_000.0).rotate(x, positions)[0, 0]
    for m in range(4):
        flat.plot(positions, y[:, 2 * m], label=f"m = {m}", lw=1)
    flat.set(xlabel="position", ylabel="feature 2m", title="RoPE: every pair at its own speed")
    flat.legend(ncols=4, fontsize=7, loc="lower center")
    solid = figure.add_subplot(1, 2, 2, projection="3d")
    rotary = QuaternionRotary(6, 1, base=30.0, direction=False)
    with torch.no_grad():
        y = rotary.rotate(torch.tensor([0.9, 0.1, 0.4, 0.2, 0.9, -0.1]).expand(1, 1, 240, 6), positions)[0, 0]
        u = torch.nn.functional.normalize(rotary.axes[0], dim=-1)
    for g, colour in ((0, "C0"), (1, "C3")):
        line, point = y[:, 3 * g : 3 * g + 3].T, u[g].tolist()
        solid.plot(*line, color=colour, lw=1)
        solid.plot(*([-a, a] for a in point), color=colour, ls=":", lw=1)
    solid.set_title("QuaternionRotary: about a learned axis (dotted)")
    save(figure, "paths")


def spectra() -> None:
    """Wavelengths of the pairs, for bases and for scalings by 8."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
    m = torch.arange(64)
    for base in (100.0, 10_000.0, 500_000.0):
        axes[0].semilogy(m, 2 * torch.pi / RoPE(128, 1, base=base).frequencies(), label=f"base {base:,.0f}")
    axes[0].set(xlabel="pair m", ylabel="wavelength, positions", title="base^(−2m/c), c = 128")
    plain = RoPE(128, 1).frequencies()
    axes[1].semilogy(m, 2 * torch.pi / plain, "k", lw=2, label="none")
    for scaling in (LinearScaling(8), NTKScaling(8), YaRNScaling(8), Llama3Scaling(8, original_length=2048)):
        label = type(scaling).__name__.removesuffix("Scaling")
        axes[1].semilogy(m, 2 * torch.pi / RoPE(128, 1, scaling=scaling).frequencies(), label=label, lw=1)
    axes[1].axhline(2048, color="grey", ls=":", lw=1)
    axes[1].set(xlabel="pair m", title="context × 8 (dotted: trained length)")
    for axis in axes:
        axis.legend(fontsize=7)
    save(figure, "spectra")


def logits() -> None:
    """q·k of equal vectors as a function of distance, averaged over directions, and its spread."""
    torch.manual_seed(0)
    distance = torch.arange(0, 513)
    draws = torch.randn(64, 1, 1, 64, dtype=torch.float64)
    draws = draws / draws.norm(dim=-1, keepdim=True)
    kinds = {
        "RoPE": RoPE(64, 1),
        "RoPE, base 100": RoPE(64, 1, base=100.0),
        "QuaternionRotary": QuaternionRotary(64, 1, direction=False),
        "xPos, scale_base 128": AxialRotary(64, 1, scale_base=128.0),
    }
    figure, axis = plt.subplots(figsize=(8, 2.8))
    for label, rotary in kinds.items():
        with torch.no_grad():
            queries = rotary.rotate(draws.expand(64, 1, 513, 64), distance)
            keys = rotary.rotate_keys(draws, torch.zeros(1, dtype=torch.long))
            scores = (queries * keys).sum(-1)[:, 0]
        (line,) = axis.plot(distance, scores.mean(0), label=label, lw=1)
        axis.fill_between(
            distance,
            *torch.quantile(scores, torch.tensor([0.1, 0.9]).double(), dim=0),
            alpha=0.15,
            color=line.get_color(),
            lw=0,
        )
    axis.set(
        xlabel="distance p_q − p_k", ylabel="q·k, |q| = |k| = 1, q = k at 0", title="mean and 10–90 % over directions"
    )
    axis.legend(fontsize=7)
    save(figure, "logits")


if __name__ == "__main__":
    for picture in (planes, paths, spectra, logits):
        picture()
