import pytest
import torch

from cubelet.callbacks import TextSamples
from tests.reference.callbacks import MemoryLogger, Small, train


class Writer(Small):
    """Continues with its mode, its step and a random number, which it draws carelessly from the global generator."""

    def sample_text(self, prompt, max_new_tokens, *, temperature, top_k, seed):
        assert not torch.is_grad_enabled()
        mode = "training" if self.training else "evaluation"
        torch.rand(3)
        return f"{prompt} {mode} {max_new_tokens} {temperature} {top_k} {seed}"


def fit(callbacks, steps=8, module=None, **arguments):
    arguments = {"limit_val_batches": 1, "val_check_interval": 2, "num_sanity_val_steps": 1} | arguments
    return train(module or Writer(), callbacks, steps, **arguments)


def test_writes_after_every_other_validation(tmp_path):
    logger = MemoryLogger(tmp_path)
    fit([TextSamples(["To", "Or"], 2, max_new_tokens=5, temperature=0.5, top_k=3, seed=4)], logger=logger)
    expected = "".join(
        f"=== step {step}\n{prompt} evaluation 5 0.5 3 4\n\n" for step in (4, 8) for prompt in ("To", "Or")
    )
    assert (tmp_path / "samples.txt").read_text() == expected
    texts = [text for tag, text in logger.experiment.texts if tag == "samples"]
    assert len(texts) == 2
    assert "Or evaluation 5" in texts[0]


def test_training_is_the_same_with_and_without():
    runs = []
    for callbacks in ([TextSamples()], []):
        torch.manual_seed(0)
        module = Writer()
        fit(callbacks, module=module)
        runs.append([*module.parameters(), torch.get_rng_state()])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_a_resumed_run_writes_nothing_twice(tmp_path):
    def callback():
        return TextSamples("x", 2)

    trainer = fit([callback()], 5, Writer(rows=8), val_check_interval=1, logger=MemoryLogger(tmp_path))
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    fit([callback()], 8, Writer(rows=8), val_check_interval=1, logger=MemoryLogger(tmp_path))  # went on, was lost
    fit(
        [callback()], 10, Writer(rows=8), val_check_interval=1, logger=MemoryLogger(tmp_path),
        ckpt_path=tmp_path / "five.ckpt",
    )  # fmt: skip
    heads = [line for line in (tmp_path / "samples.txt").read_text().splitlines() if line.startswith("===")]
    assert heads == [f"=== step {step}" for step in (2, 4, 6, 8, 10)]


def test_works_without_any_logger(tmp_path):
    fit([TextSamples()], default_root_dir=tmp_path)
    assert "=== step 2" in (tmp_path / "samples.txt").read_text()


def test_idle_or_strict():
    with pytest.warns(UserWarning, match="sample_text"):
        fit([TextSamples()], module=Small())
    with pytest.raises(ValueError, match="sample_text"):
        fit([TextSamples(strict=True)], module=Small())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"prompts": []}, "prompts"), ({"every_n_validations": 0}, "0"), ({"max_new_tokens": 0}, "0")],
)
def test_bad_arguments(arguments, word):
    with pytest.raises(ValueError, match=word):
        TextSamples(**arguments)


def test_an_unwritable_folder_does_not_end_the_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    logger = MemoryLogger(tmp_path / "file" / "below")
    with pytest.warns(UserWarning, match=r"TextSamples stops writing .*samples\.txt"):
        trainer = fit([TextSamples()], logger=logger)
    assert trainer.global_step == 8
    assert len([tag for tag, _ in logger.experiment.texts]) == 4


def test_a_new_run_in_the_same_folder_leaves_the_texts_of_the_last_one(tmp_path):
    for _ in range(2):
        fit([TextSamples()], 2, logger=MemoryLogger(tmp_path))
    assert (tmp_path / "samples.1.txt").read_text() == (tmp_path / "samples.txt").read_text()
