"""The components of docs/components.md, run as they stand there."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cubelet import testing
from cubelet.cli.main import main
from cubelet.models.attention import MultiHeadAttention
from cubelet.models.blocks import ResidualBlock
from cubelet.models.decoder import Decoder

PAGE = Path(__file__).parents[2] / "docs" / "components.md"
CODE = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
YAML = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text("\n\n".join(CODE))
    sys.path.insert(0, str(folder))
    yield importlib.import_module("mine")
    sys.path.remove(str(folder))
    del sys.modules["mine"]


def test_each_is_complete_in_under_forty_lines():
    assert len(CODE) == 5
    assert all(len(code.splitlines()) < 40 for code in CODE)


@pytest.mark.parametrize("check", testing.ROTARY_CHECKS, ids=lambda check: check.__name__)
def test_the_rotary_holds(mine, check):
    check(lambda: mine.PowerRotary(24, 2))


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", ["attention", "block"])
def test_attention_and_block_hold(mine, check, kind):
    def block():
        return mine.ParallelBlock(32, 4, attention=mine.SharpenedAttention, rotary=mine.PowerRotary)

    if kind == "block" and check is testing.check_fully_masked:
        check(block, zeros=False)
    else:
        check(block if kind == "block" else lambda: mine.SharpenedAttention(32, 4))


def test_all_of_them_train_from_the_command_line(mine, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text(YAML[0])
    main([
        "fit", "--config=text", f"--config={tmp_path / 'mine.yaml'}", "--model.dims=32", "--model.layers=1",
        f"--trainer.default_root_dir={tmp_path / 'runs'}", "--run_name=all", "--trainer.max_steps=30",
        "--trainer.val_check_interval=30", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--model.dropout=0.1", "--callbacks.span.every_n_steps=5", "--callbacks.span.mode=previous",
        "--callbacks.samples=null", "--callbacks.fam=null",
    ])  # fmt: skip
    state = torch.load(tmp_path / "runs/all/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 30
    (moved,) = [value for key, value in state["callbacks"].items() if key.startswith("DropoutController")]
    assert any(value != 0.1 for value in moved["values"].values())
    assert state["hyper_parameters"]["block"]["class_path"] == "mine.ParallelBlock"
    assert "finished at step 30" in capsys.readouterr().out


class NoMixing(nn.Module):
    head_dim, position_axes, is_relative, base_version = 8, 1, True, 0

    def __init__(self, dims, heads):
        super().__init__()

    def apply_positions(self, x, positions=None):
        return x

    apply_key_positions = apply_positions

    def penalty(self):
        return torch.zeros(())


class NoCache(nn.Module):
    def __init__(self, dims, heads, **options):
        super().__init__()

    def zero_output(self):
        pass

    penalty = NoMixing.penalty


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: MultiHeadAttention(32, 4, rotary=NoMixing(32, 4)), "NoMixing is no rotary: it has no `mixing`"),
        (lambda: Decoder(9, 32, 1, 4, rotary=NoMixing), "NoMixing is no rotary: it has no `mixing`"),
        (lambda: ResidualBlock(32, 4, attention=NoCache), "NoCache is no attention: it has no `new_cache`"),
        (lambda: Decoder(9, 32, 1, 4, block=NoCache), "NoCache is no block: it has no `new_cache`"),
        (lambda: Decoder(9, 32, 1, 4, rotary=lambda d, h: nn.Linear(d, d)), r"Linear is no rotary: .*\(nor `apply_"),
    ],
)
def test_a_component_that_lacks_part_of_the_contract_is_refused_when_it_is_built_in(build, words):
    with pytest.raises(TypeError, match=words):
        build()
