"""Speech by the command line: fit, test, fragments of the text experiment, and transcribe what was fitted."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from cubelet.cli.main import main

pytestmark = pytest.mark.slow
VARIANTS = yaml.safe_load(Path("experiments/speech.yaml").read_text())["variants"]


@pytest.fixture
def arguments(tmp_path, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "speech"
    return [
        "--config=configs/speech.yaml",
        "--data.utterances=40",
        "--data.held_out=8",
        "--data.batch_seconds=8",
        f"--data.cache_dir={cache}",
        "--model.dims=32",
        "--model.encoder_layers=1",
        "--model.decoder_layers=1",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        f"--trainer.default_root_dir={tmp_path / 'runs'}",
    ]


def test_a_fitted_model_is_tested_on_both_splits_and_transcribes(arguments, tmp_path, capsys):
    fragments = ["--config=configs/rotary/combined.yaml", "--config=configs/attention/hybrid.yaml"]
    main(["fit", *arguments, *fragments, "--trainer.max_steps=3", "--trainer.val_check_interval=2"])
    shown = capsys.readouterr().out
    assert re.search(r"word error rate +\d+\.\d %", shown)
    assert "cubelet transcribe FILES --ckpt_path" in shown
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/checkpoints"))
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows if row["train_ctc"]] == [0, 1, 2]
    checkpoint = folder / "checkpoints" / "last.ckpt"
    main(["test", *arguments, f"--ckpt_path={checkpoint}"])
    shown = capsys.readouterr().out
    assert {"test_texts_wer", "test_voices_wer", "test_voices_ctc_cer"} <= set(re.findall(r"test_\w+", shown))
    sound = tmp_path / "silence.wav"
    soundfile.write(sound, np.zeros(16_000), 16_000)
    main(["transcribe", str(sound), f"--ckpt_path={checkpoint}", "--format=jsonl"])
    assert '"seconds": 1.0' in capsys.readouterr().out


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_the_experiment_trains(name, arguments, tmp_path):
    items = [f"--config={item}" if item.endswith(".yaml") else f"--{item}" for item in VARIANTS[name]]
    short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--callbacks.progress=null"]
    main(["fit", *arguments, *items, *short, "--trainer.enable_progress_bar=false"])
    assert len(list((tmp_path / "runs").glob("*/checkpoints/last.ckpt"))) == 1
