"""Slow, obvious references for the callbacks, and small models to attach them to."""

import math
import tempfile
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

_SCRATCH = tempfile.TemporaryDirectory(prefix="cubelet-callbacks-")


def follow(losses: list[float], mode: str, dead_zone: float = 0.005, decay: float = 0.9) -> list[int]:
    """Directions of a loss follower, each from the whole history before it."""
    directions = []
    for i, loss in enumerate(losses):
        history = [x for x in losses[:i] if math.isfinite(x)]
        if not history or not math.isfinite(loss):
            directions.append(0)
            continue
        if mode == "previous":
            reference = history[-1]
        elif mode == "best":
            reference = min(history)
        else:
            weights = [(1 - decay) * decay ** (len(history) - 1 - k) for k in range(len(history))]
            weights[0] = decay ** (len(history) - 1)
            reference = sum(w * x for w, x in zip(weights, history, strict=True))
            if abs(loss - reference) <= dead_zone * abs(reference):
                directions.append(0)
                continue
        directions.append(1 if loss < reference else -1)
    return directions


def bases(directions: list[int], start: float, factor: float, minimum: float, maximum: float) -> list[float]:
    """The base after each direction."""
    values, value = [], start
    for direction in directions:
        value = value * factor if direction > 0 else value / factor if direction < 0 else value
        value = max(minimum, min(maximum, value))
        values.append(value)
    return values


class Rotary(nn.Module):
    """Offers `base` and `set_base`, and keeps the base as float32, as a model does."""

    def __init__(self, base: float = 10_000.0) -> None:
        super().__init__()
        self.register_buffer("base", torch.tensor(base))
        self.writes = 0

    def set_base(self, base: float) -> None:
        self.base.fill_(base)
        self.writes += 1


class Rows(Dataset):
    """Row i is random numbers seeded by i."""

    def __init__(self, length: int, width: int = 32) -> None:
        self.rows = torch.randn(length, width, generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return self.rows[i]


class Small(BoringModel):
    """A two-layer net with a rotary that its forward does not use; loss and optimizer can be chosen."""

    def __init__(self, optimizer: Any = None, rows: int = 64, output: str = "dict", losses: list[float] | None = None):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(32, 8)
        self.head = nn.Linear(8, 2)
        self.rotary = Rotary()
        self.optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        self.rows, self.output, self.losses = rows, output, losses
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self(batch).square().mean()
        if self.losses is not None:  # a prescribed value, with the gradient of the real loss
            loss = loss - loss.detach() + self.losses[len(self.seen)]
        self.seen.append(float(loss.detach()))
        if self.output == "none":
            return None
        return {"loss": loss} if self.output == "dict" else loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self(batch).square().mean())

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Rows(self.rows), batch_size=4)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Rows(8), batch_size=4)


def train(module: Any, callbacks: list[Any], steps: int = 10, *, ckpt_path: Any = None, **arguments: Any) -> pl.Trainer:
    """Fit for some optimizer steps, quietly, on the CPU."""
    defaults: dict[str, Any] = {
        "max_steps": steps, "max_epochs": 1000, "logger": False, "enable_checkpointing": False, "accelerator": "cpu",
        "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0, "devices": 1,
        "default_root_dir": tempfile.mkdtemp(dir=_SCRATCH.name),
    }  # fmt: skip
    trainer = pl.Trainer(callbacks=callbacks, **(defaults | arguments))
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


class Recorder(pl.Callback):
    """Copies of all parameters before the first and after every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def _copy(self, module: Any) -> None:
        self.steps.append({name: p.detach().clone() for name, p in module.named_parameters()})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._copy(pl_module)
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._copy(pl_module)

    def moved(self, name: str) -> list[bool]:
        """Whether a parameter moved in each step, to the bit."""
        return [not torch.equal(a[name], b[name]) for a, b in zip(self.steps, self.steps[1:], strict=False)]


class MemoryLogger(pl.loggers.Logger):
    """Keeps what is logged; its experiment takes text, pictures and histograms if asked to."""

    class Experiment:
        def __init__(self) -> None:
            self.texts: list[tuple[str, str]] = []
            self.images: list[tuple[str, Any]] = []
            self.histograms: list[tuple[str, Any]] = []

        def add_text(self, tag: str, text: str, global_step: int) -> None:
            self.texts.append((tag, text))

        def add_image(self, tag: str, image: Any, global_step: int, dataformats: str) -> None:
            self.images.append((tag, image))

        def add_histogram(self, tag: str, values: Any, global_step: int) -> None:
            self.histograms.append((tag, values))

    def __init__(self, folder: Any = None, pictures: bool = True) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []
        self._experiment = self.Experiment() if pictures else None
        self._folder = str(folder) if folder else None

    name = version = ""

    @property
    def save_dir(self) -> str | None:
        return self._folder

    @property
    def experiment(self) -> Any:
        return self._experiment

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def series(self, key: str) -> list[tuple[int, float]]:
        return [(step, row[key]) for step, row in self.rows if key in row]


class FakeFAM(torch.optim.SGD):
    """Plain SGD that reports made-up spectra, which change with its step."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        return super().step(closure)

    def spectrum_summary(self) -> list[dict[str, Any]]:
        def row(name: str, handler: str, alpha: float, bands: list[float]) -> dict[str, Any]:
            rounded = torch.tensor(alpha).item()  # as read from a float32 tensor
            facts = {"name": name, "handler": handler, "alpha": rounded, "base_alpha": 0.9}
            return facts | {"bands": bands, "step": self.count}

        shift = 0.001 * self.count
        return [
            row("layer.weight", "default", 0.9 + shift, [0.5 - shift, 0.3, 0.2 + shift]),
            row("head.weight", "default", 0.9, [0.4, 0.3, 0.3]),
            row("embed.weight", "embedding", 0.95, [0.1, 0.2, 0.3, 0.4]),
        ]
