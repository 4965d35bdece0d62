"""The decoder: tokens in, logits out, with position encoding, attention and block as components.

Components arrive as callables of (dims, heads), so the width is written once, here, and a component's own options stay
in its own constructor (a class, or `functools.partial` of one; in YAML `class_path` and `init_args`). The decoder knows
nothing of which component it was given; what depends on activations and belongs to the loss (a gate's budget) comes
back beside the hidden states from `features`.

Embeddings are normalised to unit RMS before the first block: with a small tied embedding the scale of the residual
stream is then set by the blocks alone, and the table's own scale is free to serve the output logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cubelet.common.checks import check_at_least
from cubelet.common.contracts import check_contract

from . import generation
from .attention import MultiHeadAttention, ProjectedAttention
from .attention.masking import document_positions
from .beam_search import beam_search
from .blocks import ResidualBlock
from .cache import KVCache
from .kernels.rms_norm import rms_norm
from .linear import Linear
from .positions import random_positions, restart_positions
from .rotary import CombinedRotary
from .stack import add_cost, check_sizes, make_blocks, repeat, sum_penalties

# What a decoder calls on its blocks, besides calling them.
BLOCK_NEEDS = {
    "new_cache": "(batch_size, max_length) → cache of the layer",
    "penalty": "() → 0-dim tensor",
}


class Decoder(nn.Module):
    """A decoder-only (or, with `cross_attention`, encoder-conditioned) transformer of pluggable parts.

    Args:
        vocab_size: number of tokens.
        dims: model width d.
        layers: number of blocks.
        heads: attention heads h; the rotary turns head_dim = dims / heads features.
        attention: (dims, heads, *, rotary, causal, dropout) → attention module.
        rotary: (dims, heads) → rotary of the self-attention, made for each layer, or None; one that takes `layer` is
            told the layer's index. Or a sequence of these, one per layer or repeated (None: a layer without positions).
        block: (dims, heads, *, attention, rotary, cross_attention, dropout) → block; or a sequence, one per layer or
            repeated.
        embedding_rotary: (dims, heads) → rotary applied once to the embeddings, or None.
        position_embedding: (dims) → module that maps integer positions (s,) or (b, s) to embeddings, added to the
            tokens' own; or None.
        cross_attention: blocks also attend to `context`.
        cross_rotary: (dims, heads) → rotary of the cross-attention: positions on both sides, each counted from 0; None:
            what the encoder wrote into `context` is all that tells its order.
        dropout: on embeddings, and handed to the blocks.
        tie_embeddings: logits use the embedding table.
        checkpoint_blocks: in training, keep only each block's input and compute the block again in the backward pass:
            the same gradients for a third more time, and memory for one block instead of all.
        position_range: in training, and where no positions are given, tokens get a sorted random subset of
            0…n−1, n up to position_range, drawn at each step from torch's generator; None: they are counted.
        restart_tokens: tokens at which positions start again, where none are given (a separator, a line's end); queries
            still see what stands before. {token: the position it has itself}, −1 where the token behind it is to be
            the first; a list: 0 for all of them. None: no such tokens.

    Raises:
        ValueError: sizes that do not fit together.

    Example:
        >>> decoder = Decoder(vocab_size=65, dims=32, layers=2, heads=4)
        >>> decoder(torch.randint(65, (1, 7))).shape
        torch.Size([1, 7, 65])
        >>> decoder.generate(torch.zeros(1, 1, dtype=torch.long), 5).shape
        torch.Size([1, 6])
    """

    def __init__(
        self,
        vocab_size: int,
        dims: int,
        layers: int,
        heads: int,
        *,
        attention: Callable[..., nn.Module] = MultiHeadAttention,
        rotary: Callable[..., nn.Module] | Sequence[Callable[..., nn.Module] | None] | None = CombinedRotary,
        block: Callable[..., nn.Module] | Sequence[Callable[..., nn.Module]] = ResidualBlock,
        embedding_rotary: Callable[..., nn.Module] | None = None,
        position_embedding: Callable[..., nn.Module] | None = None,
        cross_attention: bool = False,
        cross_rotary: Callable[..., nn.Module] | None = None,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        checkpoint_blocks: bool = False,
        position_range: int | None = None,
        restart_tokens: Mapping[int, int] | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, layers=layers, dims=dims, heads=heads)
        if position_range is not None:
            check_at_least("position_range", position_range, 1)
        restarts = restart_tokens if isinstance(restart_tokens, Mapping) else dict.fromkeys(restart_tokens or (), 0)
        for token, position in restarts.items():
            if not 0 <= token < vocab_size:
                raise ValueError(f"restart token {token} is outside the vocabulary 0 … {vocab_size - 1}")
            check_at_least("restart_tokens", position, -1, f"token {token} begins a count")
        # No position is negative: where a token has −1, all are one higher, and only differences matter.
        self.first_position = int(-1 in restarts.values())
        self.restart_tokens = {token: position + self.first_position for token, position in restarts.items()}
        self.position_range = position_range
        self.vocab_size, self.dims, self.heads = vocab_size, dims, heads
        self.cross_attention, self.checkpoint_blocks = cross_attention, checkpoint_blocks
        if cross_rotary is not None:  # a block of one's own need not know the option
            if not cross_attention:
                raise ValueError("cross_rotary rotates cross-attention: build the decoder with cross_attention=True")
            blocks = repeat("blocks", block, layers)
            block = [partial(each, cross_rotary=cross_rotary) for each in blocks]
        self.embedding = nn.Embedding.from_pretrained(0.02 * torch.randn(vocab_size, dims), freeze=False)
        self.position_embedding = position_embedding(dims) if position_embedding is not None else None
        self.embedding_rotary = embedding_rotary(dims, heads) if embedding_rotary is not None else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = make_blocks(
            dims,
            layers,
            heads,
            block=block,
            rotary=rotary,
            attention=attention,
            cross_attention=cross_attention,
            dropout=dropout,
        )
        for layer in self.blocks:
            check_contract("block", layer, BLOCK_NEEDS, "cubelet.models.blocks.ResidualBlock")
        # Untied logits start at zero, so that the first loss is log(vocab_size).
        self.unembedding = None if tie_embeddings else Linear(dims, vocab_size, bias=False, scale=0.0)

    def reset_parameters(self) -> None:
        """Draw the embedding again and set untied logits to zero."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        if self.unembedding is not None:
            self.unembedding.reset_parameters()

    def forward(
        self,
        tokens: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits of the next token at every position.

        Args:
            tokens: (b, s) integers.
            context: (b, s_enc, dims) encoder states, required exactly where the decoder has cross-attention.
            key_mask: (b, s_k) bool, True where a token may be attended; s_k counts cached tokens too.
            context_mask: (b, s_enc) bool, the same for `context`.
            positions: (s,) or (b, s) integers; by default they go on from the cache's last, and start again at 0
                with every document.
            documents: (b, s) integers, for rows that hold several documents one after the other, each with a number of
                its own: what comes out of a document is what would come out of it alone.
            cache: from `new_cache`; the tokens are appended to it.

        Returns:
            (b, s, vocab_size) float32.
        """
        x, _ = self.features(
            tokens,
            context,
            key_mask=key_mask,
            context_mask=context_mask,
            positions=positions,
            documents=documents,
            cache=cache,
        )
        return self.unembed(x)

    def features(
        self,
        tokens: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (b, s, dims) before the logits, and the blocks' activation-dependent cost (0-dim) or None."""
        if tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise ValueError(f"tokens must be (b, s) integers, got {tuple(tokens.shape)} of {tokens.dtype}")
        if (context is None) == self.cross_attention:
            need = "needs context (b, s_enc, dims)" if self.cross_attention else "was built without cross_attention"
            raise ValueError(f"this decoder {need}; context is {'missing' if context is None else 'given'}")
        if cache is not None:
            cache.begin()
        if positions is None:
            positions = self._count(tokens, documents, cache)
        x = self.embed(tokens, positions)  # (b, s, d)
        options: dict[str, Any] = {"key_mask": key_mask, "context_mask": context_mask, "positions": positions}
        if documents is not None:  # named only where there are some: a block of one's own need not know them
            options["documents"] = documents
        cost = None
        for index, block in enumerate(self.blocks):
            if self.checkpoint_blocks and self.training and cache is None:
                x, more = checkpoint(block, x, context, use_reentrant=False, **options)
            else:
                x, more = block(x, context, cache=None if cache is None else cache.layers[index], **options)
            cost = add_cost(cost, more)
        if cache is not None and positions is not None:
            cache.end(positions)
        return rms_norm(x), cost

    def _count(self, tokens: Tensor, documents: Tensor | None, cache: KVCache | None) -> Tensor | None:
        """Positions where none are given, (s,) or (b, s); None: 0, 1, 2, …"""
        positions, first = None, self.first_position
        if documents is not None:
            if cache is not None and cache.length:
                raise ValueError("documents behind cached tokens need positions: say where each document goes on")
            positions = document_positions(documents) + first
        elif cache is not None:
            positions = cache.next_positions(tokens.size(1), tokens.device) + (0 if cache.length else first)
        if self.restart_tokens:
            positions = restart_positions(tokens, positions, self.restart_tokens, first)
        if self.training and self.position_range is not None and cache is None:
            drawn = random_positions(self.positions_needed(tokens.size(1)), self.position_range, tokens.device)
            positions = drawn if positions is None else drawn[positions]
        return positions

    def positions_needed(self, length: int) -> int:
        """One more than the highest position that a row of `length` tokens can reach."""
        return length + max(self.first_position, *self.restart_tokens.values(), 0)

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """(b, s) tokens → (b, s, dims), position embedding and embedding-level rotary included."""
        x = rms_norm(self.embedding(tokens))
        if self.position_embedding is not None:
            at = torch.arange(tokens.size(1), device=tokens.device) if positions is None else positions
            x = x + self.position_embedding(at)
        if self.embedding_rotary is not None:
            x = self.embedding_rotary(x, positions)
        return self.dropout(x)

    def unembed(self, x: Tensor) -> Tensor:
        """(…, dims) hidden states → (…, vocab_size) float32 logits."""
        weight = self.embedding.weight if self.unembedding is None else self.unembedding.weight
        return F.linear(x, weight).float()

    def penalty(self) -> Tensor:
        """Sum of the penalties that depend on parameters only (0-dim); 0 where no component has any."""
        return sum_penalties((*self.blocks, self.embedding_rotary), self.embedding.weight)

    def merge(self) -> None:
        """Multiply every attention's position-independent rotation into its projections, for good (for inference)."""
        for module in self.modules():
            if isinstance(module, ProjectedAttention):
                module.merge()

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """A fresh cache for `batch_size` rows of at most `max_length` tokens, on the weights' device and dtype."""
        return KVCache([block.new_cache(batch_size, max_length) for block in self.blocks])  # pyright: ignore[reportCallIssue]

    generate = generation.generate
    generate_with_details = generation.generate_with_details
    stream = generation.stream
    beam_search = beam_search
