"""`cubelet fit`, `validate`, `test` and `predict`: LightningCLI with five changes.

- Callbacks that belong to every run stand under keys of their own (`callbacks.cycler`, `callbacks.base`, …), so a
  second configuration changes one of them without replacing the list of the first; `trainer.callbacks` stays the
  user's.
- A run writes into one folder under `trainer.default_root_dir`, and a resumed run continues in its folder.
- Checkpoints hold plain hyper-parameters written by the model itself, not by the command line.
- `model_class` and `data_class` name what trains and on what.
- Errors are exceptions: `UserError` for what a setting causes, while the configuration is read or instantiated.
"""

import dataclasses
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cubelet.callbacks.save_config import SaveRunConfig
from cubelet.common.errors import ConfigError, DiskError, MissingFileError, UnreadableFileError
from cubelet.lightning_modules.component_config import import_object

from .arguments import ROOT, prepare_arguments, with_run
from .config_checks import check_config
from .config_files import last_value, resolve_configs
from .data_options import set_aside, vocabulary_of
from .errors import silence_writer_threads
from .fit_help import ALL, DEFAULT_CLASSES
from .instantiation import describe_failure, passes_through
from .option_checks import CALLBACK_SLOTS
from .parser import Parser
from .quiet import quiet_dependencies, warn_slow_bf16
from .run_start import RunStart


def fit(arguments: Sequence[str]) -> None:
    """Do `cubelet fit ARGUMENTS` in this process; raises what goes wrong."""
    run("fit", arguments)


def validate(arguments: Sequence[str]) -> None:
    """Do `cubelet validate ARGUMENTS`; see `fit`."""
    run("validate", arguments)


def test(arguments: Sequence[str]) -> None:
    """Do `cubelet test ARGUMENTS`; see `fit`."""
    run("test", arguments)


def predict(arguments: Sequence[str]) -> None:
    """Do `cubelet predict ARGUMENTS`; see `fit`."""
    run("predict", arguments)


def run(subcommand: str, arguments: Sequence[str]) -> None:
    """Do a subcommand of LightningCLI in this process."""
    quiet_dependencies()
    silence_writer_threads()
    start(CubeletCLI, subcommand, arguments)


def compose(arguments: Sequence[str]) -> Any:
    """Return the whole configuration of `cubelet fit ARGUMENTS` (a Namespace), without instantiating anything.

    Raises:
        UserError: what the command line says of it, in one line.
    """
    kept = sys.argv
    try:
        return start(_Composer, "fit", arguments).config["fit"]
    finally:
        sys.argv = kept


def start(command: type["CubeletCLI"], subcommand: str, arguments: Sequence[str]) -> "CubeletCLI":
    """Parse `arguments` and do what they say, by a class of command line.

    Raises:
        UserError: an option, a file or a value that cannot be.
    """
    arguments = with_run(subcommand, resolve_configs(arguments)) if command.does_it else arguments
    arguments, configs = prepare_arguments(subcommand, arguments)
    model_class = _import_class("model_class", last_value("model_class", arguments, configs), LightningModule)
    data_class = _import_class("data_class", last_value("data_class", arguments, configs), LightningDataModule)
    arguments = set_aside(arguments, configs, data_class, DEFAULT_CLASSES["data"])
    # LightningCLI parses sys.argv, and so do the processes that DDP starts by repeating this command.
    sys.argv = [sys.argv[0], subcommand, *("--help" if a == ALL else a for a in arguments)]
    return command(
        model_class,
        data_class,
        seed_everything_default=0,
        trainer_defaults={"default_root_dir": ROOT},
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"overwrite": True},
        parser_class=Parser,
        parser_kwargs={"default_env": True},  # PL_FIT__TRAINER__MAX_STEPS=9, as LightningCLI names them
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )


def _import_class(option: str, path: Any, base: type) -> Any:
    # Known before parsing, since the parser's options under `model` and `data` are the class's arguments.
    path = path or DEFAULT_CLASSES[option.removesuffix("_class")]
    try:
        found = import_object(str(path))
    except ImportError as error:
        raise ConfigError(f"{option}={path} cannot be imported: {error.__cause__ or error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{option}={path} is not a {base.__name__}; leave it out for the default")
    return found


class CubeletCLI(RunStart):
    """LightningCLI with the changes that the module's docstring lists."""

    does_it = True  # not only parses
    slots = CALLBACK_SLOTS

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in CALLBACK_SLOTS:
            parser.add_argument(f"--callbacks.{name}", type=Callback | None, default=None)
        self.add_start_arguments(parser)
        parser.add_argument("--model_class", type=str, default=DEFAULT_CLASSES["model"], help="Class of `model`.")
        parser.add_argument("--data_class", type=str, default=DEFAULT_CLASSES["data"], help="Class of `data`.")
        if "vocab_size" in inspect.signature(self._model_class).parameters:
            parser.link_arguments("data", "model.vocab_size", compute_fn=vocabulary_of, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        check_config(self.config[str(self.subcommand)])

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (MissingFileError, UnreadableFileError, DiskError):
            self.release_run()
            raise
        except Exception as error:
            self.release_run()
            raise self._config_error(error) from error

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            # An optimizer is instantiated late, when the Trainer asks for it.
            if isinstance(error, MisconfigurationException) or passes_through(error, "configure_optimizers"):
                raise self._config_error(error) from error
            raise
        finally:
            self.release_run()

    def _config_error(self, error: Exception) -> ConfigError:
        defaults = self._parser(self.subcommand).get_defaults()
        return ConfigError(describe_failure(error, self.config[str(self.subcommand)], defaults))

    def before_fit(self) -> None:
        super().before_fit()
        warn_slow_bf16(str(self.trainer.precision), self.trainer.strategy.root_device.type)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **options: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **options)
        if subcommand == "predict":
            parser.add_argument("--prompts", type=list[str], default=["\n"], help="Texts to continue.")
            parser.add_class_arguments(Generation, "generation")
        return parser

    def predict(self, model: Any, datamodule: Any, **arguments: Any) -> None:
        """Continue `--prompts` and print the texts."""
        config = self.config_init["predict"]
        model.tokenizer = datamodule.tokenizer
        batch = {"prompts": config.prompts, "generation": dataclasses.asdict(config.generation)}
        prompts = torch.utils.data.DataLoader([batch], batch_size=None)  # pyright: ignore[reportArgumentType]
        arguments.pop("return_predictions", None)
        for texts in self.trainer.predict(model, prompts, **arguments) or []:
            for text in texts:
                sys.stdout.write(f"{text}\n{'-' * 40}\n")


class _Composer(CubeletCLI):
    """Parses, and does nothing."""

    does_it = False

    def _parse_ckpt_path(self) -> None: ...

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


@dataclasses.dataclass
class Generation:
    """How `predict` continues a prompt.

    Args:
        max_new_tokens: tokens to add.
        temperature: 0 for greedy decoding.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the smallest set of tokens whose probabilities sum to p.
        seed: the same seed and checkpoint give the same text.
    """

    max_new_tokens: int = 300
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
