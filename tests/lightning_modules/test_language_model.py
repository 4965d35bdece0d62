"""LanguageModel: its loss against the definition, whole-split validation, hyper-parameters, groups and schedule."""

import math
from functools import partial

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from cubelet.common.errors import ConfigError
from cubelet.datamodules import TextDataModule
from cubelet.lightning_modules import LanguageModel
from cubelet.models.attention import MultiHeadAttention
from cubelet.models.blocks import ShortConvBlock
from cubelet.models.rotary import CombinedRotary, RoPE
from cubelet.optimizers import FAM, WarmupCosine
from tests.reference.nudge import nudge


def small(**options):
    options.setdefault("optimizer", partial(torch.optim.AdamW, lr=0.01))
    return LanguageModel(28, dims=32, layers=2, heads=4, **options)


def trainer(tmp_path, **options):
    settings = {
        "accelerator": "cpu",
        "max_steps": 3,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**(settings | options))


@pytest.fixture
def data(corpus, tmp_path):
    return TextDataModule(str(corpus), context_length=16, batch_size=4, cache_dir=str(tmp_path / "cache"))


def test_loss_is_the_mean_cross_entropy_of_what_counts():
    model = nudge(small())
    batch = {"tokens": torch.randint(28, (3, 7)), "targets": torch.randint(28, (3, 7))}
    batch["targets"][1, 4:] = -100
    chances = model(batch["tokens"]).log_softmax(-1)
    slow = [-chances[b, t, batch["targets"][b, t]] for b in range(3) for t in range(7) if batch["targets"][b, t] >= 0]
    torch.testing.assert_close(model.loss(batch)[0], torch.stack(slow).mean())


@pytest.mark.slow
def test_packed_documents_of_a_batch_do_not_see_each_other():
    model = nudge(small(rotary=RoPE))
    tokens, targets = torch.randint(28, (2, 1, 12), generator=torch.Generator().manual_seed(0))
    packed, _ = model.loss({"tokens": tokens, "targets": targets, "documents": torch.tensor([[0] * 5 + [1] * 7])})
    alone = [
        model.loss({"tokens": tokens[:, part], "targets": targets[:, part]})[0] for part in (slice(0, 5), slice(5, 12))
    ]
    torch.testing.assert_close(packed, (5 * alone[0] + 7 * alone[1]) / 12)


@pytest.mark.parametrize("val_batch_size", [1, 3, 64])
def test_validation_is_the_whole_split_whatever_the_batch_size(data, tmp_path, val_batch_size):
    model = nudge(small())
    data.val_batch_size = val_batch_size
    (logged,) = trainer(tmp_path).validate(model, data, verbose=False)
    total, count = 0.0, 0
    for batch in data.val_dataloader():
        for row, targets in zip(batch["tokens"], batch["targets"], strict=True):
            kept = targets >= 0
            if kept.any():
                loss = F.cross_entropy(model(row[None])[0][kept], targets[kept], reduction="sum")
                total, count = total + float(loss), count + int(kept.sum())
    assert logged["val_loss"] == pytest.approx(total / count, rel=1e-5)
    assert logged["val_bpc"] == pytest.approx(total / count / math.log(2) / data.characters_per_token, rel=1e-5)
    assert logged["val_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


@pytest.mark.slow
def test_a_model_built_in_python_loads_from_its_path_alone(data, tmp_path):
    parts = {
        "rotary": partial(CombinedRotary, pairs="adjacent"),
        "attention": partial(MultiHeadAttention, qk_norm=True),
        "block": partial(ShortConvBlock, taps=4),
        "optimizer": partial(FAM, lr=0.1),
        "scheduler": partial(WarmupCosine, warmup=1, total=5),
    }
    model = small(**parts)
    fitted = trainer(tmp_path)
    fitted.fit(model, data)
    fitted.save_checkpoint(tmp_path / "model.ckpt")
    stored = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["rotary"]["init_args"] == {"pairs": "adjacent"}
    again = LanguageModel.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    tokens = torch.randint(28, (2, 9))
    assert torch.equal(again.eval()(tokens), model.eval()(tokens))
    assert again.tokenizer.sha256 == data.tokenizer.sha256
    assert again.decoder.blocks[0].attention.qk_norm
    trainer(tmp_path, max_steps=5).fit(small(**parts), data, ckpt_path=str(tmp_path / "model.ckpt"))


@pytest.mark.slow
def test_a_component_without_a_name_is_asked_for_on_loading(data, tmp_path):
    fitted = trainer(tmp_path)
    fitted.fit(small(rotary=lambda dims, heads: RoPE(dims, heads, base=77.0)), data)
    fitted.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(ImportError, match="pass it again by keyword"):
        LanguageModel.load_from_checkpoint(tmp_path / "model.ckpt")
    again = LanguageModel.load_from_checkpoint(tmp_path / "model.ckpt", rotary=partial(RoPE, base=77.0))
    assert float(again.decoder.blocks[0].attention.rotary.base) == 77.0


def test_weights_of_another_model_are_told_in_one_sentence():
    with pytest.raises(ValueError, match=r"missing \(first: decoder.blocks.0.*another configuration"):
        small(rotary=CombinedRotary).load_state_dict(small(rotary=RoPE).state_dict())


@pytest.mark.slow
def test_parameter_groups_carry_the_configured_rate_and_every_parameter_once(data, tmp_path):
    model = small(rotary=CombinedRotary, optimizer=partial(torch.optim.AdamW, lr=0.02, weight_decay=0.3))
    fitted = trainer(tmp_path, max_steps=1)
    fitted.fit(model, data)
    (optimizer,) = fitted.optimizers
    grouped = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {g["lr"] for g in optimizer.param_groups} <= {0.02, 0.02 * 0.8}
    angles = {id(b.attention.rotary.thetas) for b in model.decoder.blocks}
    for group in optimizer.param_groups:
        if angles & {id(p) for p in group["params"]}:
            assert group["weight_decay"] == 0


@pytest.mark.slow
def test_an_open_schedule_gets_the_runs_length_and_stretches_with_it(data, tmp_path):
    parts = {"scheduler": partial(WarmupCosine, warmup=0, shape="linear")}
    first = trainer(tmp_path, max_steps=4)
    first.fit(small(**parts), data)
    (config,) = first.lr_scheduler_configs
    assert config.scheduler.total == 4
    assert config.scheduler.get_last_lr()[0] == 0
    first.save_checkpoint(tmp_path / "model.ckpt")
    second = trainer(tmp_path, max_steps=8)
    second.fit(small(**parts), data, ckpt_path=str(tmp_path / "model.ckpt"))
    (config,) = second.lr_scheduler_configs
    assert config.scheduler.total == 8
    third = trainer(tmp_path, max_steps=2)
    third.fit(small(scheduler=partial(WarmupCosine, warmup=50)), data)  # shorter than its warm-up
    assert 0 < third.lr_scheduler_configs[0].scheduler.get_last_lr()[0] < 0.01


@pytest.mark.slow
def test_penalties_reach_the_loss(data, tmp_path):
    class Compare(L.Callback):
        expected = seen = None

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.expected = module.loss(batch)[0] + 2.0 * module.decoder.penalty()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.seen = outputs["loss"]

    model, compare = nudge(small(rotary=partial(CombinedRotary, matrix="free"), penalty_weight=2.0)), Compare()
    assert float(model.decoder.penalty()) > 0
    trainer(tmp_path, max_steps=1, callbacks=[compare]).fit(model, data)
    torch.testing.assert_close(compare.seen, compare.expected)


def test_varied_blocks_are_drawn_once_and_stored_as_drawn():
    model = small(varied_blocks={"seed": 3, "activations": ["gelu", "silu"]})
    drawn = model.hparams["varied_blocks"]
    assert [set(one) for one in drawn] == [{"heads", "activation", "norm", "dropout"}] * 2
    again = LanguageModel(**model.hparams)
    again.load_state_dict(model.state_dict())
    for one, block in zip(drawn, again.decoder.blocks, strict=True):
        assert block.attention.heads == one["heads"]
        assert block.mlp.activation == one["activation"]


def test_too_few_random_positions_are_told_before_the_first_step(data, tmp_path):
    model = LanguageModel(data.vocab_size, dims=16, layers=1, heads=2, position_range=4)
    with pytest.raises(ConfigError, match=r"position_range 4 has no room for rows of \d+ tokens"):
        trainer(tmp_path).fit(model, data)


def test_sampling_needs_a_tokenizer_and_a_prompt(data):
    model = small()
    with pytest.raises(RuntimeError, match="no tokenizer"):
        model.sample_text("the")
    model.tokenizer = data.tokenizer
    with pytest.raises(ValueError, match="prompt is empty"):
        model.sample_text("")
    assert model.sample_text("the", 9, seed=4) == model.sample_text("the", 9, seed=4)
    assert len(model.sample_text("the", 40)) == 43
