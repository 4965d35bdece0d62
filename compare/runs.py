"""From an experiment to runs: each an ordinary `cubelet fit` with a folder of its own.

A run is known by a hash of its whole command, contents of the files it names included. So a run that two variants share
is done once, a finished one is found again, and a fragment that was edited since gives new runs instead of old numbers.
"""

import contextlib
import hashlib
import io
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from cubelet.cli.main import CubeletCLI, start

from .experiment import AGAIN, Experiment

MEASURE = "cubelet.compare.Measures"
QUIET = ("callbacks.progress=null", "callbacks.samples=null", "callbacks.summary=null", "callbacks.rate=null")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        variant, seed, purpose: who it is for; purpose is "test", "tune" or "measure".
        arguments: of `cubelet fit`, without the folder.
        key: hash of the arguments and of the files they name.
    """

    variant: str
    seed: int
    purpose: str
    arguments: tuple[str, ...]
    key: str
    threads: int = 1

    @property
    def name(self) -> str:
        """Of its folder."""
        words = re.sub(r"[^\w.+-]+", "_", self.variant)
        return f"{words}-{self.purpose}-{self.seed}-{self.key[:10]}"

    def command(self, root: Path) -> list[str]:
        """Arguments of `cubelet` that repeat this run in a folder under `root`."""
        return ["fit", *self.arguments, f"--trainer.default_root_dir={root}", f"--run_name={self.name}"]

    def shell(self, root: Path) -> str:
        """The same as a line for a shell."""
        return f"OMP_NUM_THREADS={self.threads} cubelet {shlex.join(self.command(root))}"


class _Composer(CubeletCLI):
    """Parses, and does nothing."""

    def _parse_ckpt_path(self) -> None: ...

    def _set_seed(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


class PlanError(ValueError):
    """A variant that cannot be composed, in one sentence."""


def compose(arguments: tuple[str, ...]) -> Namespace:
    """The whole configuration of a run.

    Raises:
        PlanError: what the command line says of it.
    """
    said, kept = io.StringIO(), sys.argv
    try:
        with contextlib.redirect_stderr(said):
            return start(_Composer, ["fit", *arguments]).config["fit"]
    except SystemExit:
        told = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
        told = [line.removeprefix("error: ") for line in told if not line.startswith("all options:")]
        raise PlanError("; ".join(told) or "the command line refuses it without a word") from None
    except (ValueError, TypeError, ImportError) as error:
        raise PlanError(" ".join(str(error).split())) from None
    finally:
        sys.argv = kept


def find_file(name: str, folder: Path) -> Path:
    """A fragment: relative to where the command was given, to the experiment's folder, or to the one above it.

    Raises:
        PlanError: where it was looked for.
    """
    places = [Path(name), folder / name, folder.parent / name]
    for place in places:
        if place.is_file():
            return place
    raise PlanError(f"there is no file {name} (looked in {Path.cwd()}, {folder} and {folder.parent})")


class Plan:
    """Runs of an experiment. Variants that cannot be composed are in `faults` {name: sentence}, and have no runs."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.faults: dict[str, str] = {}
        self._composed: dict[tuple[str, ...], Namespace] = {}
        self.variants: dict[str, tuple[str, ...]] = {}
        for name, items in experiment.all_variants().items():
            try:
                arguments = self._arguments(items)
                self.compose(arguments)
                self.variants[name] = arguments
            except PlanError as error:
                self.faults[name] = str(error)

    def _arguments(self, items: tuple[str, ...]) -> tuple[str, ...]:
        e = self.experiment
        given = [f"--config={find_file(e.base, e.folder)}"]
        for item in (*e.common, *e.budget.use, *items):
            is_file = item.endswith((".yaml", ".yml")) and "=" not in item
            given.append(f"--config={find_file(item, e.folder)}" if is_file else f"--{item}")
        return tuple(given)

    def compose(self, arguments: tuple[str, ...]) -> Namespace:
        """See `compose`; remembered."""
        if arguments not in self._composed:
            self._composed[arguments] = compose(arguments)
        return self._composed[arguments]

    def configured(self, variant: str, option: str) -> Any:
        """Value of an option in a variant's configuration.

        Raises:
            PlanError: it has none.
        """
        try:
            return self.compose(self.variants[variant])[option]
        except (KeyError, TypeError):
            raise PlanError(f"{option} is not an option of variant {variant!r}") from None

    def run(
        self, variant: str, seed: int, steps: int, purpose: str = "test", settings: Mapping[str, Any] | None = None
    ) -> Run:
        """One run of a variant.

        Args:
            steps: optimizer steps. settings: {option: value}, tuned.
        """
        e = self.experiment
        often = steps // e.validations if steps % e.validations == 0 else steps
        overrides = {
            **(settings or {}),
            "seed_everything": seed,
            "data.seed": seed,
            "model.init_seed": seed,
            "trainer.max_steps": steps,
            "trainer.val_check_interval": often,
            "trainer.enable_progress_bar": "false",
        }
        arguments = [*self.variants[variant], *(f"--{k}={v}" for k, v in overrides.items())]
        arguments += [f"--{item}" for item in QUIET]
        lengths = list(e.lengths) if purpose == "test" else []  # nothing else looks at length curves
        arguments += [f"--callbacks.measure={MEASURE}", f"--callbacks.measure.lengths={lengths}"]
        # The baseline under another name must not find the baseline's own runs.
        salt = variant if variant == AGAIN and purpose == "test" else ""
        return Run(variant, seed, purpose, tuple(arguments), key_of(tuple(arguments), salt), e.threads)


def key_of(arguments: tuple[str, ...], salt: str = "") -> str:
    """Hash of a command line and of the files it names."""
    found = hashlib.sha256(salt.encode())
    for argument in arguments:
        option, _, value = argument.partition("=")
        text = Path(value).read_bytes() if option == "--config" else argument.encode()
        found.update(len(text).to_bytes(8, "little") + text)
    return found.hexdigest()
