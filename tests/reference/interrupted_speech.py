"""Runs of a speech model that are killed and resumed, and one of two processes; see `interrupted.py`."""

import json
import sys
from pathlib import Path

import torch

from .interrupted import DDP, Runs, attach

# 14 optimizer steps in epochs of 5 batches, a validation every 6, a checkpoint every 4; every callback of the project.
BASE = [
    "--config=configs/speech.yaml",
    "--config=configs/rotary/combined.yaml",
    "--data.utterances=40",
    "--data.held_out=8",
    "--data.batch_seconds=8",
    "--data.batches_per_epoch=5",
    "--data.no_speech=0.1",
    "--data.speed_perturbation=true",
    "--model.dims=32",
    "--model.encoder_layers=1",
    "--model.decoder_layers=1",
    "--model.dropout=0.2",
    "--model.optimizer.start_step=2",
    "--model.optimizer.analyse_every=2",
    "--model.optimizer.min_size=16",
    "--trainer.max_steps=14",
    "--trainer.val_check_interval=6",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--callbacks.progress=null",
    "--callbacks.last.every_n_steps=4",
    "--callbacks.cycler=cubelet.callbacks.ParameterCycler",
    '--callbacks.cycler.patterns=["*.rotary.*"]',
    "--callbacks.cycler.order=random",
    "--callbacks.base.every_n_steps=2",
    "--callbacks.fam.every_n_steps=4",
    "--callbacks.rotation=cubelet.callbacks.RotationMonitor",
    "--callbacks.rotation.every_n_steps=4",
]


class SpeechRuns(Runs):
    """Runs of a speech model."""

    def base(self) -> list[str]:
        return [*BASE, f"--data.cache_dir={self.folder}/cache"]


def everything(folder: Path) -> dict[str, list[int]]:
    run = SpeechRuns(folder)
    run("plain", [])
    run("killed", attach("Kill", hook="on_after_backward", count=10))
    run("killed", ["--ckpt_path=last", "--data.num_workers=1"])
    run("two ranks", [*DDP, "--trainer.max_steps=12", "--trainer.limit_val_batches=1.0"], ranks=2)
    return run.ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    (target / "ends.json").write_text(json.dumps(everything(target)))
