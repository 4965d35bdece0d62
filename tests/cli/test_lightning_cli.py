"""Options of components as the command line takes and writes them: over a file's, over the default's, in sequences."""

import pytest
import yaml

from cubelet.cli.lightning_cli import compose
from cubelet.cli.main import main
from cubelet.lightning_modules import LanguageModel

ROPE, COMBINED = "cubelet.models.rotary.RoPE", "cubelet.models.rotary.CombinedRotary"
CONV = "cubelet.models.blocks.ShortConvBlock"


@pytest.mark.parametrize(
    ("arguments", "key", "wanted"),
    [
        (["--model.rotary.matrix=none"], "rotary", {"matrix": "none"}),  # of the default experiment
        (["--config=rotary/rope", "--model.rotary.base=500"], "rotary", {"base": 500}),
        (["--config=rotary/rope", "--model.rotary.init_args.base=500"], "rotary", {"base": 500}),
        ([f"--model.rotary={COMBINED}", "--model.rotary.rotations=0", "--model.rotary.matrix=free"],
         "rotary", {"rotations": 0, "matrix": "free"}),
        (["--model.block.mlp_ratio=4.5"], "block", {"mlp_ratio": 4.5, "taps": 4}),
        ([f"--model.block={CONV}", "--model.block.taps=3"], "block", {"taps": 3}),
        (["--model.attention.qk_norm=false"], "attention", {"qk_norm": False}),
        (["--config=speech", "--model.rotary.base=500"], "rotary", {"base": 500}),
        (["--config=speech", f"--model.decoder_rotary={ROPE}", "--model.decoder_rotary.base=500"],
         "decoder_rotary", {"base": 500}),
        (["--config=speech", f"--model.decoder_block={CONV}", "--model.decoder_block.mlp_ratio=2"],
         "decoder_block", {"mlp_ratio": 2}),
    ],
)  # fmt: skip
def test_an_option_of_a_component_is_set_in_the_component(arguments, key, wanted):
    found = compose(arguments)["model"][key]
    assert {name: found["init_args"][name] for name in wanted} == wanted


def test_an_option_where_there_is_no_single_component_is_told(refused):
    for before in (["--model.rotary=null"], [f"--model.rotary=[null, {ROPE}]"]):
        told = refused("fit", *before, "--model.rotary.base=5")
        assert "model.rotary names no class whose base could be set; write --model.rotary=CLASS before it" in told
    assert "Option 'bse' is not accepted" in refused("fit", "--config=rotary/rope", "--model.rotary.bse=5")


@pytest.mark.slow
@pytest.mark.parametrize("base", [None, 500.0])
def test_a_sequence_with_null_is_saved_and_goes_on(base, small, tmp_path, monkeypatch):
    """A saved configuration has null where the command line had it, and its run resumes."""
    monkeypatch.chdir(tmp_path)
    one = ROPE if base is None else f"{{class_path: {ROPE}, init_args: {{base: {base}}}}}"
    few = ["--trainer.max_steps=2", "--model.layers=4"]
    main(["fit", "--config=text", "--config=plain", *small, f"--model.rotary=[null, {one}]", *few])
    [run] = [path for path in (tmp_path / "runs").iterdir() if path.is_dir() and not path.is_symlink()]
    saved = yaml.safe_load((run / "config.yaml").read_text())["model"]["rotary"]
    assert saved[0] is None
    assert saved[1]["class_path"] == ROPE
    main(["fit", f"--config={run / 'config.yaml'}", "--ckpt_path=last", "--trainer.max_steps=3"])
    model = LanguageModel.load_from_checkpoint(run / "checkpoints/last.ckpt")
    rotaries = [block.attention.rotary for block in model.decoder.blocks]
    assert [rotary is None for rotary in rotaries] == [True, False, True, False]
    assert rotaries[1].base == (base or 10_000.0)
