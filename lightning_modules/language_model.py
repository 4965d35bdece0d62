"""LanguageModel: what Lightning trains when the job is to predict the next token.

Hyper-parameters are stored as plain data (see `components`), so `LanguageModel.load_from_checkpoint(path)` needs
nothing but the path and reads with `weights_only=True`, whether the checkpoint came from the command line or from
Python. The tokenizer travels in the checkpoint too.

Values are logged only on the steps at which the loggers write: a logged value costs 0.3-0.6 ms a step, which a small
model feels.
"""

import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from cubelet.datamodules.tokenizers import tokenizer_from_dict
from cubelet.models.attention import MultiHeadAttention
from cubelet.models.blocks import ResidualBlock, draw_blocks
from cubelet.models.blocks import varied_blocks as vary
from cubelet.models.decoder import Decoder
from cubelet.models.rotary import CombinedRotary
from cubelet.optimizers import FAM, parameter_groups

from .component_config import build, describe, unwrap
from .seeded_init import initialize_by_name
from .sharding import shard

Component = Callable[[int, int], nn.Module]


def default_optimizer(params: Iterable[Any]) -> Optimizer:
    """FAM over AdamW, with settings that train a small decoder (its momentum base needs a far higher rate)."""
    return FAM(params, lr=3e-3, base="adamw", beta2=0.99, weight_decay=0.1)


class LanguageModel(L.LightningModule):
    """A `Decoder` with its loss, metrics, optimizer and text generation.

    Args:
        vocab_size: number of tokens; the command line links it from the data.
        dims, layers, heads, dropout, tie_embeddings, cross_attention: see `Decoder`.
        rotary, attention, block, embedding_rotary, position_embedding: components, see `Decoder`.
        optimizer: parameter groups → optimizer. Groups come from `cubelet.optimizers.parameter_groups`.
        scheduler: optimizer → scheduler, stepped every optimizer step; one with a `total` argument left open gets the
            run's number of optimizer steps.
        penalty_weight: factor on parameter-only penalties (orthogonality, span length).
        cost_weight: factor on activation-dependent costs (gate budgets).
        context_length: longest stretch looked at when generating; the command line links it from the data.
        varied_blocks: options of `cubelet.models.blocks.draw_blocks` (a `seed`, …) to draw each layer's head count,
            activation, norm and dropout, or the drawn list itself; the list is what the checkpoint holds.
        compile: run the decoder through `torch.compile` (a loss of time on CPUs, where it gains 0.97-1.2 times and
            takes half a minute to compile).
        init_seed: draw every parameter from (this seed, its name), so that models with other parts start alike in the
            parameters they share (`cubelet compare`); None draws from torch's generator.

    Batches are dicts: `tokens` (b, s) and `targets` (b, s) int64, targets −100 where nothing is to be predicted;
    `context` (b, s_enc, dims), `key_mask` and `context_mask` where the model takes them.
    """

    def __init__(
        self,
        vocab_size: int,
        dims: int = 128,
        layers: int = 4,
        heads: int = 4,
        rotary: Component | None = CombinedRotary,
        attention: Component = MultiHeadAttention,
        block: Component = ResidualBlock,
        embedding_rotary: Component | None = None,
        position_embedding: Callable[[int], nn.Module] | None = None,
        cross_attention: bool = False,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        optimizer: OptimizerCallable = default_optimizer,
        scheduler: LRSchedulerCallable | None = None,
        penalty_weight: float = 1.0,
        cost_weight: float = 1.0,
        context_length: int | None = None,
        varied_blocks: dict[str, Any] | list[dict[str, Any]] | None = None,
        compile: bool = False,
        init_seed: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(varied_blocks, Mapping):
            varied_blocks = draw_blocks(dims, layers, **varied_blocks)
        given = {k: unwrap(v) for k, v in locals().items() if k not in ("self", "__class__")}
        self.save_hyperparameters({k: describe(v) for k, v in given.items()})
        parts = {k: build(v) for k, v in given.items()}
        self.optimizer, self.scheduler = parts["optimizer"], parts["scheduler"]
        self.penalty_weight, self.cost_weight = penalty_weight, cost_weight
        self.context_length = context_length
        self.tokenizer: Any = None
        self.decoder = Decoder(
            vocab_size,
            dims,
            layers,
            heads,
            rotary=parts["rotary"],
            attention=parts["attention"],
            block=parts["block"] if varied_blocks is None else vary(varied_blocks, block=parts["block"]),
            embedding_rotary=parts["embedding_rotary"],
            position_embedding=parts["position_embedding"],
            cross_attention=cross_attention,
            dropout=dropout,
            tie_embeddings=tie_embeddings,
        )
        if init_seed is not None:
            initialize_by_name(self.decoder, init_seed)
        self._features = torch.compile(self.decoder.features) if compile else self.decoder.features
        self.val_loss_mean = MeanMetric()
        self.characters_per_token = math.nan
        self._clock = 0.0
        self._tokens = 0
        self._open_total = 0  # the length given to a scheduler that leaves it open

    def forward(self, tokens: Tensor, context: Tensor | None = None, **arguments: Any) -> Tensor:
        """Logits (b, s, vocab_size) float32; see `Decoder.forward`."""
        return self.decoder(tokens, context, **arguments)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Mean cross-entropy (nats a token, 0-dim) of one batch, and the blocks' cost or None."""
        inputs: dict[str, Any] = {k: batch[k] for k in ("context", "key_mask", "context_mask") if k in batch}
        x, cost = self._features(batch["tokens"], **inputs)
        logits = self.decoder.unembed(x)
        return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten()), cost

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        loss, cost = self.loss(batch)
        total = loss + self.penalty_weight * self.decoder.penalty()
        if cost is not None:
            total = total + self.cost_weight * cost
        self._tokens += batch["tokens"].numel() * self.trainer.world_size
        if self._log_is_due():
            self._log_training(loss, cost)
        return {"loss": total, "train_loss": loss.detach()}

    def _log_is_due(self) -> bool:
        return self.trainer._logger_connector.should_update_logs or bool(getattr(self.trainer, "fast_dev_run", False))

    def _log_training(self, loss: Tensor, cost: Tensor | None) -> None:
        now = time.monotonic()
        values = {"train_loss": loss.detach()}
        if self._clock:
            values["tokens_per_second"] = torch.tensor(self._tokens / max(now - self._clock, 1e-9))
        if cost is not None:
            values["train_cost"] = cost.detach()
        self._clock, self._tokens = now, 0
        self.log_dict(values, prog_bar=True)

    def on_train_start(self) -> None:
        self._clock, self._tokens = time.monotonic(), 0
        self._stretch_schedule()

    def _stretch_schedule(self) -> None:
        """A run that goes on beyond its first length follows the longer run's schedule, not the restored one's end."""
        for config in self.trainer.lr_scheduler_configs if self._open_total else ():
            scheduler: Any = config.scheduler
            if scheduler.total != self._open_total:
                scheduler.total = self._open_total
                for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_lr(), strict=True):
                    group["lr"] = rate

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss, _ = self.loss(batch)
        # Weighted by the number of predicted tokens: the mean over the split, whatever the batch size or rank count.
        count = (batch["targets"] != -100).sum()
        self.val_loss_mean.update(torch.where(count > 0, loss, 0.0), count)

    def on_validation_epoch_end(self) -> None:
        loss = self.val_loss_mean.compute()
        self.val_loss_mean.reset()
        values = {"val_loss": loss, "val_perplexity": loss.exp()}
        if not math.isnan(self.characters_per_token):
            values["val_bpc"] = loss / math.log(2) / self.characters_per_token
        self.log_dict(values, prog_bar=True, sync_dist=False)

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        loss = self.val_loss_mean.compute()
        self.val_loss_mean.reset()
        self.log_dict({"test_loss": loss, "test_perplexity": loss.exp()})

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        """Continue each prompt of the batch; the data module says how (`prompts` and `generation`)."""
        return [self.sample_text(prompt, **batch.get("generation", {})) for prompt in batch["prompts"]]

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        self.tokenizer = getattr(data, "tokenizer", self.tokenizer)
        self.characters_per_token = float(getattr(data, "characters_per_token", math.nan))
        if self.context_length is None:
            self.context_length = getattr(data, "context_length", None)

    def configure_model(self) -> None:
        """Under a strategy with a device mesh (`FullyShard`) cut the decoder for FSDP2; otherwise nothing."""
        mesh = self.device_mesh
        if mesh is not None and not isinstance(self.decoder, FSDPModule):
            shard(self.decoder, mesh["data_parallel"], compile=self.hparams["compile"])
            self._features = self.decoder.features

    def configure_optimizers(self) -> Any:
        make = self.optimizer
        # The optimizer's own settings, read from one made on a throw-away parameter, so that group factors
        # (a smaller rate for embeddings) apply to whatever rate was configured, of any optimizer class.
        settings = make([nn.Parameter(torch.zeros(1))]).defaults
        groups = parameter_groups(self, lr=settings["lr"], weight_decay=settings.get("weight_decay", 0.0))
        optimizer = make(groups)
        if self.scheduler is None:
            return optimizer
        signature = inspect.signature(self.scheduler).parameters
        total_is_open = "total" in signature and signature["total"].default is None
        extra = {}
        if total_is_open:
            # A trial run shorter than its warm-up stays inside it.
            least = [signature[k].default or 0 for k in ("warmup", "decay_start") if k in signature]
            extra["total"] = self._open_total = max(int(self.trainer.estimated_stepping_batches), *least)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler(optimizer, **extra), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.tokenizer is not None:
            checkpoint["tokenizer"] = self.tokenizer.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("tokenizer")
        if stored is None:
            return
        restored = tokenizer_from_dict(stored)
        if self.tokenizer is not None and self.tokenizer.sha256 != restored.sha256:
            raise ValueError(
                f"the data's vocabulary ({self.tokenizer.vocab_size} tokens) differs from the one this checkpoint was "
                f"trained with ({restored.vocab_size} tokens); use the corpus and tokenizer of that run"
            )
        self.tokenizer = restored

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch, but weights that do not fit are told in one sentence.

        Raises:
            ValueError: missing or unexpected names, or other shapes; the first of each is named.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            own = self.state_dict()
            kinds = {
                "missing": sorted(own.keys() - state_dict.keys()),
                "unexpected": sorted(state_dict.keys() - own.keys()),
                "of another shape": sorted(
                    k for k, v in own.items() if k in state_dict and v.shape != state_dict[k].shape
                ),
            }
            told = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names]
            if not told:
                raise
            raise ValueError(
                f"the checkpoint's weights do not fit this model: {'; '.join(told)}; it was written for another "
                "configuration or by another version of cubelet"
            ) from error

    def sample_text(
        self,
        prompt: str,
        max_new_tokens: int = 300,
        *,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """The prompt and its continuation, a pure function of the weights and `seed`.

        Raises:
            RuntimeError: the model has no tokenizer (built in Python and never fitted on text).
            ValueError: a prompt that is empty or has characters outside the vocabulary.
        """
        if self.tokenizer is None:
            raise RuntimeError(
                "this model has no tokenizer; fit it on a TextDataModule, or load such a run's checkpoint"
            )
        ids = self.tokenizer.encode(prompt)
        if not ids:
            raise ValueError("the prompt is empty; give at least one character to continue")
        generator = torch.Generator(self.device).manual_seed(seed)
        tokens = torch.tensor([ids], device=self.device)
        out = self.decoder.generate(
            tokens,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            context_length=self.context_length,
        )
        return self.tokenizer.decode(out[0].tolist())
