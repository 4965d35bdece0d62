"""What each of two processes runs for tests/callbacks/test_distributed.py.

`python -m tests.reference.callbacks_ranks FOLDER`, with the ranks' environment set by the launcher. Every scenario
stores what its rank ended with in FOLDER.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from cubelet.callbacks import (
    DynamicBase,
    FAMMonitor,
    NonFiniteGuard,
    NonFiniteLoss,
    ParameterCycler,
    RotationMonitor,
    SpanRefinement,
    TextSamples,
    WindowController,
)
from cubelet.models.rotary import CombinedRotary
from cubelet.optimizers import FAM, parameter_groups
from tests.reference.callbacks import MemoryLogger, Rows, Small, train

MEMBERS = ["layer.weight", "layer.bias", "head.weight", "head.bias"]


class Everything(Small):
    """Offers a base, a window and R, writes text, and learns with FAM."""

    window = 64

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.rotary.mixing = lambda: self.head.weight.new_ones(2, 2).tril()

    def set_window(self, window: int) -> None:
        self.window = window

    def refine(self, loss: float) -> float:
        self.heard = loss
        return loss

    def sample_text(self, prompt: str, max_new_tokens: int, **arguments: Any) -> str:
        return prompt

    def configure_optimizers(self) -> Any:
        return FAM(parameter_groups(self, lr=0.02), start_step=5, min_size=16, analyse_every=2)


class PoisonedOnOneRank(Small):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        bad = self.trainer.global_rank == 1 and self.trainer.global_step == 3
        return loss * float("nan") if bad else loss


class InOrder(Small):
    """Rank r gets rows r, r + 2, …, so that both ranks' batches of 4 are one process's batch of 8."""

    def train_dataloader(self):
        sampler = torch.utils.data.DistributedSampler(Rows(64), num_replicas=2, rank=self.global_rank, shuffle=False)
        return torch.utils.data.DataLoader(Rows(64), batch_size=4, sampler=sampler)


def ddp(**arguments: Any) -> dict[str, Any]:
    return {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo", **arguments)}


def weights(module: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def adamw(parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def all_callbacks(folder: Path) -> dict[str, Any]:
    callbacks = [
        ParameterCycler(MEMBERS, order="random"), DynamicBase(mode="previous", every_n_steps=1),
        FAMMonitor(every_n_steps=5), RotationMonitor(every_n_steps=5), TextSamples("x"), NonFiniteGuard(),
        WindowController(mode="previous", every_n_steps=2, multiple_of=1),
        SpanRefinement(every_n_steps=5),
    ]  # fmt: skip
    module = Everything()
    logger = MemoryLogger(folder / "logs")
    train(
        module, callbacks, 50, logger=logger, limit_val_batches=1, check_val_every_n_epoch=2,
        **ddp(broadcast_buffers=False),
    )  # fmt: skip
    own = {"weights": weights(module), "window": module.window, "heard": module.heard, "rows": len(logger.rows)}
    return own | {"states": [callback.state_dict() for callback in callbacks]}


def cyclers() -> dict[str, Any]:
    result = {}
    # torch itself breaks on a static graph with accumulation (no_sync before the graph is known), hence 1 there
    for name, mode, accumulate, arguments in (
        ("static", "grad", 1, {"static_graph": True, "gradient_as_bucket_view": True}),
        ("views", "grad", 1, {"gradient_as_bucket_view": True}),
        ("accumulated", "grad", 2, {"gradient_as_bucket_view": True}),
        ("frozen", "requires_grad", 2, {"find_unused_parameters": True}),
    ):
        module = Small(adamw)
        train(module, [ParameterCycler(MEMBERS, mode=mode)], 10, accumulate_grad_batches=accumulate, **ddp(**arguments))
        result[name] = weights(module)
    for name, arguments in (("plain", {}), ("static graph", {"static_graph": True})):
        try:
            train(Small(adamw), [ParameterCycler(MEMBERS, mode="requires_grad")], 2, **ddp(**arguments))
        except RuntimeError as error:
            result[f"refused {name}"] = str(error)
    return result


def base_over_ranks() -> dict[str, Any]:
    module = InOrder()
    callback = DynamicBase(mode="previous", every_n_steps=1, factor=1.1)
    train(module, [callback], 8, use_distributed_sampler=False, **ddp())
    return {"weights": weights(module), "state": callback.state_dict()}


class Valley(InOrder):
    """Its loss depends on the base, and each rank's batch has a slope of its own."""

    def loss(self, batch: Any) -> torch.Tensor:
        base = self.rotary.base.log()
        return batch[:, 0].mean() * base + 0.02 * (base - 6.0) ** 2


def probe_over_ranks() -> dict[str, Any]:
    module = Valley()
    callback = DynamicBase(mode="probe", every_n_steps=2)
    train(module, [callback], 8, use_distributed_sampler=False, **ddp())
    return {"weights": weights(module), "state": callback.state_dict()}


def guards() -> dict[str, Any]:
    result = {}
    for action, interval in (("stop", 1), ("stop", 6), ("skip", 1)):
        module = PoisonedOnOneRank()
        guard = NonFiniteGuard(action=action, every_n_steps=interval)
        try:
            train(module, [guard], 8, **ddp())
            result[f"{action} {interval}"] = (weights(module), guard.state_dict())
        except NonFiniteLoss as error:
            result[f"{action} {interval}"] = str(error)
    return result


class Sharded(Small):
    """FSDP2, with a rotary whose R learns."""

    def __init__(self) -> None:
        super().__init__(adamw)
        self.turning = CombinedRotary(64, 4, theta_scale=False, rotation_scale=False)
        with torch.no_grad():
            self.turning.thetas.fill_(0.3)
        self.sharded = False

    def configure_model(self) -> None:
        if self.sharded:
            return
        self.sharded = True
        for module in (self.layer, self.turning, self):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]  # the root's forward must come first
        return {"loss": loss + self.turning(batch.mean() + torch.ones(1, 3, 64)).square().mean()}


class LocalMoves(Callback):
    """Which members' local parts moved in each step."""

    def __init__(self) -> None:
        self.before, self.moved = {}, []

    def _local(self, module: Any) -> dict[str, Any]:
        return {name: module.get_parameter(name).to_local().clone() for name in MEMBERS}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.before = self._local(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
        now = self._local(pl_module)
        self.moved.append([name for name in MEMBERS if not torch.equal(now[name], self.before[name])])
        self.before = now


def sharded(folder: Path) -> dict[str, Any]:
    callbacks = [
        ParameterCycler(MEMBERS), DynamicBase(mode="previous", every_n_steps=1), RotationMonitor(every_n_steps=2),
        NonFiniteGuard(every_n_steps=1, measure_every=2),
    ]  # fmt: skip
    moves = LocalMoves()
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = train(Sharded(), [*callbacks, moves], 8, devices=2, strategy=strategy)
    trainer.save_checkpoint(folder / "sharded.ckpt")
    return {"states": [callback.state_dict() for callback in callbacks], "moved": moves.moved}


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    result = {"all": all_callbacks(folder), "cyclers": cyclers(), "base": base_over_ranks(), "guards": guards()}
    result["probe"] = probe_over_ranks()
    result["sharded"] = sharded(folder)
    rank = torch.distributed.get_rank()
    torch.save(result, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
