"""Generation: a decoder continues prompts, one cached step a token.

`Decoder.generate`, `generate_with_details` and `stream` are made here. Choices:

- Prompts of different lengths are padded on the left, whatever side they were padded on when they came. Each row's
  positions count its own tokens, so a row continues as it would alone; also after `context_length` is full, since every
  row has a start of its own.
- A row ends with its first stop token. When half of the rows have ended, they leave the batch and the cache.
- The context of cross-attention is projected once, with or without a mask.

Shapes: b prompts, s columns of the prompts, n new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cubelet.common.checks import check_at_least

from .cache import KVCache
from .positions import restart_positions
from .sampling import Generators, check_sampling, penalize_repetition, sample

if TYPE_CHECKING:
    from .decoder import Decoder

Prompts = Tensor | Sequence[Tensor | Sequence[int]]
LogitsHook = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Generation:
    """What was generated.

    Attributes:
        tokens: (b, s + n) int64, prompts (padded on the left) and continuations; behind a row's end `pad_token`.
        lengths: (b,) int64, new tokens of each row, the stop token included.
        log_probabilities: (b, n) float32 of each new token under the model (before temperature and filters), 0 behind a
            row's end.
        cache: what the decoder has read; pass it on to continue, with the last column as tokens. None after rows were
            dropped or the context length was exceeded.
    """

    tokens: Tensor
    lengths: Tensor
    log_probabilities: Tensor
    cache: KVCache | None = None

    def new_tokens(self) -> list[list[int]]:
        """The new tokens of each row, stop token included."""
        new = self.tokens[:, self.tokens.shape[1] - self.log_probabilities.shape[1] :]
        return [row[:length].tolist() for row, length in zip(new, self.lengths.tolist(), strict=True)]


def pad_prompts(prompts: Prompts, key_mask: Tensor | None = None, device: Any = None) -> tuple[Tensor, Tensor | None]:
    """Prompts as one (b, s) tensor with padding on the left, and its mask, or None where there is no padding.

    Args:
        prompts: (b, s) integers, or a sequence of rows of different lengths.
        key_mask: (b, s) bool, False on padding anywhere; rows are moved to the right end in their order.

    Raises:
        ValueError: no prompt, an empty one, or one of padding alone.

    Example:
        >>> tokens, mask = pad_prompts([[1, 2, 3], [4]])
        >>> tokens.tolist(), mask.tolist()
        ([[1, 2, 3], [0, 0, 4]], [[True, True, True], [False, False, True]])
    """
    if not isinstance(prompts, Tensor):
        rows = [torch.as_tensor(row, dtype=torch.long, device=device) for row in prompts]
        if not rows or any(row.ndim != 1 for row in rows):
            raise ValueError("prompts must be (b, s) integers or a sequence of one row of integers each")
        longest = max(len(row) for row in rows)
        padded = [torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows]
        key_mask = torch.stack([torch.arange(longest, device=row.device) >= longest - len(row) for row in rows])
        prompts = torch.stack(padded)
    if prompts.ndim != 2 or prompts.is_floating_point() or prompts.dtype == torch.bool:
        raise ValueError(f"tokens must be (b, s) integers, got {tuple(prompts.shape)} of {prompts.dtype}")
    if prompts.shape[1] == 0:
        raise ValueError("the prompt is empty; give at least one token a row")
    if key_mask is None or bool(key_mask.all()):
        return prompts, None
    if key_mask.dtype != torch.bool or key_mask.shape != prompts.shape:
        raise ValueError(
            f"key_mask is {tuple(key_mask.shape)} of {key_mask.dtype}; give bool of the prompts' shape "
            f"{tuple(prompts.shape)}, True on tokens"
        )
    if not bool(key_mask.any(1).all()):
        raise ValueError("a prompt is empty: its row of key_mask is all False; give at least one token a row")
    order = key_mask.long().argsort(dim=1, stable=True)  # padding first, tokens in their order
    return prompts.gather(1, order), key_mask.gather(1, order)


class PromptReader:
    """Feeds a decoder the columns of `tokens` it has not read and returns the last one's logits."""

    def __init__(
        self,
        decoder: Decoder,
        tokens: Tensor,
        mask: Tensor | None,
        capacity: int,
        limit: int,
        cache: KVCache | None,
        context: Tensor | None,
        context_mask: Tensor | None,
        prompt_options: dict[str, Tensor],
    ) -> None:
        self.decoder, self.limit, self.own_cache = decoder, limit, cache is None
        self.context, self.context_mask = context, context_mask
        self.tokens = tokens  # (b, columns so far)
        self.prompt_options = prompt_options  # positions and documents of the prompt
        self.cache, self.capacity = cache, capacity
        self.read = 0  # columns that the cache holds, counted from `base`
        pads = [0] * tokens.shape[0] if mask is None else (~mask).sum(1).tolist()
        self.starts = [max(pad, tokens.shape[1] - limit) for pad in pads]
        self.base = min(self.starts) if self.own_cache else 0

    def logits(self) -> Tensor:
        """(b, vocab) for the column behind the last."""
        total = self.tokens.shape[1]
        if self.own_cache and total - min(self.starts) > self.limit:
            half = total - self.limit // 2
            self.starts = [half if total - start > self.limit else start for start in self.starts]
            self.base, self.read, self.cache = min(self.starts), 0, None
        if self.cache is None:
            self.cache = self.decoder.new_cache(self.tokens.shape[0], min(self.capacity, self.limit))
        fresh = self.tokens[:, self.base + self.read :]
        options = {} if self.read else self._first_options(fresh)
        out = self.decoder(fresh, self.context, context_mask=self.context_mask, cache=self.cache, **options)
        self.read = total - self.base
        return out[:, -1]  # (b, vocab)

    def _first_options(self, fresh: Tensor) -> dict[str, Tensor]:
        """Mask and positions of what is read first."""
        if self.prompt_options:
            return self.prompt_options
        if max(self.starts) == self.base or not self.own_cache:
            return {}
        columns = torch.arange(self.base, self.base + fresh.shape[1], device=fresh.device)
        starts = torch.tensor(self.starts, device=fresh.device)[:, None]
        positions = (columns - starts).clamp(min=0)
        if self.decoder.restart_tokens:
            first = self.decoder.first_position
            positions = restart_positions(fresh, positions + first, self.decoder.restart_tokens, first)
        return {"key_mask": columns >= starts, "positions": positions}

    def append(self, tokens: Tensor) -> None:
        """Add a column (b,)."""
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=1)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, rows (any number,) int64."""
        kept = rows.tolist()
        self.tokens = self.tokens[rows]
        self.starts = [self.starts[row] for row in kept]
        if self.cache is not None:
            self.context, self.context_mask = self.cache.select(rows, self.context, self.context_mask)


def _check(decoder: Decoder, tokens: Tensor, max_new_tokens: int) -> None:
    check_at_least("max_new_tokens", max_new_tokens, 0)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= decoder.vocab_size:
        raise ValueError(f"token {low if low < 0 else high} is outside the vocabulary 0 … {decoder.vocab_size - 1}")


def new_reader(
    decoder: Decoder,
    prompts: Prompts,
    max_new_tokens: int,
    *,
    context: Tensor | None = None,
    key_mask: Tensor | None = None,
    context_mask: Tensor | None = None,
    positions: Tensor | None = None,
    documents: Tensor | None = None,
    context_length: int | None = None,
    cache: KVCache | None = None,
) -> PromptReader:
    tokens, mask = pad_prompts(prompts, key_mask, decoder.embedding.weight.device)
    _check(decoder, tokens, max_new_tokens)
    own = {"positions": positions, "documents": documents}
    prompt_options = {name: value for name, value in own.items() if value is not None}
    total = tokens.shape[1] + max_new_tokens
    limit = context_length or total
    if limit < 2 and context_length:
        raise ValueError(f"context_length {limit} is too short to continue anything; use at least 2")
    if mask is not None and (prompt_options or cache is not None):
        raise ValueError("padded prompts have positions of their own: leave out positions, documents and cache")
    if prompt_options and total > limit:
        raise ValueError(f"{total} tokens exceed context_length {limit}, and positions or documents cannot move along")
    return PromptReader(decoder, tokens, mask, total, limit, cache, context, context_mask, prompt_options)


def _steps(
    decoder: Decoder,
    reader: PromptReader,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generators = None,
    stop_tokens: int | Sequence[int] = (),
    pad_token: int = 0,
    repetition_penalty: float = 1.0,
    num_return_sequences: int = 1,
    logits_hook: LogitsHook | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(tokens (b,), their log-probabilities (b,), whether the row is at or behind its end (b,)), once a step."""
    check_sampling(temperature, top_k, top_p, repetition_penalty)
    check_at_least("num_return_sequences", num_return_sequences, 1)
    device = reader.tokens.device
    stops = torch.tensor([stop_tokens] if isinstance(stop_tokens, int) else list(stop_tokens), device=device)
    batch = reader.tokens.shape[0] * num_return_sequences
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise ValueError(f"{len(generator)} generators were given for {batch} rows; give one, or one a row")
    rows = torch.arange(batch, device=device)  # the rows that are still in the batch
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    seen = None
    for step in range(max_new_tokens):
        logits = reader.logits()  # (rows, vocab)
        if step == 0 and num_return_sequences > 1:
            repeat = torch.arange(reader.tokens.shape[0], device=device).repeat_interleave(num_return_sequences)
            reader.select(repeat)
            logits = logits[repeat]
        if repetition_penalty != 1.0:
            seen = _seen(reader, logits) if seen is None else seen.scatter(1, reader.tokens[:, -1:], True)
        chances = logits if seen is None else penalize_repetition(logits, seen, repetition_penalty)
        if logits_hook is not None:
            chances = logits_hook(reader.tokens, chances)
        own = [generator[row] for row in rows.tolist()] if isinstance(generator, Sequence) else generator
        new = sample(chances, temperature=temperature, top_k=top_k, top_p=top_p, generator=own)  # (rows,)
        new = new.masked_fill(ended[rows], pad_token)
        chosen = logits.log_softmax(-1).gather(1, new[:, None])[:, 0].masked_fill(ended[rows], 0.0)
        tokens, scores = (torch.full((batch,), pad_token, device=device), torch.zeros(batch, device=device))
        tokens[rows], scores[rows] = new, chosen
        yield tokens, scores, ended
        reader.append(new)
        if len(stops):
            ended = ended.clone()
            ended[rows] |= torch.isin(new, stops)
            alive = (~ended[rows]).nonzero()[:, 0]
            if not len(alive):
                return
            if 2 * len(alive) <= len(rows):
                reader.select(alive)
                rows, seen = rows[alive], None if seen is None else seen[alive]


def _seen(reader: PromptReader, logits: Tensor) -> Tensor:
    """Which tokens each row has had, padding left out: (b, vocab) bool."""
    columns = torch.arange(reader.tokens.shape[1], device=logits.device)
    real = columns >= torch.tensor(reader.starts, device=logits.device)[:, None]  # (b, s)
    counts = torch.zeros(logits.shape, device=logits.device)
    return counts.scatter_add(1, reader.tokens, real.to(counts.dtype)) > 0


_READER_OPTIONS = ("context", "key_mask", "context_mask", "positions", "documents", "context_length", "cache")


@torch.no_grad()
def stream(self: Decoder, tokens: Prompts, max_new_tokens: int, **options: Any) -> Iterator[Tensor]:
    """Yield the next token of every row, (b,) int64 a step, as `generate` would return them.

    Args:
        tokens, max_new_tokens, options: see `generate`.

    Example:
        >>> from cubelet.models import Decoder
        >>> decoder = Decoder(10, 32, 1, 4).eval()
        >>> [new.tolist() for new in decoder.stream([[1], [2, 3]], 2, stop_tokens=9, temperature=0)]
        [[1, 3], [1, 3]]
    """
    reading = {name: options.pop(name) for name in _READER_OPTIONS if name in options}
    was_training = self.training
    self.eval()
    try:
        reader = new_reader(self, tokens, max_new_tokens, **reading)
        for new, _, _ in _steps(self, reader, max_new_tokens, **options):
            yield new
    finally:
        self.train(was_training)


@torch.no_grad()
def generate_with_details(self: Decoder, tokens: Prompts, max_new_tokens: int, **options: Any) -> Generation:
    """`generate`, with lengths, log-probabilities and the cache; see `Generation`.

    Args:
        tokens, max_new_tokens, options: see `generate`.
    """
    reading = {name: options.pop(name) for name in _READER_OPTIONS if name in options}
    was_training = self.training
    self.eval()
    try:
        reader = new_reader(self, tokens, max_new_tokens, **reading)
        prompt, news, scores = reader.tokens, [], []
        lengths = torch.zeros(0)
        for new, score, ended in _steps(self, reader, max_new_tokens, **options):
            lengths = (~ended).long() if not news else lengths + ~ended
            news.append(new)
            scores.append(score)
    finally:
        self.train(was_training)
    if not news:
        return Generation(prompt, prompt.new_zeros(len(prompt)), torch.zeros(len(prompt), 0, device=prompt.device))
    prompt = prompt.repeat_interleave(len(news[0]) // len(prompt), dim=0)
    whole = reader.tokens.shape[0] == len(prompt) and reader.base == 0
    out = torch.cat([prompt, torch.stack(news, dim=1)], dim=1)  # (b, s + n)
    return Generation(out, lengths, torch.stack(scores, dim=1), reader.cache if whole else None)


def generate(self: Decoder, tokens: Prompts, max_new_tokens: int, **options: Any) -> Tensor:
    """Continue prompts, one cached step a token.

    Args:
        tokens: (b, s ≥ 1) prompts, or a sequence of rows of different lengths.
        max_new_tokens: how many tokens to add to each row at most.
        options: of how to choose: `temperature` (0: the likeliest), `top_k`, `top_p`, `generator` (one, or one a row),
            see `models.sampling.sample`; `repetition_penalty` (1: none); `logits_hook`, called as hook(tokens (b, s'),
            logits (b, vocab)) → logits before a token is chosen; `num_return_sequences` k: every prompt k times, row
            i·k + j the j-th continuation of prompt i. Of when to stop: `stop_tokens`, a token or several that end
            a row (kept in it), and `pad_token` (0) behind it. Of what to read, as in `forward`: `context`,
            `context_mask`, `key_mask` (b, s) False on padding (of either side: it comes back on the left),
            `positions` and `documents` of the prompt, `cache` to continue (made large enough); and `context_length`,
            the longest stretch the model should look at (usually what it was trained on): when it is full, the cache is
            rebuilt from the last half of it, which keeps the mean cost of a token constant.

    Returns:
        (b, s + n) int64, n ≤ max_new_tokens: fewer where every row has ended.

    Raises:
        ValueError: an empty prompt, tokens outside the vocabulary, NaN logits, settings that leave nothing to draw.
        TypeError: an option that does not exist.
    """
    return generate_with_details(self, tokens, max_new_tokens, **options).tokens
