"""One page per run, `report.html`: losses, rates, samples, attention, rotations, spectra, and how to repeat it.

Made from the files that the run wrote, so it can be made again at any time; one file without scripts or references to
anything outside it, light and dark.
"""

import csv
import html
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback

from cubelet.common.files import write_atomic
from cubelet.common.run_folder import run_folder

from .config_difference import difference_table
from .line_chart import line_chart, show
from .report_figures import attention_figures, rotation_figures, spectrum_figures
from .reporting import stops_writing

PAGE = "report.html"
MOST_SAMPLES = 5
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fdfdfc; --faint: #dcdcd8; --soft: #f2f2ef;
  --c0: #1f5fa8; --c1: #c4560b; --c2: #2d7d46; --c3: #7a4a9c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e0; --paper: #18191a; --faint: #3b3d3f; --soft: #232527;
  --c0: #7db3ee; --c1: #f0a06a; --c2: #7fce97; --c3: #c39be0; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 1340px; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } h3 { font-size: 1rem; font-weight: normal; }
.small { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 1rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem; }
figure { margin: 0; } svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12px; }
.grid { stroke: var(--faint); } .line { fill: none; stroke-width: 1.8; } .dot { stroke: none; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .dot.c0 { fill: var(--c0); } .dot.c1 { fill: var(--c1); } .dot.c2 { fill: var(--c2); }
.dot.c3 { fill: var(--c3); }
pre { background: var(--soft); padding: .7rem; white-space: pre-wrap; margin: .4rem 0; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem .9rem .15rem 0; vertical-align: top; }
details summary { cursor: pointer; }
"""


class RunReport(Callback):
    """Writes `report.html` into the run's folder after every validation and at the end. Made by the command line.

    Example:
        >>> callback = RunReport()
    """

    def __init__(self) -> None:
        super().__init__()
        self._folder: Path | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        folder = run_folder(trainer)  # collective
        self._folder = folder if trainer.is_global_zero else None

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self._write(trainer)

    def _write(self, trainer: Any) -> None:
        if self._folder is None:
            return
        for logger in trainer.loggers:  # values wait in memory until a logger writes them
            if callable(flush := getattr(logger, "flush", None)):
                flush()
        try:
            write_atomic(self._folder / PAGE, report_page(self._folder, trainer.global_step))
        except OSError as error:
            stops_writing(self, self._folder / PAGE, error)
            self._folder = None


def report_page(folder: Path, step: int | None = None) -> str:
    """Return the page of a run.

    Args:
        folder: of the run; what it does not hold is left out of the page.
        step: optimizer steps made so far, None where that is not known.
    """
    columns = read_metrics(folder / "metrics.csv")
    body = [f"<h1>{html.escape(folder.name)}</h1>"]
    validation = columns.get("val_loss")
    facts = [f"step {step:,}"] if step is not None else []
    if validation:
        best = min(value for _, value in validation)
        facts.append(f"validation loss {show(validation[-1][1])} (best {show(best)})")
    body.append(f"<p>{html.escape('; '.join(facts))}</p>" if facts else "")
    body.append(f"<p>repeat it</p><pre>{html.escape(repeat_command(folder))}</pre>")
    body.append(gallery(charts(columns)))
    if samples := read_samples(folder / "samples.txt"):
        body.append("<h2>What it writes</h2>")
        for number, text in spread(samples, MOST_SAMPLES):
            body.append(f"<p>step {number:,}</p><pre>{html.escape(text)}</pre>")
    told, maps = attention_figures(folder / "attention.json")
    if maps:
        body.append(f"<h2>Where each head looks</h2><p>{html.escape(told)}</p>")
        body += [f"<h3>{html.escape(name)}</h3>{gallery(figures, 'small')}" for name, figures in maps.items()]
    if rotations := rotation_figures(folder / "rotation.jsonl"):
        body.append("<h2>Rotation planes and spectra</h2>")
        body += [f"<h3>{html.escape(name)}</h3>{gallery(figures)}" for name, figures in rotations.items()]
    if spectra := spectrum_figures(folder / "fam.jsonl"):
        body.append(f"<h2>Spectra of the gradients, by kind of parameter</h2>{gallery(spectra)}")
    if config := read_config(folder / "config.yaml"):
        base = read_config(Path(__file__).parents[1] / "configs" / "text.yaml")
        body.append("<h2>What differs from the base</h2>" + difference_table(config, base))
        text = html.escape(yaml.safe_dump(config, sort_keys=False))
        body.append(f"<details><summary>whole configuration</summary><pre>{text}</pre></details>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>{html.escape(folder.name)}</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}{title}</head><body>{"".join(body)}</body></html>\n'


def gallery(figures: Sequence[str], size: str = "charts") -> str:
    """Return figures beside each other as far as there is room."""
    return f'<div class="{size}">' + "".join(f"<figure>{svg}</figure>" for svg in figures) + "</div>"


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many items, evenly spaced, the first and the last among them.

    Example:
        >>> spread([0, 1, 2, 3, 4, 5, 6], 3)
        [0, 3, 6]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def charts(columns: Mapping[str, list[tuple[float, float]]]) -> list[str]:
    """Return the charts that there are values for: losses together, then rates, base, gradient-free facts, speed."""
    losses = {
        name: columns[key] for name, key in (("train", "train_loss"), ("validation", "val_loss")) if key in columns
    }
    rates = {key.removeprefix("lr-"): points for key, points in columns.items() if key.startswith("lr-")}
    distinct: dict[str, list[tuple[float, float]]] = {}
    for name, points in rates.items():  # groups that follow the same schedule are one line
        if points not in distinct.values():
            distinct[name] = points
    wer = {key.removeprefix("val_"): columns[key] for key in ("val_wer", "val_cer") if key in columns}
    bases = {key: points for key, points in columns.items() if key == "base" or key.startswith("base/")}
    speed = {key.removesuffix("_per_second"): columns[key] for key in columns if key.endswith("_per_second")}
    made = [
        line_chart(losses, "loss (nats a token)"),
        line_chart(wer, "error rate"),
        line_chart(dict(list(distinct.items())[:4]), "learning rate"),
        line_chart(dict(list(bases.items())[:4]), "rotary base"),
        line_chart(speed, f"{next(iter(speed), 'units')} a second, validation left out"),
    ]
    return [svg for svg in made if svg]


def read_metrics(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Return {column: [(step, value), …]} of a run's metrics.csv, {} where there is none."""
    columns: dict[str, list[tuple[float, float]]] = {}
    if not path.is_file():
        return columns
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for key, text in row.items():
                if text and key not in ("step", "epoch"):
                    columns.setdefault(key, []).append((float(row["step"]), float(text)))
    return columns


def read_samples(path: Path) -> list[tuple[int, str]]:
    """Return [(step, text), …] of a run's samples.txt."""
    if not path.is_file():
        return []
    pieces = re.split(r"^=== step (\d+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [(int(step), text.strip()) for step, text in zip(pieces[::2], pieces[1::2], strict=True)]


def read_config(path: Path) -> dict[str, Any]:
    """Return a run's configuration, {} where the run was started from Python."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


def repeat_command(folder: Path) -> str:
    """Return what makes this run again."""
    config = folder / "config.yaml"
    if not config.is_file():
        return "trainer.fit(…) in the program that made it"
    return f"cubelet fit --config {shlex.quote(str(config))} --run_name again"
