"""Arguments of `fit`, `validate`, `test` and `predict` as the parser gets them, checked before torch is imported."""

from collections.abc import Sequence
from typing import Any

from .config_files import config_values, last_value, read_configs, resolve_configs, with_base
from .option_checks import Configs, check_options
from .suggestions import expand_names

ROOT = "runs"  # default of trainer.default_root_dir


def prepare_arguments(command: str, arguments: Sequence[str]) -> tuple[list[str], Configs]:
    """Return the arguments with full paths and names and with the base of fragments, and the configurations' contents.

    Raises:
        UserError: a file, key, option or component that there is not.
    """
    arguments = resolve_configs(arguments)
    configs = read_configs(arguments)
    arguments = with_base(arguments, configs)
    configs = read_configs(arguments)
    check_options(command, arguments, configs)
    return expand_names(arguments), configs


def takes_runs_config(command: str, arguments: Sequence[str]) -> bool:
    """Return whether the configuration is that of the checkpoint's run: none is given, and a checkpoint is used."""
    has_checkpoint = command != "fit" or last_value("ckpt_path", arguments, []) is not None
    return has_checkpoint and not list(config_values(arguments))


def with_run(command: str, arguments: Sequence[str]) -> list[str]:
    """Return `arguments` with the checkpoint that they mean, and its run's configuration where they name none.

    `validate`, `test` and `predict` take the newest checkpoint where none is named: an untrained network is never
    what was meant.

    Raises:
        MissingFileError: there is no such checkpoint.
    """
    from .run import resolve_checkpoint  # they import torch
    from .run_start import config_beside

    arguments = list(arguments)
    configs = read_configs(arguments)
    given = last_value("ckpt_path", arguments, configs)
    if command == "fit" and (configs or given is None):
        return arguments
    given = "last" if given in (None, "null") else given
    root: Any = option_value("trainer.default_root_dir", arguments)
    for _, content in configs if root is None else ():
        root = (content.get("trainer") or {}).get("default_root_dir", root)
    found = resolve_checkpoint(str(given), root or ROOT)
    if found is None:  # a word that the Trainer understands
        return arguments
    arguments.append(f"--ckpt_path={found}")
    config = config_beside(found)
    if config is not None and not configs:
        arguments.insert(0, f"--config={config}")
    return arguments


def option_value(name: str, arguments: Sequence[str]) -> str | None:
    """Return what `--NAME=VALUE` or `--NAME VALUE` last says, or None."""
    return last_value(name, arguments, [])
