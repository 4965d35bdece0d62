"""Reports of made-up outcomes: what they say, that the page holds all it shows, and that a browser shows it."""

import csv
import errno
import os
import random
import re
import shutil
import subprocess

import pytest

from cubelet.cli.comparison import COMMAND_LINE
from cubelet.common.errors import ConfigError
from cubelet.compare import command
from cubelet.compare.command import compare_command
from cubelet.compare.documents import BEGIN, END, fill_in, write_document, write_reports
from cubelet.compare.experiment import AGAIN, BETTER, NOISE, WORSE, load_experiment
from cubelet.compare.export import export
from cubelet.compare.processes import RunResult
from cubelet.compare.render import to_markdown
from cubelet.compare.report import DISTRUST, report
from cubelet.compare.runner import ExperimentResult
from cubelet.compare.runs import Run

pytest.importorskip("statsmodels", reason="needs the extra `compare`")
pytest.importorskip("matplotlib", reason="needs the extra `compare`")
SHIFTS = {"base": 0.0, "better": -0.1, "worse": 0.2, "twin": 0.0, AGAIN: 0.0, BETTER: 0.0, WORSE: 0.5, NOISE: 0.001}


def result_of(file, tmp_path, shifts=SHIFTS):
    made = ExperimentResult(load_experiment(file), tmp_path / "runs", faults={"typo": "unrecognized <arguments>"})
    for name, shift in shifts.items():
        for seed in made.experiment.seeds:
            draw = random.Random(f"{name} {seed}" if shift else seed)
            loss = 2 + 0.1 * seed + shift + draw.gauss(0, 0.01) * bool(shift)
            measures = {
                "val_loss": loss, "val_curve": [[8, 1.0, loss]], "lengths": {"16": loss, "32": loss + 0.1},
                "exact": {"16": 0.75, "32": 0.25},
                "train_curve": [[s, s / 4, loss + 8 / s] for s in range(1, 9)], "tokens_per_second": 1000.0,
                "cpu_seconds": 2.0 + shift, "peak_memory_mb": 100.0, "parameters": 1000, "steps": 8,
            }  # fmt: skip
            run = Run(name, seed, "test", (f"--config={file}",), f"{name}{seed}")
            made.results.setdefault(name, {})[seed] = RunResult(run, measures)
        made.steps[name] = 8
        made.configurations[name] = {"model.dims": 16, "model.dropout": shift}
    return made


@pytest.fixture
def file(tiny):
    return tiny(
        {"better": ["a=1"], "worse": ["a=2"], "twin": [], "typo": ["b=1"]}, seeds=4, noise=True, title="Does <it> help?"
    )


@pytest.mark.slow
def test_reports_say_what_came_out_and_hold_their_pictures(file, tmp_path):
    made = result_of(file, tmp_path)
    pictures = write_reports(made, tmp_path)
    assert pictures == ["differences", "curves", "clock", "exact", "lengths", "time"]
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert "Helps: better (-0." in text
    assert "Hurts: worse (+0.2" in text
    assert "- typo: unrecognized <arguments>" in text
    assert DISTRUST not in text
    assert DISTRUST not in page
    assert "unrecognized &lt;arguments&gt;" in page
    assert "Does &lt;it&gt; help?" in page
    assert page.count("data:image/png;base64,") == 12
    assert not re.findall(r'(?:src|srcset)="(?!data:)', page)  # nothing to fetch
    assert 'href="runs/better-test-0-' in page
    assert "runs/better-test-0-" not in text  # a document is read elsewhere than its runs lie
    assert "| better | model.dropout | 0.0 | -0.1 |" in text
    assert "Left out, since every loss is the baseline's own: twin." in text
    assert "| twin |" not in text.partition("\n## ")[0]  # the table of losses
    assert re.search(r"Noise: the baseline with other seeds differs from itself by [+-]0\.0", text)
    assert "4 seeds would show a true difference of 0." in text
    assert "| better | 0.750 | 0.250 |" in text
    assert "We report the mean paired difference" in text
    for name in pictures:
        for theme in ("light", "dark"):
            assert (tmp_path / f"{name}-{theme}.png").stat().st_size > 5000
            assert f"{name}-{theme}.png" in text
    write_document([made], tmp_path / "docs" / "results.md", ["--variants", "two words", "one"])
    whole = (tmp_path / "docs" / "results.md").read_text()
    assert "--seeds 4 --variants 'two words' one --write" in whole
    assert whole.startswith("# Does <it> help?\n")
    for link in re.findall(r'src(?:set)?="([^"]+)"', whole):
        assert link.startswith("images/results/")
        assert (tmp_path / "docs" / link).is_file()
    show_in_browser(tmp_path)


def show_in_browser(folder):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("the page was not looked at: there is no chromium here")
    script = (
        "<script>addEventListener('load', () => { const e = document.documentElement; const lost = "
        "[...document.images].filter(i => !i.complete || !i.naturalWidth).length; "
        "document.title = `wide ${e.scrollWidth - e.clientWidth} lost ${lost} of ${document.images.length}` })"
        "</script>"
    )
    (folder / "probe.html").write_text((folder / "report.html").read_text() + script)
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'chromium'}"]
    for width in (420, 1200):
        shown = subprocess.run(
            [*command, f"--window-size={width},900", "--dump-dom", (folder / "probe.html").as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert "<title>wide 0 lost 0 of 6</title>" in shown.stdout


def test_a_failed_control_stands_on_top(file, tmp_path):
    blind = result_of(file, tmp_path, {**SHIFTS, WORSE: 0.0})
    text = to_markdown(report(blind, []))
    assert not blind.trusted()
    assert text.index(DISTRUST) < text.index("| variant")
    assert "FAILED: known positive" in text


def test_exports_hold_every_run_and_every_difference(file, tmp_path):
    made = result_of(file, tmp_path)
    made.results["worse"][3] = RunResult(made.results["worse"][3].run, None, "broke")
    paths = export([made], tmp_path / "export")
    runs, differences = ([*csv.DictReader(path.open())] for path in paths[:2])
    assert len(runs) == 4 * len(SHIFTS)
    [row] = [r for r in runs if r["variant"] == "better" and r["seed"] == "2"]
    assert float(row["val_loss"]) == made.values("better")[2]
    assert (row["exact at 32"], row["steps"], row["fault"]) == ("0.25", "8", "")
    assert [r["fault"] for r in runs if r["variant"] == "worse"] == ["", "", "", "broke"]
    better, worse = ({r["variant"]: r for r in differences}[name] for name in ("better", "worse"))
    assert (better["verdict"], better["pairs"], worse["pairs"]) == ("helps", "4", "3")
    assert float(better["low"]) < float(better["difference"]) < float(better["high"]) < 0
    table = paths[2].read_text()
    assert table.count(r"\\") == 1 + len([v for v in SHIFTS if v != "twin"]) + 1  # head, variants, the one that failed
    assert r"[95 \%]" in table
    assert table.index(r"\midrule") < table.index("better & ") < table.index(r"\bottomrule")


def test_the_summary_goes_between_the_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    fill_in(readme, "| new |")
    assert readme.read_text() == f"before\n{BEGIN}\n\n| new |\n\n{END}\nafter\n"
    readme.write_text("nothing")
    with pytest.raises(ConfigError, match="has no lines"):
        fill_in(readme, "x")


def test_a_full_disk_leaves_the_documents_that_were_there(file, tmp_path, monkeypatch):
    document, readme = tmp_path / "results.md", tmp_path / "README.md"
    document.write_text("old")
    readme.write_text(f"{BEGIN}\nold\n{END}\n")
    made = result_of(file, tmp_path / "out")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_document([made], document)
    with pytest.raises(OSError, match="No space left"):
        fill_in(readme, "| new |")
    assert document.read_text() == "old"
    assert readme.read_text() == f"{BEGIN}\nold\n{END}\n"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("writer", ["write_reports", "write_document"])
def test_a_full_disk_is_told_in_a_line_by_the_command(file, tmp_path, monkeypatch, capsys, writer):
    made = result_of(file, tmp_path / "runs")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command, "run_experiment", lambda *_: made)
    monkeypatch.setattr(command, writer, full)
    with pytest.raises(SystemExit, match="1"):
        compare_command(
            [str(file), "--out", str(tmp_path / "out"), "--write", str(tmp_path / "results.md")], COMMAND_LINE
        )
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "No space left" in line
    assert not (tmp_path / "results.md").exists()


def test_a_file_without_marks_is_told_before_anything_is_run(file, tmp_path):
    pytest.importorskip("statsmodels", reason="needs the extra `compare`")
    with pytest.raises(ConfigError, match="has no lines"):
        compare_command(
            [str(file), "--out", str(tmp_path / "out"), "--readme", str(tmp_path / "README.md")], COMMAND_LINE
        )
    assert not (tmp_path / "out").exists()
