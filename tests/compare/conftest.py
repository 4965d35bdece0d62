"""A small text, and an experiment on it whose runs take a fraction of a second."""

import pytest
import yaml

WORDS = "the quick brown fox jumps over the lazy dog and runs away from every noisy cat\n"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(variants, **keys) writes an experiment file and returns its path."""
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "words.txt").write_text(WORDS * 40)
    base = {
        "trainer": {
            "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "enable_model_summary": False,
            "check_val_every_n_epoch": None, "log_every_n_steps": 5,
        },
        "data": {
            "corpus": str(folder / "words.txt"), "cache_dir": str(folder / "cache"), "context_length": 16,
            "batch_size": 4,
        },
        "model": {
            "dims": 16, "layers": 1, "heads": 2, "dropout": 0.1, "rotary": "cubelet.models.rotary.RoPE",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
        },
        "callbacks": {
            "seed": "cubelet.callbacks.StepSeed", "guard": "cubelet.callbacks.NonFiniteGuard",
            "last": {
                "class_path": "cubelet.callbacks.last_checkpoint.LastCheckpoint",
                "init_args": {"every_n_steps": 4},
            },
        },
    }  # fmt: skip
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    numbers = iter(range(1000))

    def write(variants, **keys):
        file = folder / f"experiment{next(numbers)}.yaml"
        content = {
            "base": "base.yaml", "baseline": "base", "variants": {"base": [], **variants}, "seeds": 2,
            "budgets": {"quick": {"steps": 8}}, "lengths": [1, 2], **keys,
        }  # fmt: skip
        file.write_text(yaml.safe_dump(content))
        return file

    return write
