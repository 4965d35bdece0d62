"""From an experiment to runs: each an ordinary `cubelet fit` with a folder of its own.

A run is known by a hash of its whole command, contents of the files it names included. So a run that two variants share
is done once, a finished one is found again, and a fragment that was edited since gives new runs instead of old numbers.
"""

import hashlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cubelet.common.errors import ConfigError, MissingFileError
from cubelet.common.shipped_files import find_shipped_file

from .experiment import AGAIN, NOISE, Experiment

MEASURE = "cubelet.callbacks.RunMetrics"
QUIET = ("callbacks.progress=null", "callbacks.samples=null", "callbacks.summary=null", "callbacks.rate=null")
OTHER_SEEDS = 10_000  # what the row of noise adds to each seed
FORMER_FILES = {"experiments/bases/synthetic.yaml": "configs/synthetic.yaml"}  # paths of 0.1.0


@dataclass(frozen=True)
class CommandLine:
    """What a comparison needs of the command, which hands it in: so nothing here imports the command line.

    Attributes:
        compose: arguments of `cubelet fit` → its whole configuration, as a mapping that takes dotted keys and whose
            `items` are those of its leaves; raises `ConfigError`.
        fit: does `cubelet fit ARGUMENTS` in this process.
    """

    compose: Callable[[Sequence[str]], Mapping[str, Any]]
    fit: Callable[[Sequence[str]], None]


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

    def fit_arguments(self, root: Path) -> list[str]:
        """Arguments of `cubelet fit` that repeat this run in a folder under `root`."""
        return [*self.arguments, f"--trainer.default_root_dir={root}", f"--run_name={self.name}"]

    def shell(self, root: Path) -> str:
        """The same as a line for a shell."""
        return f"OMP_NUM_THREADS={self.threads} cubelet fit {shlex.join(self.fit_arguments(root))}"


class VariantError(ConfigError):
    """A variant that cannot be composed or trained, in one sentence."""


def find_file(name: str, folder: Path) -> Path:
    """A fragment: relative to where the command was given, to the experiment's folder or the one above it, or shipped.

    Raises:
        VariantError: where it was looked for.
    """
    for candidate in (name, FORMER_FILES.get(name, name)):
        for path in (Path(candidate), folder / candidate, folder.parent / candidate):
            if path.is_file():
                return path
    try:
        return find_shipped_file(name, "configs")
    except MissingFileError as error:
        raise VariantError(f"{error} (looked in {Path.cwd()}, {folder} and {folder.parent}, too)") from None


class RunBuilder:
    """Makes the runs of an experiment.

    Args:
        experiment: what to compare.
        compose: see `CommandLine`.

    Attributes:
        variants: {name: arguments of `cubelet fit`}, controls included.
        faults: {name: sentence} of the variants that cannot be composed and so have no runs.
    """

    def __init__(self, experiment: Experiment, compose: Callable[[Sequence[str]], Mapping[str, Any]]) -> None:
        self.experiment = experiment
        self.faults: dict[str, str] = {}
        self.variants: dict[str, tuple[str, ...]] = {}
        self._compose = compose
        self._configurations: dict[tuple[str, ...], Mapping[str, Any]] = {}
        for name, items in experiment.all_variants().items():
            try:
                arguments = self._arguments(items)
                self._configuration(arguments)
                self.variants[name] = arguments
            except ConfigError as error:
                self.faults[name] = str(error)

    def _arguments(self, items: tuple[str, ...]) -> tuple[str, ...]:
        e = self.experiment
        arguments = [f"--config={find_file(e.base, e.folder)}"]
        for item in (*e.common, *e.budget.use, *items):
            is_file = item.endswith((".yaml", ".yml")) and "=" not in item
            arguments.append(f"--config={find_file(item, e.folder)}" if is_file else f"--{item}")
        return tuple(arguments)

    def _configuration(self, arguments: tuple[str, ...]) -> Mapping[str, Any]:
        if arguments not in self._configurations:
            self._configurations[arguments] = self._compose(arguments)
        return self._configurations[arguments]

    def configuration(self, variant: str) -> dict[str, Any]:
        """{dotted option: value} of a variant, before tuning; the names of its files are left out."""
        return {k: v for k, v in self._configuration(self.variants[variant]).items() if k != "config"}

    def configured(self, variant: str, option: str) -> Any:
        """Value of an option in a variant's configuration.

        Raises:
            VariantError: it has none.
        """
        try:
            return self._configuration(self.variants[variant])[option]
        except (KeyError, TypeError):
            raise VariantError(f"{option} is not an option of variant {variant!r}") from None

    def run(
        self, variant: str, seed: int, steps: int, purpose: str = "test", settings: Mapping[str, Any] | None = None
    ) -> Run:
        """One run of a variant.

        Args:
            variant: its name.
            seed: of weights, data order and dropout alike.
            steps: optimizer steps.
            purpose: "test", "tune" or "measure".
            settings: {option: value}, tuned.
        """
        e = self.experiment
        drawn_seed = seed + OTHER_SEEDS if variant == NOISE and purpose == "test" else seed
        interval = steps // e.validations if steps % e.validations == 0 else steps
        overrides = {
            **(settings or {}),
            "seed_everything": drawn_seed,
            "data.seed": drawn_seed,
            "model.init_seed": drawn_seed,
            "trainer.max_steps": steps,
            "trainer.val_check_interval": interval,
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
    digest = hashlib.sha256(salt.encode())
    for argument in arguments:
        option, _, value = argument.partition("=")
        text = Path(value).read_bytes() if option == "--config" else argument.encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()
