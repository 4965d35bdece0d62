"""A sharded checkpoint, a folder with a file from each rank, resumes and starts runs as a file does."""

import pytest
import torch

from cubelet.cli.main import main
from cubelet.cli.run import RUN_VARIABLE
from cubelet.cli.run_start import read_weights

pytestmark = pytest.mark.slow


def test_a_sharded_checkpoint_resumes_and_gives_its_weights(tmp_path, corpus, monkeypatch):
    monkeypatch.setenv(RUN_VARIABLE, "")
    small = [
        f"--data.corpus={corpus}", f"--data.cache_dir={tmp_path / 'cache'}", "--data.context_length=16",
        "--data.batch_size=4", "--model.dims=16", "--model.layers=1", "--model.heads=2", "--callbacks.fam=null",
        "--model.optimizer.init_args.base=adamw",  # Muon needs whole matrices

        "--trainer.val_check_interval=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--callbacks.samples=null", "--callbacks.rotation=null", f"--trainer.default_root_dir={tmp_path / 'runs'}",
    ]  # fmt: skip
    sharded = [
        "--config=strategy/fsdp2", "--trainer.devices=1", "--trainer.strategy.save_distributed_checkpoint=true",
        "--trainer.strategy.process_group_backend=gloo",
    ]  # fmt: skip
    main(["fit", "--config=text", *sharded, *small, "--trainer.max_steps=4", "--run_name=first"])
    torch.distributed.destroy_process_group()
    folder = tmp_path / "runs/first/checkpoints/last.ckpt"
    assert (folder / "meta.pt").is_file()
    assert torch.load(folder / "meta.pt", weights_only=True)["global_step"] == 4
    main(["fit", "--config=text", *sharded, *small, "--trainer.max_steps=6", "--ckpt_path=last"])
    torch.distributed.destroy_process_group()
    assert torch.load(folder / "meta.pt", weights_only=True)["global_step"] == 6
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == {"first"}
    weights = read_weights(str(folder))
    main(["fit", "--config=text", *small, "--trainer.max_steps=1", f"--init_from={folder}", "--run_name=plain",
          "--model.optimizer.init_args.lr=0.0"])  # fmt: skip
    plain = torch.load(tmp_path / "runs/plain/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(plain["decoder.embedding.weight"], weights["decoder.embedding.weight"])


def test_an_optimizer_that_needs_whole_matrices_is_refused_before_the_first_step(tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.setenv(RUN_VARIABLE, "")
    with pytest.raises(SystemExit):
        main([
            "fit", "--config=text", "--config=strategy/fsdp2", f"--data.corpus={corpus}", "--trainer.accelerator=cpu",
            f"--data.cache_dir={tmp_path / 'cache'}", "--trainer.devices=1", "--model.dims=16", "--model.heads=2",
            "--model.layers=1", f"--trainer.default_root_dir={tmp_path}",
            "--trainer.strategy.process_group_backend=gloo",
        ])  # fmt: skip
    torch.distributed.destroy_process_group()
    assert "error: model.optimizer.base=muon: Muon needs whole matrices, and a (" in capsys.readouterr().err
