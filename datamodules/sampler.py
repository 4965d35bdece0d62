"""Which windows of a text make up which batch, as a pure function of (seed, epoch, index).

**Training.** One *pass* cuts the text, from a random start, into windows that lie end to end, and visits each once in
random order: no target twice before every other target was seen, and, since the start moves, other windows each time.
An *epoch* is as many whole batches as a pass fills (or as many as asked for: longer epochs run on into further passes).
Neither uses the global random state nor stores a permutation: the order is a keyed bijection (a Feistel network on Z_a
× Z_b with a·b just above the number of windows, repeated until it lands inside; Black and Rogaway 2002,
https://doi.org/10.1007/3-540-45760-7_9), so the window at any index of any epoch is found at once, and resuming costs
nothing.

**Validation.** Windows end to end from the first token: every target but the first token exactly once, whatever the
number of processes. The last window and the last batches are filled up with targets of −100.

**Several processes.** Row j of rank r in a batch of B rows is row r·B + j of the global batch. So two ranks with B rows
see exactly what one process with 2B rows sees.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from cubelet.common.errors import ConfigError
from cubelet.common.seeds import derive_key, hash_uint64

ROUNDS = 6
_BLOCK = 4096  # windows drawn at a time: numpy's cost a call, shared by hundreds of batches


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """A keyed permutation of 0 … size−1, at the places `index` (int64, any shape); all of them need not be computed."""
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    round_keys = [derive_key(key, turn) for turn in range(ROUNDS)]

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x // np.uint64(b), x % np.uint64(b)
        for turn, round_key in enumerate(round_keys):
            if turn % 2 == 0:
                left = (left + hash_uint64(right, round_key) % np.uint64(a)) % np.uint64(a)
            else:
                right = (right + hash_uint64(left, round_key) % np.uint64(b)) % np.uint64(b)
        return left * np.uint64(b) + right

    out = once(index.astype(np.uint64))
    while (outside := out >= size).any():
        out[outside] = once(out[outside])
    return out.astype(np.int64)


def windows_per_pass(length: int, context_length: int) -> int:
    """Windows in one training pass over `length` tokens; one fewer than fit, so that the start can move."""
    return max(1, (length - 1) // context_length - 1)


def training_offsets(seed: int, epoch: int, index: np.ndarray, length: int, context_length: int) -> np.ndarray:
    """Where the training windows number `index` of an epoch start.

    Args:
        seed: of the run.
        epoch: from 0.
        index: (n,) int64, from 0; beyond one pass they run on into the next.
        length: tokens in the text, at least context_length + 1.
        context_length: tokens a window predicts.

    Returns:
        (n,) int64 offsets between 0 and length − context_length − 1.
    """
    per_pass = windows_per_pass(length, context_length)
    slack = length - 1 - per_pass * context_length
    passes, place = index // per_pass, index % per_pass
    out = np.empty_like(index)
    for number in np.unique(passes):
        key = derive_key(seed, epoch, int(number))
        here = passes == number
        start = derive_key(key, 1) % (slack + 1)
        out[here] = start + permute(place[here], per_pass, key) * context_length
    return out


class TrainingWindows(Sampler[np.ndarray]):
    """Yields, for one rank, the offsets (batch_size,) of each batch in `span`, a range of places in the endless stream.

    Batch p of the stream is batch p mod `batches_per_epoch` of epoch p div `batches_per_epoch`. `span` is the first
    epoch unless somebody sets it.

    Args:
        length: tokens in the text.
        context_length: tokens a window predicts; it reads one more.
        batch_size: rows on this rank.
        seed: of the order.
        rank, world_size: this process and how many share the global batch.
        batches_per_epoch: None for one pass over the text.
        repeat: start over after so many batches (for overfitting a few on purpose).

    Raises:
        ValueError: a text shorter than one window.

    Example:
        >>> order = TrainingWindows(100, context_length=8, batch_size=2, seed=0)
        >>> next(iter(order)).shape  # where two windows begin
        (2,)
    """

    def __init__(
        self,
        length: int,
        context_length: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        batches_per_epoch: int | None = None,
        repeat: int | None = None,
    ) -> None:
        self.length, self.context_length, self.batch_size = length, context_length, batch_size
        self.seed, self.rank, self.world_size, self.repeat = seed, rank, world_size, repeat
        one_pass = self.windows_per_pass() // (batch_size * world_size)
        self.batches_per_epoch = batches_per_epoch or max(1, one_pass)
        self.span = range(self.batches_per_epoch)

    def windows_per_pass(self) -> int:
        """Windows that a pass visits."""
        check_length(self.length, self.context_length, "training")
        return windows_per_pass(self.length, self.context_length)

    def draw(self, epoch: int, index: np.ndarray) -> np.ndarray:
        """Offsets (n,) of the windows number `index` (n,) of an epoch."""
        return training_offsets(self.seed, epoch, index, self.length, self.context_length)

    def signature(self) -> dict[str, Any]:
        """What the order depends on besides the place. Ranks do not matter, only the global batch does."""
        return {
            "seed": self.seed,
            "length": self.length,
            "context_length": self.context_length,
            "global_batch": self.batch_size * self.world_size,
            "batches_per_epoch": self.batches_per_epoch,
        }

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[np.ndarray]:
        span, chunk = self.span, max(1, _BLOCK // self.batch_size)
        for first in range(span.start, span.stop, chunk):
            yield from self.offsets(np.arange(first, min(first + chunk, span.stop)))

    def offsets(self, places: np.ndarray) -> np.ndarray:
        """Offsets (n, batch_size) of this rank's rows of the batches at `places` (n,) of the stream."""
        places = places % self.repeat if self.repeat else places
        epochs, batches = np.divmod(places, self.batches_per_epoch)
        row = self.rank * self.batch_size + np.arange(self.batch_size)
        index = batches[:, None] * (self.batch_size * self.world_size) + row
        out = np.empty_like(index)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = self.draw(int(epoch), index[here].ravel()).reshape(-1, self.batch_size)
        return out


class TrainingDocuments(TrainingWindows):
    """As `TrainingWindows`, of numbered windows that were cut beforehand, such as those within documents.

    Args:
        length: number of windows; all of them make a pass. The others as for `TrainingWindows`.
    """

    def windows_per_pass(self) -> int:
        if not self.length:
            raise ConfigError("no training document has two tokens, one to read and one to predict; give more text")
        return self.length

    def draw(self, epoch: int, index: np.ndarray) -> np.ndarray:
        passes, place = np.divmod(index, self.length)
        out = np.empty_like(index)
        for number in np.unique(passes):
            here = passes == number
            out[here] = permute(place[here], self.length, derive_key(self.seed, epoch, int(number)))
        return out

    def signature(self) -> dict[str, Any]:
        return super().signature() | {"documents": "crop"}


class Mixture(TrainingWindows):
    """Several corpora, each a share of the rows.

    Of every thousand rows each corpus gets its share, rounded, in an order that is drawn anew for each thousand; so the
    row at any place is found at once. Each corpus goes through passes of its own, over epochs' ends: a small one begins
    again when it is through, a large one is not read to its end before training ends.

    Args:
        parts: an order for each corpus, made with this one's seed, of which only `draw` is used.
        weights: of the corpora, positive; only their ratios matter.
        bases: added to what the parts draw: where each corpus begins among all.
        batch_size, seed, rank, world_size, batches_per_epoch, repeat: as for `TrainingWindows`.
    """

    BLOCK = 1000

    def __init__(
        self,
        parts: Sequence[TrainingWindows],
        weights: Sequence[float],
        bases: Sequence[int],
        batch_size: int,
        **options: Any,
    ) -> None:
        self.parts, self.bases = list(parts), list(bases)
        self.quotas = share_out(weights, self.BLOCK)
        self._ends = np.cumsum(self.quotas)
        super().__init__(sum(part.length for part in parts), parts[0].context_length, batch_size, **options)

    def windows_per_pass(self) -> int:
        return sum(part.windows_per_pass() for part in self.parts)

    def draw(self, epoch: int, index: np.ndarray) -> np.ndarray:
        rows = index + epoch * self.batches_per_epoch * self.batch_size * self.world_size
        blocks, place = np.divmod(rows, self.BLOCK)
        slots = np.empty_like(place)
        for block in np.unique(blocks):
            here = blocks == block
            slots[here] = permute(place[here], self.BLOCK, derive_key(self.seed, "mixture", int(block)))
        chosen = np.searchsorted(self._ends, slots, side="right")
        out = np.empty_like(index)
        for number, part in enumerate(self.parts):
            here = chosen == number
            own = blocks[here] * self.quotas[number] + slots[here] - (self._ends[number] - self.quotas[number])
            out[here] = part.draw(0, own) + self.bases[number] if here.any() else 0
        return out

    def signature(self) -> dict[str, Any]:
        return super().signature() | {"mixture": self.quotas, "lengths": [part.length for part in self.parts]}


def share_out(weights: Sequence[float], total: int) -> list[int]:
    """`total` in proportion to `weights`, in whole numbers that sum up and are at least 1 (largest remainders).

    Example:
        >>> share_out([2, 1], 10)
        [7, 3]

    Raises:
        ConfigError: a weight that is not positive, or more weights than there is to share.
    """
    if not weights or min(weights) <= 0 or not all(map(math.isfinite, weights)) or len(weights) > total:
        raise ConfigError(f"weights {list(weights)} of corpora must be positive numbers, at most {total} of them")
    exact = [weight / sum(weights) * total for weight in weights]
    shares = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: max(0, total - sum(shares))]:
        shares[i] += 1
    while sum(shares) > total:
        shares[shares.index(max(shares))] -= 1
    return shares


class ValidationWindows(Sampler[np.ndarray]):
    """Yields, for one rank, the offsets (batch_size,) that cover a whole text; offsets past its end mean an empty row.

    Every rank gets the same number of batches of the same size. A batch is never larger than the windows a rank has.

    Args:
        windows: of numbered windows that were cut beforehand, how many; None for those of a text. The others as for
            `TrainingWindows`.

    Raises:
        ConfigError: a text without a single target.

    Example:
        >>> [offsets.tolist() for offsets in ValidationWindows(33, context_length=8, batch_size=2)]
        [[0, 8], [16, 24]]
    """

    def __init__(
        self,
        length: int,
        context_length: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        windows: int | None = None,
    ) -> None:
        if windows is None or windows < 1:
            check_length(length, 1, "validation")
        self.context_length, self.rank, self.world_size = context_length, rank, world_size
        self.windows = -(-(length - 1) // context_length) if windows is None else windows
        self.step = context_length if windows is None else 1  # between the offsets of neighbouring windows
        self.batch_size = min(batch_size, -(-self.windows // world_size))

    def __len__(self) -> int:
        """Batches that cover the text."""
        return -(-self.windows // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[np.ndarray]:
        # Neighbouring windows go to different ranks, so that the empty rows at the end are shared out.
        row = np.arange(self.batch_size) * self.world_size + self.rank
        for batch in range(len(self)):
            yield (batch * self.batch_size * self.world_size + row) * self.step


def check_length(length: int, context_length: int, what: str) -> None:
    """Raises ValueError where a text has no single window."""
    if length < context_length + 1:
        raise ConfigError(
            f"the {what} text has {length} tokens, one window needs {context_length + 1} (context_length "
            f"{context_length} and one to predict); give more text or a shorter context_length"
        )
