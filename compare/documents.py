"""Files a comparison leaves behind: a report for each experiment, one document of several, a summary in a README."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from cubelet.common.errors import ConfigError
from cubelet.common.files import write_atomic, write_json

from .blocks import Heading
from .figures import draw, draw_ladder
from .render import table_to_markdown, to_html, to_markdown
from .report import machine, report
from .runner import ExperimentResult, summary
from .tables import summary_table, table_of_cases
from .trends import ladder_report, sentence, trends_of

BEGIN, END = "<!-- results: written by cubelet compare -->", "<!-- end of results -->"


def write_reports(result: ExperimentResult, out: Path) -> list[str]:
    """`report.md`, `report.html`, `outcome.json` and pictures into `out`; returns the pictures' names."""
    pictures = draw(result, out)
    blocks = report(result, pictures)
    write_atomic(out / "report.md", to_markdown(blocks))
    write_atomic(out / "report.html", to_html(blocks, result.experiment.title, out))
    write_json(out / "outcome.json", summary(result))
    return pictures


def write_ladder(results: Sequence[ExperimentResult], out: Path) -> list[str]:
    """The report of a ladder into `out`; returns its sentences."""
    blocks = ladder_report(results, draw_ladder(results, out))
    write_atomic(out / "report.md", to_markdown(blocks))
    write_atomic(out / "report.html", to_html(blocks, f"Ladder of {results[0].experiment.ladder}", out))
    return [sentence(name, trend) for name, trend in trends_of(results).items()]


def write_document(results: Sequence[ExperimentResult], path: Path, chosen: Sequence[str] = ()) -> None:
    """All reports in one Markdown file, its pictures in `images/NAME/` beside it, after the file's name.

    Args:
        results: of the experiments.
        path: of the file.
        chosen: options that chose among cases, variants and sizes, for the command that is quoted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures_in = f"images/{path.stem.replace(' ', '_')}"  # of its own: two documents may hold the same experiment
    families = dict.fromkeys(r.experiment.family for r in results)
    command = "cubelet compare " + " ".join(f"experiments/{family}.yaml" for family in families)
    budget = f"--budget {results[0].experiment.budget_name} --seeds {len(results[0].experiment.seeds)}"
    budget += f" {shlex.join(chosen)}" if chosen else ""
    parts = [
        f"# {_title(results)}",
        f"Written by `{command} {budget} --write {path}`; nothing here is typed by hand. {machine()}.",
        table_to_markdown(summary_table(results)),
    ]
    for family in families:
        cases = [r for r in results if r.experiment.family == family and r.experiment.case]
        if cases and (blocks := table_of_cases(cases)):
            parts.append(to_markdown([Heading(f"{family}: all cases"), *blocks]).rstrip())
    for ladder in dict.fromkeys(r.experiment.ladder for r in results if r.experiment.ladder):
        rungs = [r for r in results if r.experiment.ladder == ladder]
        below = f"{pictures_in}/{ladder}-ladder"
        pictures = draw_ladder(rungs, path.parent / below)
        parts.append(to_markdown(ladder_report(rungs, pictures), f"{below}/", level=2).rstrip())
    for result in results:
        below = f"{pictures_in}/{result.experiment.name}"
        pictures = draw(result, path.parent / below)
        parts.append(to_markdown(report(result, pictures), f"{below}/", level=2).rstrip())
    write_atomic(path, "\n\n".join(parts) + "\n")


def _title(results: Sequence[ExperimentResult]) -> str:
    """That of the one experiment whose cases or sizes these are; of several, “Results”."""
    e = results[0].experiment
    if len({r.experiment.family for r in results}) > 1:
        return "Results"
    return e.title.removesuffix(f" (size × {e.scale:g})").removesuffix(f" ({e.case})")


def split_at_marks(path: Path) -> tuple[str, str]:
    """The parts of a file before and after its two marks.

    Raises:
        ConfigError: there is no such file, or it has no marks.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{path} has no lines {BEGIN} and {END} to put the summary between")
    return before, after


def fill_in(path: Path, text: str) -> None:
    """Replace what stands between the two marks; see `split_at_marks`."""
    before, after = split_at_marks(path)
    write_atomic(path, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
