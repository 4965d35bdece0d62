"""The page of a run: made from its files, self-contained, nothing empty, nothing broken by what a model writes."""

import html.parser
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from cubelet.callbacks.config_difference import difference_table, differences
from cubelet.callbacks.line_chart import line_chart, show, ticks
from cubelet.callbacks.report_figures import read_records
from cubelet.callbacks.run_report import RunReport, read_metrics, read_samples, report_page, spread
from cubelet.common.shipped_files import PACKAGE

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


def write_figures(folder):
    """What AttentionMaps, RotationMonitor and FAMMonitor leave in a run's folder."""
    weights = np.tril(np.random.default_rng(0).random((2, 5, 5)))
    weights /= weights.sum(-1, keepdims=True)
    maps = {"step": 100, "tokens": list("He<y>"), "weights": {"blocks.0.attention": weights.tolist()}}
    (folder / "attention.json").write_text(json.dumps(maps))
    looks = [
        {"step": step, "name": "rotary.0", "angles": [0.1 * step / 50, 2.0, -3.0], "frequencies": [1.0, 0.1, 0.01]}
        for step in (50, 100)
    ]
    (folder / "rotation.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    dumps = [
        {
            "step": step,
            "name": name,
            "handler": kind,
            "bands": [0.2, 0.3 + 0.1 * (step > 50), 0.5],
            "white": [0.3, 0.4, 0.3],
        }
        | ({"period": 8.0} if kind == "attention" else {})
        for step in (50, 100)
        for name, kind in (("a", "attention"), ("b", "attention"), ("c", "conv"))
    ]
    (folder / "fam.jsonl").write_text("".join(json.dumps(dump) + "\n" for dump in dumps) + '{"step": 150, "na')


def test_attention_rotations_and_spectra_have_axes_and_units(tmp_path):
    folder = write_run(tmp_path / "runs/mine")
    write_figures(folder)
    page = report_page(folder, 100)
    checker = Balance()
    checker.feed(page)
    assert checker.open == []
    assert not re.search(r"(src|href)=|url\(|<script|@import", page)
    assert re.findall(r'aria-label="([^"]*)"', page)[4:] == [
        "head 0: query over key",
        "head 1: query over key",
        "rotation planes: |angle| (rad) over optimizer steps",
        "frequency (log₁₀ rad a position) over pair m",
        "attention: cycles a step over optimizer steps",
        "conv: band, slow to fast over optimizer steps",
    ]
    assert "step 100, on &#x27;He&lt;y&gt;&#x27;" in page
    for text in (
        "share of planes",
        "above white noise (1 = twice)",
        "share of the power",
        "step 50: -2",
        "&lt;</text>",
    ):
        assert text in page


def test_a_long_file_is_read_at_evenly_spaced_steps_and_a_torn_line_is_left_out(tmp_path):
    path = tmp_path / "fam.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "name": "a"}) + "\n" for step in range(1, 1001)) + '{"step": 1001, '
    )
    steps = [record["step"] for record in read_records(path)]
    assert 120 <= len(steps) <= 160
    assert steps[-1] > 990
    assert len(set(np.diff(steps))) == 1
    assert list(read_records(tmp_path / "none.jsonl")) == []


def test_samples_are_shown_over_the_whole_run():
    assert spread(list(range(11)), 5) == [0, 2, 5, 8, 10]
    assert spread([1, 2], 5) == [1, 2]


def test_options_that_the_base_does_not_name_are_compared_with_the_default_of_their_class():
    base = yaml.safe_load((PACKAGE / "configs/text.yaml").read_text())
    config = {
        "model_class": "cubelet.lightning_modules.LanguageModel",
        "trainer": {"max_steps": 2000, "accumulate_grad_batches": 2, "default_root_dir": "elsewhere"},
        "model": {
            "dropout": 0.1,
            "cross_attention": False,
            "rotary": {
                "class_path": "cubelet.models.rotary.CombinedRotary",
                "init_args": {"base": 500.0, "theta_scale": True},
            },
            "attention": {"class_path": "cubelet.models.attention.MultiHeadAttention", "init_args": {"kv_heads": 2}},
        },
        "callbacks": {"cycler": None},
    }
    told = {key: (own, usual) for key, own, usual in differences(config, base)}
    assert told["model.dropout"] == (0.1, 0.0)
    assert told["trainer.accumulate_grad_batches"] == (2, 1)
    assert told["model.rotary.init_args.base"] == (500.0, 10_000.0)
    assert told["model.attention.init_args.kv_heads"] == (2, None)  # an option of the class above
    assert told["callbacks.cycler.class_path"] == (None, "cubelet.callbacks.ParameterCycler")
    assert not [key for key in told if "theta_scale" in key or "cross_attention" in key or "root_dir" in key]


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
    base = yaml.safe_load((PACKAGE / "configs/text.yaml").read_text())
    assert difference_table(base, base) == "<p>nothing</p>"


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
    assert text.count("<svg") == 4 + 2 * 4  # lines over steps, and four heads of two layers
    assert "step 4" in text
    assert "<td>model.dims</td><td>32</td><td>128</td>" in text


def find_browser():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("the page was not looked at: there is no chromium here (apt-get install chromium)")


def look(page, width, *options):
    """What headless chromium prints for a file with these options."""
    command = [find_browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},3600", *options, f"file://{page}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture
def page(tmp_path):
    folder = write_run(tmp_path / "runs/mine")
    write_figures(folder)
    (folder / "report.html").write_text(report_page(folder, 100))
    return folder / "report.html"


# Where each figure lies, how far the page reaches to the right, and how many labels stick out of their figure.
PROBE = """<script>
const box = element => element.getBoundingClientRect();
const sticksOut = text => {
  const [t, s] = [box(text), box(text.closest('svg'))];
  return t.left < s.left - 1 || t.right > s.right + 1 || t.top < s.top - 1 || t.bottom > s.bottom + 1;
};
document.title = JSON.stringify({
  width: document.documentElement.scrollWidth,
  window: innerWidth,
  figures: [...document.querySelectorAll('svg')].map(box).map(r => [r.x, r.y, r.width, r.height].map(Math.round)),
  outside: [...document.querySelectorAll('svg text')].filter(sticksOut).length,
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [500, 1400])
def test_the_page_is_looked_at_without_overflow_or_empty_charts(width, scheme, page):
    options = ["--force-dark-mode"] if scheme == "dark" else []
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", PROBE))
    title = html.unescape(re.search("<title>(.*?)</title>", look(probed, width, *options, "--dump-dom"))[1])
    facts = json.loads(title)
    assert facts["width"] <= facts["window"]
    assert facts["outside"] == 0  # no label is cut off
    assert len(facts["figures"]) == 10
    look(page, width, *options, f"--screenshot={page.with_name('look.png')}")
    pixels = np.asarray(Image.open(page.with_name("look.png")).convert("RGB")).astype(int)
    paper = pixels[2, 2]
    assert (paper.mean() < 60) == (scheme == "dark")
    for x, y, across, down in facts["figures"]:
        assert across > 200
        figure = pixels[y : y + down, x : x + across]
        inked = np.abs(figure - paper).max(-1) > 40
        assert inked.mean() > 0.01  # something is drawn
        assert inked.any(0).mean() > 0.5  # over most of its width
        assert len(np.unique(figure[inked] // 32, axis=0)) >= 3  # text, and colours
