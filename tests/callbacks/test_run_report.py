"""The page of a run: made from its files, self-contained, nothing empty, nothing broken by what a model writes."""

import html.parser
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from cubelet.callbacks.line_chart import line_chart, show, ticks
from cubelet.callbacks.run_report import RunReport, difference_table, read_metrics, read_samples, report_page

VOID = {"meta", "br"}


class Balance(html.parser.HTMLParser):
    """Raises where a tag is not closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def write_run(folder):
    rows = ["step,train_loss,val_loss,lr-a,lr-b,base,tokens_per_second"]
    rows += [f"{s},{3 - s / 100},,{s / 1e4},{s / 1e4},{10_000 + s},12000" for s in range(0, 100, 5)]
    rows += ["49,,2.4,,,,", "99,,2.1,,,,"]
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    (folder / "samples.txt").write_text("=== step 50\nfirst <b>text</b>\n\n=== step 100\nsecond\n\n")
    (folder / "config.yaml").write_text("trainer: {max_steps: 100}\nmodel: {dims: 256, rotary: {class_path: my.Own}}\n")
    return folder


def test_a_page_holds_what_the_run_wrote_and_refers_to_nothing_outside(tmp_path):
    page = report_page(write_run(tmp_path / "runs/mine"), 100)
    checker = Balance()
    checker.feed(page)
    assert checker.open == []
    assert not re.search(r"(src|href)=|url\(|<script|@import", page)
    assert "validation loss 2.1 (best 2.1)" in page
    labels = re.findall(r'aria-label="([^"]*)"', page)
    assert labels == [
        "loss (nats a token) over optimizer steps",
        "learning rate over optimizer steps",
        "rotary base over optimizer steps",
        "tokens a second, validation left out over optimizer steps",
    ]
    first = page[page.index("<svg") : page.index("</svg>")]
    assert first.count("<polyline") == 2  # train and validation in one chart
    assert "first &lt;b&gt;text&lt;/b&gt;" in page
    assert f"cubelet fit --config {tmp_path}/runs/mine/config.yaml" in page
    assert re.search(r"<td>model.dims</td><td>256</td><td>128</td>", page)
    assert re.search(r"<td>model.rotary.class_path</td><td>my.Own</td><td>cubelet\S+</td>", page)
    assert "prefers-color-scheme: dark" in page


def test_equal_schedules_are_one_line_and_missing_files_are_left_out(tmp_path):
    page = report_page(write_run(tmp_path / "one"))
    second = page.split("<svg")[2]
    assert second.count("<polyline") == 1
    (tmp_path / "empty").mkdir()
    assert "<svg" not in report_page(tmp_path / "empty", 0)
    assert read_metrics(tmp_path / "none.csv") == {}
    assert read_samples(tmp_path / "none.txt") == []


def test_charts_leave_out_what_is_not_finite_and_survive_a_single_point():
    assert line_chart({"loss": [(0, float("nan"))]}, "loss") == ""
    assert line_chart({}, "loss") == ""
    assert "nan" not in line_chart({"loss": [(0, 1.0), (1, float("inf")), (2, 1.0)]}, "loss")
    assert line_chart({"loss": [(5, 2.0)]}, "loss").count("<circle") == 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1.59, 4.2), (0, 2000), (1e-5, 3e-3), (-3, 7)])
def test_ticks_are_few_round_and_inside(low, high):
    marks = ticks(low, high)
    assert 3 <= len(marks) <= 6
    assert low <= marks[0] <= marks[-1] <= high
    assert (show(2000.0), show(1.6234), show(0.00003), show(0)) == ("2,000", "1.623", "3e-05", "0")


def test_nothing_changed_is_said():
    import yaml

    from cubelet.common.shipped_files import PACKAGE

    assert difference_table(yaml.safe_load((PACKAGE / "configs/text.yaml").read_text())) == "<p>nothing</p>"


def test_a_full_disk_ends_the_report_and_not_the_run(tmp_path):
    report = RunReport()
    report._folder = tmp_path / "file"
    (tmp_path / "file").write_text("no folder")
    trainer = SimpleNamespace(loggers=[], global_step=3, sanity_checking=False, state=SimpleNamespace(fn="fit"))
    with pytest.warns(UserWarning, match="RunReport stops writing"):
        report.on_validation_end(trainer, None)
    report.on_fit_end(trainer, None)


@pytest.mark.slow
def test_a_fit_leaves_a_page(cubelet, tmp_path):
    cubelet("fit")
    (page,) = (tmp_path / "runs").glob("*/report.html")
    text = page.read_text()
    assert text.count("<svg") == 4
    assert "step 4" in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1400])
def test_the_page_is_looked_at_without_overflow_or_empty_charts(width, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("the page was not looked at: there is no chromium here")
    page = report_page(write_run(tmp_path / "runs/mine"), 100)
    probe = (
        "<script>const all = [...document.querySelectorAll('polyline')].map(l => l.getBoundingClientRect());"
        "document.title = [document.documentElement.scrollWidth <= innerWidth,"
        "all.length, all.every(r => r.width > 100)].join()</script></body>"
    )
    (tmp_path / "page.html").write_text(page.replace("</body>", probe))
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},900", "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "<title>true,5,true</title>" in done.stdout
