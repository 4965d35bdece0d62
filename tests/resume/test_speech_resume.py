"""Speech: a run that was killed and resumed ends bit for bit as the one that ran through; two ranks measure as one."""

import csv
import json
import os
import subprocess
import sys

import lightning as L
import pytest

from cubelet.datamodules import SpeechDataModule
from cubelet.lightning_modules import SpeechRecognizer
from tests.resume.test_resume import ROOT, assert_same_end, run_of, said

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    command = [sys.executable, "-m", "tests.reference.interrupted_speech", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_a_killed_run_ends_as_the_one_that_ran_through(folder):
    ends = json.loads((folder / "ends.json").read_text())
    assert ends["killed"] == [-9, 0], said(folder, "killed")[-3000:]
    assert_same_end(folder, "killed", "plain")


def test_two_ranks_train_and_measure_the_whole_split_as_one(folder):
    ends = json.loads((folder / "ends.json").read_text())
    assert ends["two ranks"] == [0], said(folder, "two ranks")[-3000:]
    checkpoint = run_of(folder, "two ranks") / "checkpoints" / "last.ckpt"
    model = SpeechRecognizer.load_from_checkpoint(checkpoint)
    data = SpeechDataModule(utterances=40, held_out=8, batch_seconds=8.0, cache_dir=str(folder / "cache"))
    one = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (measured,) = one.validate(model, data, verbose=False)
    rows = list(csv.DictReader((run_of(folder, "two ranks") / "metrics.csv").open()))
    logged = [row for row in rows if row["val_wer"]][-1]
    assert int(logged["step"]) == 11
    for name in ("val_loss", "val_wer", "val_cer", "val_ctc_cer", "val_attention_wer"):
        assert float(logged[name]) == pytest.approx(measured[name], rel=1e-4), name
