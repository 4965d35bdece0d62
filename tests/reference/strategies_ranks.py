"""What each of two processes runs for tests/strategies: the whole matrix, so that start-up is paid once.

`python -m tests.reference.strategies_ranks FOLDER`, with the ranks' environment set by the launcher.
"""

import functools
import logging
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from cubelet.callbacks import DynamicBase, FAMMonitor, NonFiniteGuard, ParameterCycler, RotationMonitor, StepSeed
from cubelet.callbacks.last_checkpoint import LastCheckpoint
from cubelet.datamodules import TextDataModule
from cubelet.lightning_modules import LanguageModel
from cubelet.lightning_modules.sharding import FullyShard
from cubelet.models.attention import CoPEAttention, ForgettingAttention
from cubelet.models.rotary import CombinedRotary, LearnedBaseRoPE, LieRERotary, MixedRotary
from cubelet.optimizers import FAM

WORDS = "the quick brown fox jumps over the lazy dog and runs away from every noisy cat\n"
adamw = functools.partial(torch.optim.AdamW, lr=1e-3, eps=1e-5)
fam = functools.partial(FAM, lr=1e-3, base="adamw", eps=1e-5, start_step=4, analyse_every=2, min_size=16)
# name: (strategy, trainer's arguments, model's arguments); two ranks with 4 rows equal one process with 8.
MATRIX: dict[str, tuple[dict[str, Any] | None, dict[str, Any], dict[str, Any]]] = {
    "ddp": ({}, {}, {}),
    "ddp, FAM": ({}, {}, {"optimizer": fam}),
    "static graph": ({"static_graph": True}, {}, {}),
    "bucket views": ({"gradient_as_bucket_view": True}, {}, {}),
    "accumulation": ({"gradient_as_bucket_view": True}, {"accumulate_grad_batches": 2}, {}),
    "clipping": ({}, {"gradient_clip_val": 0.05}, {}),
    "bf16": ({}, {"precision": "bf16-mixed"}, {}),
    "compile": ({}, {}, {"compile": True, "layers": 1}),
    "ddp, LieRE and forgetting": (
        {},
        {},
        {"rotary": functools.partial(LieRERotary, axes=1, block=4), "attention": ForgettingAttention},
    ),
    "ddp, mixed and CoPE": (
        {},
        {},
        {
            "rotary": functools.partial(MixedRotary, axes=1),
            "attention": functools.partial(CoPEAttention, positions=6),
        },
    ),
    "fsdp2": (None, {}, {}),
    "fsdp2, learned base and forgetting": (None, {}, {"rotary": LearnedBaseRoPE, "attention": ForgettingAttention}),
    "fsdp2, accumulation and clipping": (None, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}, {}),
    "fsdp2, FAM": (None, {}, {"optimizer": fam}),
}
STEPS = 8


def data(folder: Path, batch_size: int, **arguments: Any) -> TextDataModule:
    file = folder / "words.txt"
    return TextDataModule(str(file), context_length=16, batch_size=batch_size, cache_dir=str(folder / "c"), **arguments)


def model(vocab_size: int, **arguments: Any) -> LanguageModel:
    """Away from its initial values, where rotaries hardly learn: the same in every process."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"dims": 16, "layers": 2, "heads": 2, "optimizer": adamw, "rotary": CombinedRotary}
    module = LanguageModel(vocab_size, **settings | arguments)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def fit(
    folder: Path, batch_size: int, own: dict[str, Any], callbacks: Any = (), ckpt_path: Any = None, **settings: Any
):
    """A run of STEPS steps on the CPU; the module and its trainer."""
    text = data(folder, batch_size)
    module = model(text.vocab_size, **own)
    usual = {
        "accelerator": "cpu", "devices": 1, "max_steps": STEPS, "limit_val_batches": 0, "logger": False,
        "enable_checkpointing": bool(callbacks), "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": folder,
    }  # fmt: skip
    trainer = L.Trainer(**usual | settings, callbacks=[StepSeed(0), *callbacks])
    trainer.fit(module, text, ckpt_path=ckpt_path, weights_only=True)
    return module, trainer


def weights(module: Any) -> dict[str, Any]:
    """Whole tensors on every rank, sharded or not."""
    if module.device_mesh:
        return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
    return {name: value.clone() for name, value in module.state_dict().items()}


def strategy(options: dict[str, Any] | None) -> Any:
    if options is None:
        return FullyShard(process_group_backend="gloo")
    return DDPStrategy(process_group_backend="gloo", broadcast_buffers=False, **options)


def matrix(folder: Path) -> dict[str, Any]:
    result = {}
    for name, (options, settings, own) in MATRIX.items():
        try:
            module, _ = fit(folder, 4, own, devices=2, strategy=strategy(options), **settings)
            result[name] = weights(module)
        except Exception:
            result[name] = traceback.format_exc()
    return result


def steering() -> list[Any]:
    return [
        ParameterCycler(["*.rotary.*"], every_n_steps=1, order="random"),
        DynamicBase(mode="previous", every_n_steps=1),
        FAMMonitor(every_n_steps=5),
        RotationMonitor(every_n_steps=5),
        NonFiniteGuard(),
    ]


def fifty_steps(folder: Path, options: dict[str, Any] | None) -> dict[str, Any]:
    callbacks = steering()
    try:
        module, _ = fit(
            folder, 4, {"optimizer": fam, "dropout": 0.2}, callbacks, devices=2, max_steps=50,
            strategy=strategy(options), enable_checkpointing=False,
        )  # fmt: skip
    except Exception:
        return {"error": traceback.format_exc()}
    whole = weights(module)
    return {
        "weights": {k: whole[k] for k in sorted(whole)},
        "states": [callback.state_dict() for callback in callbacks],
    }


def sharded_resume(folder: Path) -> dict[str, Any]:
    """Fully sharded: 8 steps at once, and 5 steps, a checkpoint, 3 steps."""
    result = {}
    own = {"optimizer": fam, "dropout": 0.2}
    try:
        for name, steps in (("whole", STEPS), ("first", 5), ("resumed", STEPS)):
            last = LastCheckpoint(dirpath=str(folder / name))
            path = str(folder / "first/last.ckpt") if name == "resumed" else None
            module, _ = fit(
                folder, 4, own, [*steering(), last], path, devices=2, strategy=strategy(None), max_steps=steps
            )
            result[name] = weights(module)
    except Exception:
        result["error"] = traceback.format_exc()
    return result


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    result = {
        "fifty": fifty_steps(folder, {}),
        "fifty sharded": fifty_steps(folder, None),
        "sharded resume": sharded_resume(folder),
        "matrix": matrix(folder),
    }
    torch.save(result, folder / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
