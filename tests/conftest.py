"""A small text and a command that trains a small model on it, in this process."""

import signal

import pytest

from cubelet.cli.main import main

# A shell starts what runs in the background with Ctrl-C ignored, and what this process starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = "the quick brown fox jumps over the lazy dog and runs away from every noisy cat\n"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text(WORDS * 60)
    return path


@pytest.fixture
def small(tmp_path, corpus):
    """Arguments of a small, quick run that writes under tmp_path."""
    return [
        f"--data.corpus={corpus}",
        f"--data.cache_dir={tmp_path / 'cache'}",
        f"--trainer.default_root_dir={tmp_path / 'runs'}",
        "--data.context_length=16",
        "--data.batch_size=4",
        "--model.dims=32",
        "--model.layers=2",
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.accelerator=cpu",
        "--callbacks.progress=null",
        "--trainer.enable_progress_bar=false",
        '--callbacks.samples.prompts=["the "]',
        "--callbacks.samples.max_new_tokens=40",
    ]


@pytest.fixture
def cubelet(small):
    """cubelet("fit", "--config=…", …) with the small run's arguments added."""

    def run(subcommand, *arguments):
        main([subcommand, "--config=configs/text.yaml", *small, *arguments])

    return run


@pytest.fixture
def refused(capsys):
    """refused("fit", "--model.dimz=3", …): what the command says on stderr when it ends with status 2, in one line."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        assert stop.value.code == 2
        message = capsys.readouterr().err
        lines = [line for line in message.splitlines() if "Warning" not in line]
        assert len(lines) == 1, message
        assert lines[0].startswith("error: ")
        return lines[0]

    return run
