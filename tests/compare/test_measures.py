"""What an experiment compares: how it is written, what of a run it is, and that verdicts go by it."""

import csv

import pytest

from cubelet.common.errors import ConfigError
from cubelet.compare.experiment import AGAIN, BETTER, NOISE, WORSE, load_experiment
from cubelet.compare.export import export
from cubelet.compare.measures import VAL_LOSS, read_measure
from cubelet.compare.processes import RunResult
from cubelet.compare.render import to_markdown
from cubelet.compare.report import report
from cubelet.compare.runner import ExperimentResult, summary
from cubelet.compare.runs import Run
from cubelet.compare.tables import summary_table

LENGTHS = (1, 2, 4, 8)
RUN = {
    "val_loss": 0.5,
    "scores": {"val_loss": 0.5, "val_wer": 0.25},
    "lengths": {"64": 0.5, "128": 1.0, "256": 3.0, "512": None},
    "exact": {"64": 0.9, "128": 0.75, "256": 0.25},
}


@pytest.mark.parametrize(
    ("raw", "value", "is_higher_better"),
    [
        ("val_loss", 0.5, False),
        ("val_wer", 0.25, False),
        ("val_none", None, False),
        ("exact at 4", 0.25, True),
        ("exact at 2, 4", 0.5, True),
        ("exact at 8", None, True),
        ("loss at 4", 3.0, False),
        ("loss at 4, 8", None, False),
        ({"name": "val_wer", "better": "higher"}, 0.25, True),
    ],
)
def test_a_measure_is_its_part_of_a_run(raw, value, is_higher_better):
    measure = read_measure(raw, LENGTHS, "file")
    assert measure.of(RUN, LENGTHS) == value
    assert measure.is_higher_better is is_higher_better


def test_lengths_are_multiples_wherever_they_stand():
    """The first context is not the trained one where 1 is not among the lengths, or not the first."""
    assert read_measure("exact at 2", (4, 2), "file").of({**RUN, "lengths": {"128": 1.0, "256": 3.0}}, (4, 2)) == 0.75
    assert read_measure("exact at 2", LENGTHS, "file").of({"val_loss": 1.0}, LENGTHS) is None


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("exact", "must be val_loss"),
        ("exact at", "must be val_loss"),
        ("exact at 1.2.3", "must be val_loss"),
        ("exact at 3", "asks for 3 × the trained length, and lengths are 1, 2, 4, 8"),
        (4, "must be val_loss"),
        (None, "must be val_loss"),
        ({"name": "val_wer", "best": "higher"}, "no key 'best'"),
        ({"name": "val_wer", "better": "up"}, "must be lower or higher"),
        ({"name": "val_wer", "worth": -1}, "must be a number"),
        ({"better": "lower"}, "must be val_loss"),
    ],
)
def test_a_wrong_measure_is_told_with_its_file(raw, words):
    with pytest.raises(ConfigError, match=words) as told:
        read_measure(raw, LENGTHS, "my.yaml")
    assert str(told.value).startswith("my.yaml: ")


def made_up(file, tmp_path, shares):
    """Runs whose losses hardly differ, and whose shares of right rows at twice the length are `shares`."""
    made = ExperimentResult(load_experiment(file), tmp_path / "runs")
    controls = {AGAIN: 0.0, BETTER: 0.0, WORSE: 0.0, NOISE: 0.0}
    for place, (name, share) in enumerate({**shares, **controls}.items()):
        for seed in made.experiment.seeds:
            loss = 2 + 0.1 * seed + (name == WORSE) + 0.001 * place * (-1) ** seed * (name in shares)
            exact = {"16": 0.9, "32": share and share + 0.01 * (seed + place) % 0.03}
            measures = {"val_loss": loss, "lengths": {"16": loss, "32": loss}, "exact": exact, "train_curve": []}
            made.results.setdefault(name, {})[seed] = RunResult(Run(name, seed, "test", (), f"{name}{seed}"), measures)
    return made


@pytest.fixture
def file(tiny):
    names = {name: [f"a={number}"] for number, name in enumerate(("longer", "shorter", "as short"))}
    return tiny(names, seeds=4, noise=True, measure="exact at 2")


def test_verdicts_go_by_the_measure(file, tmp_path):
    pytest.importorskip("statsmodels", reason="needs the extra `compare`")
    made = made_up(file, tmp_path, {"base": 0.5, "longer": 0.9, "shorter": 0.1, "as short": 0.5})
    found = {name: d.verdict for name, d in made.differences().items()}
    assert found == {"longer": "helps", "shorter": "hurts", "as short": "no difference seen"}
    text = to_markdown(report(made, []))
    assert "Helps: longer (+0.4" in text
    assert "rows right at 2 × the trained length" in text
    assert "0.02 of the rows." in text  # what is worth a word
    assert "nats a token" not in text
    assert [*summary_table([made]).head][2] == "share of rows right at 2 × the trained length minus baseline's [95 %]"
    assert summary(made)["measure"] == "exact at 2"
    _, differences, table = export([made], tmp_path / "export")
    assert {row["measure"] for row in csv.DictReader(differences.open())} == {"exact at 2"}
    assert "rows right at 2" in table.read_text()


def test_no_right_row_on_either_side_is_no_difference_and_not_the_same_model(file, tmp_path):
    pytest.importorskip("statsmodels", reason="needs the extra `compare`")
    made = made_up(file, tmp_path, {"base": 0.0, "longer": 0.4, "shorter": 0.0, "as short": 0.0})
    found = made.differences()
    assert (found["shorter"].verdict, found["shorter"].mean, found["shorter"].p) == ("no difference seen", 0, 1)
    assert found["longer"].verdict == "helps"
    assert "Left out" not in to_markdown(report(made, []))


def test_several_measures_in_one_table_are_named(file, tiny, tmp_path):
    pytest.importorskip("statsmodels", reason="needs the extra `compare`")
    shares = {"base": 0.5, "longer": 0.9}
    other = tiny({"longer": ["a=1"]}, seeds=4)
    table = summary_table([made_up(file, tmp_path, shares), made_up(other, tmp_path, shares)])
    assert table.head[2] == "difference to the baseline [95 %]"
    assert [row[2].partition("] ")[2] for row in table.rows if row[1] == "longer"] == [
        "share of rows right at 2 × the trained length", VAL_LOSS.label
    ]  # fmt: skip


def test_a_measure_that_no_run_has_is_told(file, tmp_path):
    pytest.importorskip("statsmodels", reason="needs the extra `compare`")
    made = made_up(file, tmp_path, {"base": None, "longer": None, "shorter": None, "as short": None})
    [caution] = made.cautions()
    assert caution.startswith("as short, base, longer, shorter: no run has 'exact at 2'")
    assert {d.verdict for d in made.differences().values()} == {"too few runs"}
    assert caution in to_markdown(report(made, []))
