"""Results as files for other programs: CSV of every run and every difference, and a LaTeX table."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cubelet.common.files import to_finite, write_atomic

from .blocks import Table
from .runner import ExperimentResult
from .tables import table_of_losses

RUN_MEASURES = ("val_loss", "steps", "tokens", "cpu_seconds", "tokens_per_second", "peak_memory_mb", "parameters")
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "–": "--", "α": r"$\alpha$",
}  # fmt: skip
LATEX_COLUMNS = ("variant", "validation loss", "difference [95 %]", "p (Holm)", "verdict")


def export(results: Sequence[ExperimentResult], folder: Path) -> list[Path]:
    """Write `runs.csv`, `differences.csv` and a `NAME.tex` for each experiment into a folder; returns their paths."""
    paths = {
        "runs.csv": _csv(run_rows(results)),
        "differences.csv": _csv(difference_rows(results)),
        **{f"{result.experiment.name}.tex": latex(result) for result in results},
    }
    for name, text in paths.items():
        write_atomic(folder / name, text)
    return [folder / name for name in paths]


def run_rows(results: Iterable[ExperimentResult]) -> list[dict[str, Any]]:
    """One row a run: who it is, its tuned settings, its measures, loss and exact share at every length."""
    rows = []
    for result in results:
        for variant, runs in result.results.items():
            choice = result.choices.get(variant)
            for seed, run in sorted(runs.items()):
                measures = run.measures or {}
                rows.append(
                    {
                        "experiment": result.experiment.family,
                        "case": result.experiment.case,
                        "scale": result.experiment.scale,
                        "budget": result.experiment.budget_name,
                        "variant": variant,
                        "seed": seed,
                        "fault": run.fault or "",
                        **{name: measures.get(name) for name in RUN_MEASURES},
                        **{f"loss at {k}": v for k, v in (measures.get("lengths") or {}).items()},
                        **{f"exact at {k}": v for k, v in (measures.get("exact") or {}).items()},
                        **(choice.settings if choice else {}),
                        "folder": run.run.name,
                    }
                )
    return rows


def difference_rows(results: Iterable[ExperimentResult]) -> list[dict[str, Any]]:
    """One row a variant: its difference to the baseline, the interval, p, the verdict and what could be seen."""
    return [
        {
            "experiment": result.experiment.family,
            "case": result.experiment.case,
            "scale": result.experiment.scale,
            "variant": name,
            "baseline": result.experiment.baseline,
            "measure": result.experiment.measure.name,
            "pairs": d.n,
            "difference": d.mean,
            "low": d.low,
            "high": d.high,
            "p": d.p,
            "visible": d.visible,
            "verdict": d.verdict,
            "trusted": result.trusted(),
        }
        for result in results
        for name, d in result.differences().items()
    ]


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with a head of all their keys, in the order of their first appearance; an empty field for none."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(to_finite(row) for row in rows)
    return text.getvalue()


def latex(result: ExperimentResult) -> str:
    """The table of losses as a `tabular` of the package booktabs."""
    losses, label = table_of_losses(result), result.experiment.measure.label
    extra = (label,) if label in losses.head and label not in LATEX_COLUMNS else ()
    table = _columns(losses, (*LATEX_COLUMNS[:2], *extra, *LATEX_COLUMNS[2:]))
    lines = [
        f"% {result.experiment.title}: {len(result.experiment.seeds)} paired seeds; needs \\usepackage{{booktabs}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
        r"\toprule",
        _latex_row(table.head),
        r"\midrule",
        *map(_latex_row, table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _columns(table: Table, names: Sequence[str]) -> Table:
    places = [table.head.index(name) for name in names]
    return Table(names, [[row[place] for place in places] for row in table.rows])


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join("".join(LATEX_ESCAPES.get(c, c) for c in cell) for cell in cells) + r" \\"
