"""Another data class with a configuration made for the default one."""

import sys

import pytest
import torch

from cubelet.cli.config_files import read_configs
from cubelet.cli.data_options import set_aside
from cubelet.cli.main import main
from cubelet.lightning_modules import LanguageModel

CODE = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader


class Rows(LightningDataModule):
    def __init__(self, vocab_size: int = 11, batch_size: int = 2):
        super().__init__()
        self.vocab_size, self.batch_size = vocab_size, batch_size

    def train_dataloader(self):
        rows = [{"tokens": torch.arange(8) % 11, "targets": torch.arange(1, 9) % 11}] * 8
        return DataLoader(rows, self.batch_size)

    val_dataloader = train_dataloader


class Nameless(Rows):
    def __init__(self, batch_size: int = 2):
        super().__init__()
        del self.vocab_size
"""


@pytest.fixture
def fit(tmp_path, monkeypatch):
    (tmp_path / "own_rows.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)

    def run(kind, *more):
        main([
            "fit", "--config=text", f"--data_class=own_rows.{kind}", "--model.dims=16", "--model.layers=1",
            f"--trainer.default_root_dir={tmp_path}/runs", "--trainer.max_steps=2", "--trainer.val_check_interval=2",
            "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--callbacks.samples=null",
            "--callbacks.rotation=null", *more,
        ])  # fmt: skip

    yield run
    sys.modules.pop("own_rows", None)


def test_options_of_the_other_class_are_set_aside_with_a_note(fit, caplog, capsys):
    fit("Rows", "--data.batch_size=4")
    assert "finished at step 2" in capsys.readouterr().out
    (note,) = [message for message in caplog.messages if "set aside" in message]
    assert "data.corpus, data.tokenizer, data.context_length" in note
    assert "are options of TextDataModule; Rows has none" in note


def test_an_option_that_the_user_gives_is_never_set_aside(fit, capsys):
    with pytest.raises(SystemExit) as end:
        fit("Rows", "--data.corpus=shakespeare")
    assert end.value.code == 2
    assert "corpus" in capsys.readouterr().err


def test_a_class_without_a_vocabulary_is_told_in_one_sentence(fit, capsys):
    with pytest.raises(SystemExit) as end:
        fit("Nameless")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "Nameless has no vocab_size: a data class for a language model says its number of tokens" in error
    assert "Traceback" not in error


def test_batches_of_another_kind_are_told_by_their_keys():
    model = LanguageModel(9, dims=8, layers=1, heads=1)
    with pytest.raises(ValueError, match=r"a mapping with tokens and targets, .* this one is \['x'\]"):
        model.loss({"x": torch.zeros(1)})


def test_a_configuration_for_the_class_itself_is_left_alone(tmp_path):
    class Rows:
        def __init__(self, vocab_size):
            pass

    path = tmp_path / "own.yaml"
    path.write_text("data_class: anywhere.Rows\ndata: {wrong: 1}\n")
    arguments = [f"--config={path}"]
    assert set_aside(arguments, read_configs(arguments), Rows, "cubelet.datamodules.TextDataModule") == arguments
