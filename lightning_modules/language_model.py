"""LanguageModel: what Lightning trains when the job is to predict the next token."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from cubelet.common.errors import ConfigError
from cubelet.models.attention import MultiHeadAttention, attention_maps
from cubelet.models.blocks import ResidualBlock, draw_blocks
from cubelet.models.blocks import varied_blocks as vary
from cubelet.models.decoder import Decoder
from cubelet.models.rotary import CombinedRotary

from .base import Component, Layers, OptionalLayers, SequenceModule, default_optimizer
from .seeded_init import initialize_by_name
from .sharding import shard
from .text_generation import TextGeneration
from .token_mean import TokenMean

INPUTS = ("context", "key_mask", "context_mask", "positions", "documents")  # what a batch may hold for the decoder


class LanguageModel(TextGeneration, SequenceModule):
    """A `Decoder` with its loss, metrics, optimizer and text generation.

    Args:
        vocab_size: number of tokens; the command line links it from the data.
        dims, layers, heads, dropout, tie_embeddings, cross_attention, cross_rotary, position_range: see
            `Decoder`.
        restart_tokens: see `Decoder`.
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
    `documents` (b, s) int64, a number for each document of a packed row; `context` (b, s_enc, dims), `key_mask`,
    `context_mask` and `positions` where the model takes them.

    Example:
        >>> model = LanguageModel(vocab_size=16, dims=32, layers=2, heads=4)
        >>> tokens = torch.zeros(1, 9, dtype=torch.long)
        >>> loss, _ = model.loss({"tokens": tokens[:, :-1], "targets": tokens[:, 1:]})
        >>> loss.shape
        torch.Size([])
    """

    def __init__(
        self,
        vocab_size: int,
        dims: int = 128,
        layers: int = 4,
        heads: int = 4,
        rotary: OptionalLayers = CombinedRotary,
        attention: Component = MultiHeadAttention,
        block: Layers = ResidualBlock,
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
        position_range: int | None = None,
        cross_rotary: Component | None = None,
        restart_tokens: dict[int, int] | list[int] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(varied_blocks, Mapping):
            varied_blocks = draw_blocks(dims, layers, **varied_blocks)
        parts = self.store_arguments(locals())
        self.optimizer, self.scheduler = parts["optimizer"], parts["scheduler"]
        self.penalty_weight, self.cost_weight = penalty_weight, cost_weight
        self.context_length = context_length
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
            cross_rotary=parts["cross_rotary"],
            dropout=dropout,
            tie_embeddings=tie_embeddings,
            position_range=position_range,
            restart_tokens=restart_tokens,
        )
        if init_seed is not None:
            initialize_by_name(self.decoder, init_seed)
        self._features = torch.compile(self.decoder.features) if compile else self.decoder.features
        self._val_loss = TokenMean()
        self.characters_per_token = math.nan

    def forward(self, tokens: Tensor, context: Tensor | None = None, **arguments: Any) -> Tensor:
        """Logits (b, s, vocab_size) float32; see `Decoder.forward`."""
        return self.decoder(tokens, context, **arguments)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Mean cross-entropy (nats a token, 0-dim) of one batch, and the blocks' cost or None."""
        if "tokens" not in batch or "targets" not in batch:
            keys = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(
                f"a batch for LanguageModel is a mapping with tokens and targets, (b, s) int64 each; this one is {keys}"
            )
        inputs: dict[str, Any] = {k: batch[k] for k in INPUTS if k in batch}
        x, cost = self._features(batch["tokens"], **inputs)
        logits = self.decoder.unembed(x)
        return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten()), cost

    def training_losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, cost = self.loss(batch)
        total = loss + self.penalty_weight * self.decoder.penalty()
        values = {"train_loss": loss.detach()}
        if cost is not None:
            total = total + self.cost_weight * cost
            values["train_cost"] = cost.detach()
        return total, values

    def batch_units(self, batch: dict[str, Tensor]) -> float:
        return batch["tokens"].numel()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss, _ = self.loss(batch)
        # Weighted by the number of predicted tokens: the mean over the split, whatever the batch size or rank count.
        count = (batch["targets"] != -100).sum()
        self._val_loss.update(loss, count)

    def on_validation_epoch_end(self) -> None:
        loss = self._val_loss.compute(self.trainer.strategy)
        values = {"val_loss": loss, "val_perplexity": loss.exp()}
        if not math.isnan(self.characters_per_token):
            values["val_bpc"] = loss / math.log(2) / self.characters_per_token
        self.log_dict(values, prog_bar=True, sync_dist=False)

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        loss = self._val_loss.compute(self.trainer.strategy)
        self.log_dict({"test_loss": loss, "test_perplexity": loss.exp()})

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        """Continue each prompt of the batch; the data module says how (`prompts` and `generation`)."""
        return self.sample_texts(batch["prompts"], **batch.get("generation", {}))

    def attention_maps(self, tokens: Tensor) -> dict[str, Tensor]:
        """How much each query takes of each key, for a row of tokens (s,): {name of the attention: (h, s, s)}."""
        maps = attention_maps(self.decoder, lambda: self.decoder(tokens[None]))
        return {name: weights[0] for name, weights in maps.items()}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        self.characters_per_token = float(getattr(data, "characters_per_token", math.nan))
        if self.context_length is None:
            self.context_length = getattr(data, "context_length", None)
        room, longest = self.decoder.position_range, getattr(data, "context_length", None)
        if room is not None and longest is not None and self.decoder.positions_needed(longest) > room:
            raise ConfigError(f"position_range {room} has no room for rows of {longest} tokens; make it longer")

    def configure_model(self) -> None:
        """Under a strategy with a device mesh (`FullyShard`) cut the decoder for FSDP2; otherwise nothing."""
        mesh = self.device_mesh
        if mesh is not None and not isinstance(self.decoder, FSDPModule):
            shard(self.decoder, mesh["data_parallel"], compile=self.hparams["compile"])
            self._features = self.decoder.features
