"""`TextDataModule`: real text as batches of next-token prediction, for Lightning's Trainer or a plain loop.

Preparing happens in the constructor, because the model's vocabulary is linked from `vocab_size` before Lightning calls
any hook; it is safe in every process at once and a matter of milliseconds once the cache is filled (`prepare.py`).
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from cubelet.common.errors import ConfigError

from .corpora import load_corpus
from .loader import TrainingLoader, WindowDataset, WindowLoader
from .prepare import default_cache, prepare
from .sampler import TrainingWindows, ValidationWindows, check_length
from .tokenizers import Tokenizer

# Of a validation batch, where nobody says: enough to keep a core busy, small beside what a training step holds.
VAL_TOKENS = 4096


class TextDataModule(LightningDataModule):
    """Batches `{"tokens": (b, s) int64, "targets": (b, s) int64}` of a text; targets are −100 where nothing is to be
    predicted.

    Training batches are random windows whose order depends on (seed, epoch, index) alone (`sampler.py`); validation is
    the whole held-out text, every target once. There is no third split: `test` measures on the held-out text as well.

    Args:
        corpus: `shakespeare`, `plays`, or the path of a UTF-8 text file or folder.
        tokenizer: `char`, `byte` or `bpe`.
        context_length: tokens a training window predicts.
        batch_size: windows in a batch, on each rank.
        vocab_size: tokens of a `bpe` tokenizer.
        val_context_length: tokens a validation window predicts; None for context_length.
        val_batch_size: validation windows in a batch, on each rank; None for about 4,096 tokens, at least batch_size
            windows.
        val_fraction: share of the characters held out, at the end of the text (not for `plays`: four whole plays).
        batches_per_epoch: training batches in an epoch; None for one pass over the text.
        num_workers: processes that gather batches ahead; a batch costs some 0.05 ms, so 0 is mostly best.
        seed: of the order of the training windows; independent of the global seed.
        cache_dir: where prepared text lies; None for `$CUBELET_CACHE` or `~/.cache/cubelet`.

    Attributes:
        tokenizer: the tokenizer, an object with `encode`, `decode`, `to_dict`.
        vocab_size: its number of tokens.
        characters_per_token: of the validation text; bits per character = loss / ln 2 / characters_per_token.
        sha256: digest of the text.

    Raises:
        ValueError, FileNotFoundError: bad sizes or bad text, each in one sentence, at construction.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        corpus: str = "shakespeare",
        tokenizer: str = "char",
        context_length: int = 64,
        batch_size: int = 12,
        *,
        vocab_size: int | None = None,
        val_context_length: int | None = None,
        val_batch_size: int | None = None,
        val_fraction: float = 0.1,
        batches_per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        corpus = str(corpus)
        sizes = {
            "context_length": context_length,
            "batch_size": batch_size,
            "val_context_length": val_context_length,
            "val_batch_size": val_batch_size,
            "batches_per_epoch": batches_per_epoch,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}; it must be at least 0")
        # Not to the logger: `vocab_size` and others may well be the model's hyper-parameters too, with other values.
        self.save_hyperparameters(ignore=["cache_dir"], logger=False)
        self.corpus, self.seed, self.num_workers = corpus, seed, num_workers
        self.context_length, self.batch_size, self.batches_per_epoch = context_length, batch_size, batches_per_epoch
        self.val_context_length = val_context_length or context_length
        self.val_batch_size = val_batch_size or max(batch_size, VAL_TOKENS // self.val_context_length)
        self._kind, self._bpe_size, self._val_fraction = tokenizer, vocab_size, val_fraction
        self._cache = Path(cache_dir).expanduser() if cache_dir else default_cache()
        self._prepare()
        check_length(self._prepared.train_tokens, context_length, "training")
        check_length(self._prepared.val_tokens, 1, "validation")

    def _prepare(self) -> None:
        text = load_corpus(self.corpus, self._cache, val_fraction=self._val_fraction)
        self._prepared = prepare(text, self._kind, self._bpe_size, self._cache)
        self.tokenizer = self._prepared.tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens, from construction on."""
        return self.tokenizer.vocab_size

    @property
    def characters_per_token(self) -> float:
        """Characters to a target of the validation text."""
        return self._prepared.characters_per_token

    @property
    def sha256(self) -> str:
        """Digest of the text, training and validation part."""
        return self._prepared.sha256

    def prepare_data(self) -> None:
        """Makes the cache again where somebody emptied it since construction, or where this node has one of its own."""
        if not self._prepared.folder.is_dir():
            self._prepare()

    def train_dataloader(self) -> TrainingLoader:
        """Random windows; a resumable loader of `batches_per_epoch` batches an epoch."""
        windows = WindowDataset(self._prepared.folder / "train.npy", self.context_length)
        rank, world_size = self._place()
        order = TrainingWindows(
            len(windows),
            self.context_length,
            self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            batches_per_epoch=self.batches_per_epoch,
        )
        if few := getattr(self.trainer, "overfit_batches", 0):
            order.repeat = min(few, len(order)) if isinstance(few, int) else max(1, int(few * len(order)))
        trained = self._trained if self.trainer is not None else None
        return TrainingLoader(windows, order, **self._loading(), trained=trained)

    def val_dataloader(self) -> WindowLoader:
        """The whole held-out text, every target once."""
        windows = WindowDataset(self._prepared.folder / "val.npy", self.val_context_length)
        rank, world_size = self._place()
        order = ValidationWindows(
            len(windows), self.val_context_length, self.val_batch_size, rank=rank, world_size=world_size
        )
        return WindowLoader(windows, order, **self._loading())

    def test_dataloader(self) -> WindowLoader:
        """The held-out text, as for validation."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to know of the text to notice another one."""
        return {
            "corpus": Path(self.corpus).name,
            "corpus_sha256": self.sha256,
            "tokenizer": self._kind,
            "tokenizer_sha256": self.tokenizer.sha256,
            "vocab_size": self.vocab_size,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses a checkpoint of another vocabulary, and to go on training on another text.

        Raises:
            ValueError: says what differs.
        """
        now = self.state_dict()
        if state_dict["tokenizer_sha256"] != now["tokenizer_sha256"]:
            raise ConfigError(
                f"the checkpoint's vocabulary ({_vocabulary(state_dict)}) is not this data's ({_vocabulary(now)}): "
                "its token ids mean other text; use the corpus and tokenizer it was trained with"
            )
        training = self.trainer is None or self.trainer.state.fn in (None, TrainerFn.FITTING)
        if training and state_dict["corpus_sha256"] != now["corpus_sha256"]:
            raise ConfigError(
                f"the checkpoint was trained on another text (corpus '{state_dict['corpus']}', sha256 "
                f"{state_dict['corpus_sha256'][:12]}) than this one ('{now['corpus']}', sha256 {self.sha256[:12]}); "
                "restore the text to resume, or start a new run"
            )

    def _loading(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "pin_memory": on_gpu}

    def _place(self) -> tuple[int, int]:
        """Rank and number of ranks among those that see different data (under tensor parallelism not all do)."""
        if self.trainer is not None and (known := self.trainer.distributed_sampler_kwargs):
            return known["rank"], known["num_replicas"]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _trained(self) -> int:
        # Lightning's own count over the whole run, kept in checkpoints. Its count of epochs is not used: after a
        # checkpoint that was written at an epoch's end, runs limited by max_steps resume with that one too high.
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return progress.processed


def _vocabulary(state: dict[str, Any]) -> str:
    return f"{state['tokenizer']}, {state['vocab_size']} tokens, sha256 {state['tokenizer_sha256'][:12]}"
