"""The command that a W&B agent makes of docs/wandb_sweep.yaml is one that `cubelet` understands."""

from pathlib import Path

import yaml

from cubelet.cli.lightning_cli import compose

PAGE = Path(__file__).parents[2] / "docs" / "wandb_sweep.yaml"


def test_an_agents_command_trains_what_the_sweep_says():
    sweep = yaml.safe_load(PAGE.read_text(encoding="utf-8"))
    chosen = {name: space.get("min") or space["values"][-1] for name, space in sweep["parameters"].items()}
    arguments = [f"--{name}={value}" for name, value in chosen.items()]
    command = [word for part in sweep["command"] for word in (arguments if part == "${args}" else [part])]
    assert command[:2] == [sweep["program"], "fit"]
    config = compose(command[2:])
    assert config.model.optimizer.init_args.lr == 0.001
    assert config.model.rotary.class_path == "cubelet.models.rotary.CombinedRotary"
    assert config.seed_everything == 2
    assert config.trainer.logger.class_path == "lightning.pytorch.loggers.WandbLogger"
