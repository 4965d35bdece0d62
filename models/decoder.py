"""The decoder: tokens in, logits out, with position encoding, attention and block as components.

Components arrive as callables of (dims, heads), so the width is written once, here, and a component's own options stay
in its own constructor (a class, or `functools.partial` of one; in YAML `class_path` and `init_args`). The decoder knows
nothing of which component it was given; what depends on activations and belongs to the loss (a gate's budget) comes
back beside the hidden states from `features`.

Embeddings are normalised to unit RMS before the first block: with a small tied embedding the scale of the residual
stream is then set by the blocks alone, and the table's own scale is free to serve the output logits.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import MultiHeadAttention, ProjectedAttention, rms_norm
from .blocks import ResidualBlock
from .cache import KVCache
from .rotary import CombinedRotary
from .sampling import check_sampling, sample


def check_tokens(tokens: Tensor) -> None:
    """Raise ValueError unless tokens are (b, s) integers."""
    if tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens must be (b, s) integers, got {tuple(tokens.shape)} of {tokens.dtype}")


class Decoder(nn.Module):
    """A decoder-only (or, with `cross_attention`, encoder-conditioned) transformer of pluggable parts.

    Args:
        vocab_size: number of tokens.
        dims: model width d.
        layers: number of blocks.
        heads: attention heads h; the rotary turns head_dim = dims / heads features.
        attention: (dims, heads, *, rotary, causal, dropout) → attention module.
        rotary: (dims, heads) → rotary of the self-attention, one per layer, or None.
        block: (dims, heads, *, attention, rotary, cross_attention, dropout) → block; or a sequence, one per layer.
        embedding_rotary: (dims, heads) → rotary applied once to the embeddings, or None.
        position_embedding: (dims) → module that maps integer positions (s,) or (b, s) to embeddings, added to the
            tokens' own; or None.
        cross_attention: blocks also attend to `context`.
        dropout: on embeddings, and handed to the blocks.
        tie_embeddings: logits use the embedding table.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(
        self,
        vocab_size: int,
        dims: int,
        layers: int,
        heads: int,
        *,
        attention: Callable[..., nn.Module] = MultiHeadAttention,
        rotary: Callable[..., nn.Module] | None = CombinedRotary,
        block: Callable[..., nn.Module] | Sequence[Callable[..., nn.Module]] = ResidualBlock,
        embedding_rotary: Callable[..., nn.Module] | None = None,
        position_embedding: Callable[..., nn.Module] | None = None,
        cross_attention: bool = False,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("vocab_size", vocab_size), ("dims", dims), ("layers", layers), ("heads", heads)):
            if value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if dims % heads:
            raise ValueError(f"dims {dims} is not divisible by heads {heads}; choose heads from the divisors of dims")
        blocks = list(block) if isinstance(block, Sequence) else [block] * layers
        if len(blocks) != layers:
            raise ValueError(f"{len(blocks)} blocks were given for {layers} layers; give one block, or one per layer")
        self.vocab_size, self.dims, self.heads = vocab_size, dims, heads
        self.cross_attention = cross_attention
        self.embedding = nn.Embedding(vocab_size, dims)
        self.position_embedding = position_embedding(dims) if position_embedding is not None else None
        self.embedding_rotary = embedding_rotary(dims, heads) if embedding_rotary is not None else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            make(dims, heads, attention=attention, rotary=rotary, cross_attention=cross_attention, dropout=dropout)
            for make in blocks
        )
        self.unembedding = None if tie_embeddings else nn.Linear(dims, vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embedding and set untied logits to zero, so that the first loss is log(vocab_size)."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        if self.unembedding is not None:
            nn.init.zeros_(self.unembedding.weight)

    def forward(
        self,
        tokens: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits of the next token at every position.

        Args:
            tokens: (b, s) integers.
            context: (b, s_enc, dims) encoder states, required exactly where the decoder has cross-attention.
            key_mask: (b, s_k) bool, True where a token may be attended; s_k counts cached tokens too.
            context_mask: (b, s_enc) bool, the same for `context`.
            positions: (s,) or (b, s) integers; by default they go on from the cache's length.
            cache: from `new_cache`; the tokens are appended to it.

        Returns:
            (b, s, vocab_size) float32.
        """
        x, _ = self.features(
            tokens, context, key_mask=key_mask, context_mask=context_mask, positions=positions, cache=cache
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
        cache: KVCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (b, s, dims) before the logits, and the blocks' activation-dependent cost (0-dim) or None."""
        check_tokens(tokens)
        if (context is None) == self.cross_attention:
            need = "needs context (b, s_enc, dims)" if self.cross_attention else "was built without cross_attention"
            raise ValueError(f"this decoder {need}; context is {'missing' if context is None else 'given'}")
        if positions is None and cache is not None:
            positions = torch.arange(cache.length, cache.length + tokens.size(1), device=tokens.device)
        x = self.embed(tokens, positions)
        cost = None
        for index, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[index]
            x, more = block(x, context, key_mask=key_mask, context_mask=context_mask, positions=positions, cache=layer)
            if more is not None:
                cost = more if cost is None else cost + more
        return rms_norm(x), cost

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
        total = self.embedding.weight.new_zeros(())
        for part in (*self.blocks, self.embedding_rotary):
            if part is not None and hasattr(part, "penalty"):
                total = total + part.penalty()  # pyright: ignore[reportCallIssue]
        return total

    def merge(self) -> None:
        """Multiply every attention's position-independent rotation into its projections, for good (for inference)."""
        for module in self.modules():
            if isinstance(module, ProjectedAttention):
                module.merge()

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """A fresh cache for `batch_size` rows of at most `max_length` tokens, on the weights' device and dtype."""
        weight = self.embedding.weight
        return KVCache(
            [
                block.new_cache(batch_size, max_length, device=weight.device, dtype=weight.dtype)  # pyright: ignore[reportCallIssue]
                for block in self.blocks
            ]
        )

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
        key_mask: Tensor | None = None,
        context_length: int | None = None,
    ) -> Tensor:
        """Continue `tokens`, one cached step a token.

        Args:
            tokens: (b, s ≥ 1) prompt.
            max_new_tokens: how many tokens to add to each row.
            temperature, top_k, top_p, generator: see `models.sampling.sample`.
            context: (b, s_enc, dims) encoder states for a decoder with cross-attention.
            key_mask: (b, s) bool, False on the left padding of shorter prompts.
            context_length: longest stretch the model should look at (usually what it was trained on). When it is
                full, the cache is rebuilt from the last half of it, which keeps the mean cost of a token constant.

        Returns:
            (b, s + max_new_tokens) int64.

        Raises:
            ValueError: an empty prompt, or sampling settings that leave nothing to draw from.
        """
        check_tokens(tokens)
        check_sampling(temperature, top_k, top_p)
        if tokens.size(1) == 0:
            raise ValueError("the prompt is empty; give at least one token a row")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens {max_new_tokens} is negative")
        limit = context_length or tokens.size(1) + max_new_tokens
        if limit < 2:
            raise ValueError(f"context_length {limit} is too short to continue anything; use at least 2")
        if max_new_tokens == 0:
            return tokens
        was_training = self.training
        self.eval()
        try:
            cache, fresh = self.new_cache(tokens.size(0), limit), tokens[:, -limit:]
            mask = None if key_mask is None else key_mask[:, -limit:]
            for _ in range(max_new_tokens):
                if cache.length + fresh.size(1) > limit:
                    cache, fresh = self.new_cache(tokens.size(0), limit), tokens[:, -(limit // 2) :]
                    mask = None if mask is None else mask[:, -(limit // 2) :]
                # Left padding shifts a row: its positions count only what may be attended, so that a row padded in a
                # batch continues exactly as it would alone.
                at = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)[:, -fresh.size(1) :]
                logits = self(fresh, context, key_mask=mask, positions=at, cache=cache)[:, -1]
                fresh = sample(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)[:, None]
                tokens = torch.cat([tokens, fresh], dim=1)
                if mask is not None:
                    mask = F.pad(mask, (0, 1), value=True)
        finally:
            self.train(was_training)
        return tokens
