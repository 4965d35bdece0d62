"""The `cubelet` command (also installed as `lightning`): fit, validate, test, predict, generate and compare.

LightningCLI with four changes:
- callbacks that belong to every run stand under keys of their own (`callbacks.cycler`, `callbacks.base`, …), so a
  second config file changes one of them without replacing the list of the first; `trainer.callbacks` stays the user's;
- a run writes into one folder under `trainer.default_root_dir`, and a resumed run goes on in its folder;
- checkpoints hold plain hyper-parameters written by the model itself, not by the command line;
- errors are one line with the nearest valid name.

Subcommands that are not ours are passed on to lightning-sdk where it is installed, since it claims the same name.
"""

import dataclasses
import importlib.metadata
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from cubelet.callbacks.checkpoints import resolve_checkpoint
from cubelet.callbacks.resume_logs import ResumeLogs
from cubelet.callbacks.save_config import SaveRunConfig
from cubelet.common.errors import UnreadableFileError, UserError
from cubelet.datamodules import TextDataModule
from cubelet.lightning_modules.component_config import import_object
from cubelet.lightning_modules.language_model import LanguageModel

from .errors import deepest, did_you_mean, disk_fault, quiet_dependencies, quiet_writers, raised_here, warn_slow_bf16
from .generate import generate_command
from .loggers import default_loggers, refuse_existing, run_name, run_of_checkpoint

# Keys under `callbacks:`; each takes any Callback or null.
STANDING = (
    "progress",
    "seed",
    "checkpoint",
    "last",
    "rate",
    "cycler",
    "base",
    "window",
    "span",
    "refiner",
    "fam",
    "rotation",
    "samples",
    "guard",
    "summary",
    "measure",
)
OWN = ("fit", "validate", "test", "predict")
DATA = "cubelet.datamodules.TextDataModule"


class Parser(LightningArgumentParser):
    """LightningArgumentParser with one-line errors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        names = [option[2:] for action in self._actions for option in action.option_strings if option.startswith("--")]
        hint = did_you_mean(message, names)
        sys.stderr.write(f"error: {deepest(message)}\n" + (f"  {hint}\n" if hint else ""))
        sys.stderr.write("  all options: cubelet fit --help; one component's: --model.rotary.help CLASS_PATH\n")
        sys.exit(2)


class CubeletCLI(LightningCLI):
    """See the module's docstring."""

    resumed_step: int | None = None  # of the checkpoint a fit goes on from

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in STANDING:
            parser.add_argument(f"--callbacks.{name}", type=Callback | None, default=None)
        parser.add_argument("--run_name", type=str | None, default=None, help="Folder of this run.")
        parser.add_argument("--data_class", type=str, default=DATA, help="Class that `data` holds the options of.")
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's model arguments win over the configuration's: say where the two differ."""
        sub = self.config.get("subcommand")
        path = sub and self.config[sub].get("ckpt_path")
        if not path:
            return
        found = resolve_checkpoint(path, self.config[sub].trainer.default_root_dir)
        if found is None:
            return
        self.config[sub].ckpt_path = found
        checkpoint = torch.load(found, weights_only=True, map_location="cpu", mmap=True)
        self.resumed_step = checkpoint.get("global_step")
        stored = dict(checkpoint.get("hyper_parameters", {}))
        given = self.config[sub].model.as_dict()
        stored.pop("vocab_size", None)  # linked from the data
        model = {k: v for k, v in stored.items() if k in given}
        before = {k: _plain(given[k]) for k in model}
        self.config = self.parser.parse_object({sub: {"model": model}}, self.config)
        after = {k: _plain(v) for k, v in self.config[sub].model.as_dict().items()}
        for key in model:
            if before[key] != after[key]:
                rank_zero_warn(
                    f"model.{key} is {after[key]!r} in the checkpoint and {before[key]!r} in the configuration; the "
                    "checkpoint's is used. Start without --ckpt_path to train the configured model"
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        sub = str(self.subcommand)
        config, init = self.config[sub], self.config_init[sub]
        root = init.trainer.default_root_dir
        resumed = run_of_checkpoint(config.ckpt_path, root) if config.get("ckpt_path") else None
        if init.trainer.logger in (None, True) and not init.trainer.fast_dev_run:
            kwargs["logger"] = False
            if sub == "fit":
                name = config.run_name or resumed or run_name(root)
                if name != resumed:
                    refuse_existing(root, name)
                kwargs["logger"] = default_loggers(root, name, resumed_step=self.resumed_step)
        standing = [c for c in (init.callbacks.get(name) for name in STANDING) if c is not None]
        if sub != "fit":
            standing = [c for c in standing if type(c).__name__.endswith("ProgressBar")]
            # Only a fit has use for the others' states; there the warning stays, a callback left out is a difference.
            warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
        # A trial run shorter than its validation interval validates once, at its end.
        trial = init.trainer.max_steps * init.trainer.accumulate_grad_batches
        if isinstance(init.trainer.val_check_interval, int) and 0 < trial < init.trainer.val_check_interval:
            kwargs["val_check_interval"] = trial
        own = init.trainer.callbacks or []
        kwargs["callbacks"] = [*standing, *(own if isinstance(own, list) else [own])]
        if sub == "fit" and kwargs.get("logger"):
            kwargs["callbacks"].append(ResumeLogs())
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        warn_slow_bf16(str(self.trainer.precision), self.trainer.strategy.root_device.type)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **options: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **options)
        if subcommand == "predict":
            parser.add_argument("--prompts", type=list[str], default=["\n"], help="Texts to continue.")
            parser.add_class_arguments(Generation, "generation")
        return parser

    def predict(self, model: LanguageModel, datamodule: TextDataModule, **arguments: Any) -> None:
        """Continue `--prompts` and print the texts."""
        config = self.config_init["predict"]
        model.tokenizer = datamodule.tokenizer
        batch = {"prompts": config.prompts, "generation": dataclasses.asdict(config.generation)}
        prompts = torch.utils.data.DataLoader([batch], batch_size=None)  # pyright: ignore[reportArgumentType]
        arguments.pop("return_predictions", None)
        for texts in self.trainer.predict(model, prompts, **arguments) or []:
            for text in texts:
                sys.stdout.write(f"{text}\n{'-' * 40}\n")


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


def _plain(value: Any) -> Any:
    """Configuration without unset options, so that a short and a full spelling of a component compare equal."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v not in (None, {})}
    return value


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console scripts `cubelet` and `lightning`."""
    given = sys.argv[1:] if arguments is None else arguments
    first = next((a for a in given if not a.startswith("-")), None)
    # Read by jsonargparse: Lightning calls it by names it has deprecated, which is theirs to change.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    quiet_dependencies()
    quiet_writers()
    if first == "generate":
        generate_command(given[given.index("generate") + 1 :])
        return
    if first == "compare":
        from .comparison import compare  # it needs this module

        compare(given[given.index("compare") + 1 :])
        return
    if first is not None and first not in OWN and forward(first):
        return
    try:
        start(CubeletCLI, given)
    except Exception as error:
        # What this package raises on purpose is a sentence for the user; anything else is a fault and keeps its trace.
        told = disk_fault(error) or (str(error) if isinstance(error, UserError) or raised_here(error) else None)
        if os.environ.get("CUBELET_TRACEBACK") or told is None:
            raise
        raise SystemExit(f"error: {told}") from None


def start(command: type[CubeletCLI], given: list[str]) -> CubeletCLI:
    """Parse `given` and do what it says, by a class of command line."""
    # LightningCLI parses sys.argv, and so do the processes that DDP starts by repeating this command.
    sys.argv = [sys.argv[0], *given]
    return command(
        LanguageModel,
        data_class(given),
        seed_everything_default=0,
        trainer_defaults={"default_root_dir": "runs"},
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"overwrite": True},
        parser_class=Parser,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )


def data_class(given: list[str]) -> type[LightningDataModule]:
    """The class of the data: the last `data_class` among `given` and the files it names; it must be known before
    parsing, since the parser's options under `data` are its arguments."""
    found = DATA
    for place, argument in enumerate(given):
        option, joined, value = argument.partition("=")
        value = value if joined else "".join(given[place + 1 : place + 2])
        if option == "--data_class":
            found = value
        elif option in ("--config", "-c") and Path(value).is_file():
            try:
                config = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"config {value} is not UTF-8 text: byte {error.start} cannot be read") from None
            except OSError as error:
                raise UnreadableFileError(f"config {value} cannot be read: {error.strerror}") from error
            except yaml.YAMLError:
                continue  # the parser will read it again and say what is wrong with it
            found = config.get("data_class", found) if isinstance(config, dict) else found
    kind = import_object(found)
    if not (isinstance(kind, type) and issubclass(kind, LightningDataModule)):
        raise ValueError(f"data_class {found} is not a LightningDataModule")
    return kind


def forward(subcommand: str) -> bool:
    """Hand a subcommand that is not ours to lightning-sdk; False where that is not installed."""
    try:
        entries = importlib.metadata.distribution("lightning-sdk").entry_points
    except importlib.metadata.PackageNotFoundError:
        return False
    for entry in entries:
        if entry.group == "console_scripts" and entry.name == "lightning":
            rank_zero_info(f"`{subcommand}` is not a cubelet command; passing it on to lightning-sdk")
            entry.load()()
            return True
    return False
