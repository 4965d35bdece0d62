"""The callbacks, attached unmodified to other people's Lightning projects: what each of them did, not only that it ran.

    python -m tests.stress.third_parties [NAME …]        # of PROJECTS; a project that is not installed is named

In an environment of its own: pip install chemprop pytorch-forecasting pytorch-tabular gluonts darts neuralforecast
scvi-tools. On each project: ParameterCycler let at most one weight learn in each step, a LossCallback
saw every step's finite loss, NonFiniteGuard skipped none, RunSummary spoke, and DynamicBase, with
nothing to act on, said so once.
"""

# pyright: reportMissingImports=false
import contextlib
import io
import math
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from cubelet.callbacks import DynamicBase, LossCallback, NonFiniteGuard, ParameterCycler, RunSummary, StepSeed

STEPS = 6
QUIET = {
    "max_steps": STEPS, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "enable_checkpointing": False, "limit_val_batches": 0, "num_sanity_val_steps": 0,
}  # fmt: skip


USED: list[Any] = []  # callbacks of the last fit


class Losses(LossCallback):
    """Keeps every step's loss."""

    def __init__(self) -> None:
        super().__init__(every_n_steps=1, average="step", strict=False)
        self.seen: list[float] = []

    def acts(self) -> bool:
        return True

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        USED[:] = trainer.callbacks  # some projects train copies of what they are given

    def on_loss(self, trainer: Any, module: Any, loss: float | None) -> None:
        self.seen.append(math.nan if loss is None else loss)


class Moves(LossCallback):
    """Notes which members of the cycle moved in each step."""

    def __init__(self, cycler: ParameterCycler) -> None:
        super().__init__(every_n_steps=1, average="step", strict=False)
        self.cycler, self.moved, self.before = cycler, [], {}

    def acts(self) -> bool:
        return True

    def weights(self, module: Any) -> dict[str, torch.Tensor]:
        members = {m.name: m.parameters for cycle in self.cycler._cycles for m in cycle.members}
        return {name: torch.cat([p.detach().flatten().clone() for p in group]) for name, group in members.items()}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self.before = self.weights(pl_module)

    def on_loss(self, trainer: Any, module: Any, loss: float | None) -> None:
        now = self.weights(module)
        self.moved.append([name for name in now if not torch.equal(now[name], self.before[name])])
        self.before = now


def series(length: int = 120) -> np.ndarray:
    return np.sin(np.arange(length) / 5) + 0.1 * np.random.default_rng(0).normal(size=length)


def lightning_demo(callbacks: list[Any]) -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.demos.boring_classes import BoringModel

    pl.Trainer(callbacks=callbacks, **QUIET).fit(BoringModel())


def old_lightning_demo(callbacks: list[Any]) -> None:
    import pytorch_lightning as pl
    from pytorch_lightning.demos.boring_classes import ManualOptimBoringModel

    pl.Trainer(callbacks=callbacks, **QUIET).fit(ManualOptimBoringModel())


def gluonts(callbacks: list[Any]) -> None:
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import SimpleFeedForwardEstimator

    data = ListDataset([{"start": pd.Period("2020-01-01", "D"), "target": series()}], freq="D")
    options = {key: value for key, value in QUIET.items() if key != "enable_checkpointing"}
    options |= {"callbacks": callbacks, "max_epochs": 99}
    SimpleFeedForwardEstimator(
        prediction_length=5, context_length=20, batch_size=8, num_batches_per_epoch=STEPS, trainer_kwargs=options
    ).train(data)


def darts(callbacks: list[Any]) -> None:
    from darts import TimeSeries
    from darts.models import NBEATSModel

    model = NBEATSModel(
        input_chunk_length=12, output_chunk_length=4, n_epochs=9, num_stacks=2, num_blocks=1, layer_widths=16,
        batch_size=16, pl_trainer_kwargs={"callbacks": callbacks, "accelerator": "cpu", "max_steps": STEPS,
                                          "enable_progress_bar": False, "enable_model_summary": False},
    )  # fmt: skip
    model.fit(TimeSeries.from_values(series().astype(np.float32)))


def pytorch_forecasting(callbacks: list[Any]) -> None:
    import lightning.pytorch as pl
    from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet

    frame = pd.DataFrame({"y": series(), "t": np.arange(120), "g": "a"})
    data = TimeSeriesDataSet(
        frame, time_idx="t", target="y", group_ids=["g"], max_encoder_length=12, max_prediction_length=4,
        time_varying_unknown_reals=["y"],
    )  # fmt: skip
    model = TemporalFusionTransformer.from_dataset(data, hidden_size=8, attention_head_size=2, log_interval=0)
    pl.Trainer(callbacks=callbacks, **QUIET).fit(model, data.to_dataloader(train=True, batch_size=8))


def pytorch_tabular(callbacks: list[Any]) -> None:
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import CategoryEmbeddingModelConfig

    draw = np.random.default_rng(0).normal(size=(200, 3))
    frame = pd.DataFrame(draw, columns=["a", "b", "y"])
    model = TabularModel(
        data_config=DataConfig(target=["y"], continuous_cols=["a", "b"]),
        model_config=CategoryEmbeddingModelConfig(task="regression", layers="16-8"),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            max_epochs=1, batch_size=20, accelerator="cpu", progress_bar="none", checkpoints=None, load_best=False,
            early_stopping=None, trainer_kwargs={"max_steps": STEPS, "enable_model_summary": False},
        ),
    )  # fmt: skip
    model.fit(train=frame, callbacks=callbacks)


def chemprop(callbacks: list[Any]) -> None:
    import lightning.pytorch as pl
    from chemprop import data, models, nn

    smiles = ["CCO", "CCN", "CCC", "c1ccccc1", "CC(=O)O", "CCCl"] * 8
    points = [data.MoleculeDatapoint.from_smi(s, [float(len(s))]) for s in smiles]
    loader = data.build_dataloader(data.MoleculeDataset(points), batch_size=8, num_workers=0)
    model = models.MPNN(nn.BondMessagePassing(d_h=16), nn.MeanAggregation(), nn.RegressionFFN(input_dim=16))
    pl.Trainer(callbacks=callbacks, **QUIET).fit(model, loader)


def neuralforecast(callbacks: list[Any]) -> None:
    from neuralforecast import NeuralForecast
    from neuralforecast.models import NHITS

    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2020", periods=120), "y": series()})
    options = {k: v for k, v in QUIET.items() if k not in ("max_steps", "limit_val_batches", "num_sanity_val_steps")}
    model = NHITS(h=4, input_size=12, max_steps=STEPS, mlp_units=3 * [[16, 16]], callbacks=callbacks, **options)
    NeuralForecast(models=[model], freq="D").fit(frame)


def scvi(callbacks: list[Any]) -> None:
    import anndata
    from scvi.model import SCVI

    counts = np.random.default_rng(0).poisson(2.0, size=(96, 30)).astype(np.float32)
    data = anndata.AnnData(counts)
    SCVI.setup_anndata(data)
    SCVI(data, n_hidden=16, n_latent=4).train(
        max_steps=STEPS, max_epochs=9, batch_size=16, accelerator="cpu", callbacks=callbacks, train_size=1.0,
        enable_progress_bar=False, logger=False,
    )  # fmt: skip


PROJECTS: dict[str, Callable[[list[Any]], None]] = {
    project.__name__: project
    for project in (
        lightning_demo, old_lightning_demo, gluonts, darts, pytorch_forecasting, pytorch_tabular, chemprop,
        neuralforecast, scvi,
    )
}  # fmt: skip


def check(project: Callable[[list[Any]], None]) -> list[str]:
    """Train a project with the callbacks attached; return what they did not do."""
    cycler = ParameterCycler("weight")
    losses, moves, guard, seed, base = Losses(), Moves(cycler), NonFiniteGuard(), StepSeed(3), DynamicBase()
    output = io.StringIO()
    with warnings.catch_warnings(record=True) as said, contextlib.redirect_stdout(output):
        warnings.simplefilter("always")
        state = torch.random.get_rng_state()
        project([cycler, losses, moves, guard, seed, base, RunSummary()])
        torch.random.set_rng_state(state)
    by_class = {type(callback): callback for callback in USED}
    cycler, losses, moves, guard = (by_class[kind] for kind in (ParameterCycler, Losses, Moves, NonFiniteGuard))
    idle = [str(w.message) for w in said if " is idle: " in str(w.message)]
    steps = sum(cycler.state_dict()["steps"])
    wrong = []
    if len(losses.seen) != STEPS or not all(map(math.isfinite, losses.seen)):
        wrong.append(f"losses of {len(losses.seen)} steps: {losses.seen}")
    if steps != STEPS:
        wrong.append(f"the cycler counted {steps} steps")
    several = [names for names in moves.moved if len(names) > 1]
    if several or not any(moves.moved):
        wrong.append(f"more than one member moved in a step: {moves.moved}")
    if guard.state_dict() != {"skipped": 0, "in_a_row": 0}:
        wrong.append(f"the guard skipped: {guard.state_dict()}")
    if [text.split(" is idle")[0] for text in idle] != ["DynamicBase"]:
        wrong.append(f"idle: {idle}")
    if "finished at step" not in output.getvalue():
        wrong.append("no summary")
    return wrong


def main(names: list[str]) -> int:
    failures = 0
    for name in names or list(PROJECTS):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            try:
                wrong = check(PROJECTS[name])
            except ModuleNotFoundError as error:
                sys.stdout.write(f"{name}: not installed ({error.name})\n")
                continue
            except Exception:
                wrong = [traceback.format_exc(limit=-4)]
        failures += bool(wrong)
        sys.stdout.write(f"{name}: {'; '.join(wrong) or 'every callback did its work'}\n")
        sys.stdout.flush()
    return failures


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
