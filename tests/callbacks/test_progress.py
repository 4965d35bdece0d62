"""Progress of a run at several widths, in a pseudo-terminal and without one."""

import re
import time

import pytest

from cubelet.callbacks.progress import ProgressBar, clock, number
from cubelet.cli.main import main
from tests.reference.terminal import run_in_terminal


def train(small, *more):
    keep = [a for a in small if "progress" not in a]
    main(["fit", *keep, "--trainer.max_steps=12", "--trainer.val_check_interval=6", *more])


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_line_never_wraps_and_says_how_far_the_run_is(columns, small):
    output = run_in_terminal(lambda: train(small, "--callbacks.progress.refresh_rate=1"), columns)
    output = re.sub(r"\x1b\[[0-9;]*m", "", output)  # colours
    assert "finished at step 12" in output
    states = re.findall(r"\r\x1b\[K(step [^\r\n]*)", output)
    assert states
    assert max(map(len, states)) < columns
    assert re.fullmatch(r"step 12/12  100%  loss \d\.\d{3}  val \d\.\d{3}(  [\d.]+k? tokens/s)?", states[-1])
    assert ("tokens/s" in states[-1]) == (columns > 60 or len(states[-1]) < 60)
    first = output.index("cubelet fit: text")
    rows = ("model ", "parts ", "device ", "data ", "length ", "folder ")
    assert first < min(map(output.index, rows))
    assert all(output.index(row) < output.index(states[0]) for row in rows)
    header = output[first : output.index("folder ")].splitlines()
    assert max(len(line) for line in header if not line.startswith("data ")) <= 80  # there a path of the user's stands


def test_without_a_terminal_there_are_plain_lines_also_for_each_validation(small, capsys):
    train(small, "--callbacks.progress.plain_seconds=1000")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [re.search(r"step (\d+)/12", line)[1] for line in lines] == ["1", "6", "12", "12"]
    assert all("\r" not in line and "\x1b" not in line for line in lines)


@pytest.mark.slow
def test_a_run_that_goes_on_with_other_epochs_is_never_beyond_its_end(small, capsys):
    keep = [*(a for a in small if "progress" not in a), "--trainer.max_steps=-1"]
    main(["fit", *keep, "--run_name=a", "--trainer.max_epochs=1", "--data.batches_per_epoch=12"])
    for batches, epochs, accumulate, ends in ((3, 3, 1, 18), (8, 5, 2, 26)):
        capsys.readouterr()
        main([
            "fit", *keep, "--ckpt_path=last", f"--trainer.max_epochs={epochs}", f"--data.batches_per_epoch={batches}",
            f"--trainer.accumulate_grad_batches={accumulate}",
        ])  # fmt: skip
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
        assert {re.search(r"step \d+/(\d+)", line)[1] for line in lines} == {str(ends)}
        assert lines[-1].startswith(f"step {ends}/{ends}  100%")


def test_a_switched_off_bar_and_other_ranks_say_nothing(small, capsys):
    train(small, "--trainer.enable_progress_bar=false")
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]


def test_numbers_have_the_digits_that_matter():
    assert (number(1.23456), number(13_210.0, True), number(999.6, True), number(2.5e6, True)) == (
        "1.235",
        "13.2k",
        "1000",
        "2.5M",
    )
    assert clock(3599.6) == "1:00:00"


def test_the_time_of_validations_is_no_time_of_training():
    from cubelet.lightning_modules import LanguageModel

    model = LanguageModel(5, dims=8, layers=1, heads=2)
    model._clock = time.monotonic()
    before = model._clock
    model.on_validation_start()
    time.sleep(0.05)
    model.on_validation_end()
    assert model._clock - before >= 0.05


def test_the_bar_is_deep_copyable_before_a_run():
    import copy

    assert copy.deepcopy(ProgressBar(plain_seconds=3)).names == ProgressBar().names
