"""Log-mel frames made on the device from the wave, as Whisper's feature extractor makes them; and SpecAugment.

- Zeros stand before and after a wave, not its reflection: a frame at the end of a row must not depend on how far the
  batch pads it. Where a wave begins with silence the two agree (to 1e-5 with `WhisperFeatureExtractor`).
- The floor, 8 decades below the loudest bin, is taken from each row's own frames.
- Frames past a row's end are zeros.

Shapes: b batch, n samples, f frames, m mel bands.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cubelet.common.checks import check_at_least


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above (Auditory Toolbox, 1998)."""
    return torch.where(hertz < 1000, hertz * 3 / 200, 15 + 27 / math.log(6.4) * (hertz.clamp(min=1e-9) / 1000).log())


def mel_to_hertz(mel: Tensor) -> Tensor:
    """Inverse of `hertz_to_mel`."""
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * math.log(6.4) / 27).exp())


def mel_filters(mels: int, window: int, rate: int) -> Tensor:
    """Return triangles of equal area on Slaney's scale from 0 to rate/2: (window // 2 + 1, mels) float64."""
    cpu = {"dtype": torch.float64, "device": "cpu"}  # also where modules are built on meta
    bins = torch.linspace(0, rate / 2, window // 2 + 1, **cpu)
    ends = torch.tensor([0.0, rate / 2], **cpu)
    low, high = hertz_to_mel(ends).tolist()
    corners = mel_to_hertz(torch.linspace(low, high, mels + 2, **cpu))  # (mels + 2,)
    slopes = corners[None] - bins[:, None]  # (bins, mels + 2)
    widths = corners.diff()  # (mels + 1,)
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]  # (bins, mels)
    return torch.minimum(rising, falling).clamp(min=0) * 2 / (corners[2:] - corners[:-2])


class LogMel(nn.Module):
    """Waves to log-mel frames, one every `hop` samples.

    Args:
        mels: bands m.
        rate: samples a second.
        window: samples of a Hann window.
        hop: samples from one frame to the next.

    Raises:
        ValueError: sizes below 1.

    Example:
        >>> frames, lengths = LogMel()(torch.zeros(2, 16_000), torch.tensor([16_000, 8_000]))
        >>> frames.shape, lengths
        (torch.Size([2, 100, 80]), tensor([100,  50]))
    """

    filters: Tensor
    hann: Tensor

    def __init__(self, mels: int = 80, *, rate: int = 16_000, window: int = 400, hop: int = 160) -> None:
        super().__init__()
        for name, value in (("mels", mels), ("rate", rate), ("window", window), ("hop", hop)):
            check_at_least(name, value, 1)
        self.mels, self.rate, self.window, self.hop = mels, rate, window, hop
        self.register_buffer("filters", torch.empty(window // 2 + 1, mels), persistent=False)
        self.register_buffer("hann", torch.empty(window), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill the two tables."""
        device = self.filters.device
        self.filters.copy_(mel_filters(self.mels, self.window, self.rate).to(device))
        self.hann.copy_(torch.hann_window(self.window, dtype=torch.float64, device="cpu").to(device))

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames (b, f, m) float32 and their numbers (b,): a frame for each whole hop, and at least one.

        Args:
            waves: (b, n) float; whatever stands past a row's length is not read.
            lengths: (b,) integer, in samples.
        """
        with torch.autocast(waves.device.type, enabled=False):
            inside = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]  # (b, n)
            waves = waves.float().masked_fill(~inside, 0.0)
            half = self.window // 2
            padded = F.pad(waves, (half, half))  # (b, n + window)
            counts = (lengths // self.hop).clamp(min=1)  # (b,)
            spectrum = torch.stft(
                padded, self.window, self.hop, window=self.hann.float(), center=False, return_complex=True
            )  # (b, bins, f)
            frames = max(1, waves.shape[1] // self.hop)
            spectrum = spectrum[..., :frames].transpose(1, 2)  # (b, f, bins)
            power = spectrum.real.square() + spectrum.imag.square()  # 3 × faster than a sum over view_as_real
            bands = (power @ self.filters.float()).clamp(min=1e-10).log10()  # (b, f, m)
            outside = torch.arange(frames, device=waves.device) >= counts[:, None]  # (b, f)
            top = bands.masked_fill(outside[..., None], -10.0).amax((1, 2), keepdim=True)  # (b, 1, 1)
            return (torch.maximum(bands, top - 8) / 4 + 1).masked_fill(outside[..., None], 0.0), counts


class SpecAugment(nn.Module):
    """Bands of time and of mel set to zero, in training only (Park et al. 2019, https://arxiv.org/abs/1904.08779).

    Args:
        time_masks, time_width: number of masks, and their greatest width as a share of a row's frames.
        mel_masks, mel_width: number of masks, and their greatest width in bands.

    Raises:
        ValueError: a number below 0.

    Example:
        >>> SpecAugment().eval()(torch.ones(1, 10, 80), torch.tensor([10])).mean()
        tensor(1.)
    """

    def __init__(self, time_masks: int = 2, time_width: float = 0.1, mel_masks: int = 2, mel_width: int = 20) -> None:
        super().__init__()
        for name, value in (("time_masks", time_masks), ("time_width", time_width), ("mel_masks", mel_masks)):
            check_at_least(name, value, 0)
        check_at_least("mel_width", mel_width, 0)
        self.time_masks, self.time_width, self.mel_masks, self.mel_width = time_masks, time_width, mel_masks, mel_width

    def forward(self, frames: Tensor, counts: Tensor) -> Tensor:
        """Frames (b, f, m) with counts (b,) of real ones → the same shape; random from torch's generator."""
        if not self.training:
            return frames
        hidden = random_bands(counts.float(), frames.shape[1], self.time_masks, self.time_width * counts)[..., None]
        mels = torch.full_like(counts, frames.shape[2], dtype=torch.float32)
        widths = torch.full_like(mels, self.mel_width).minimum(mels)
        hidden = hidden | random_bands(mels, frames.shape[2], self.mel_masks, widths)[:, None]  # (b, f, m)
        return frames.masked_fill(hidden, 0.0)


def random_bands(lengths: Tensor, size: int, count: int, widths: Tensor) -> Tensor:
    """Return (b, size) bool, True inside any of `count` bands of random width and place within each row's length.

    Args:
        lengths: (b,) float, of the rows.
        size: columns.
        count: bands a row.
        widths: (b,) float, of the widest band.
    """
    draw = torch.rand(2, len(lengths), count, 1, device=lengths.device)
    width = draw[0] * widths[:, None, None]  # (b, count, 1)
    start = draw[1] * (lengths[:, None, None] - width)
    place = torch.arange(size, device=lengths.device)
    return ((place >= start) & (place < start + width)).any(1)
