"""`TextDataModule`: real text as batches of next-token prediction, for Lightning's Trainer or a plain loop.

Preparing happens in the constructor; it is safe in every process at once and a matter of milliseconds once the cache is
filled (`token_cache.py`).
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from cubelet.common.checks import check_at_least, check_choice
from cubelet.common.errors import ConfigError
from cubelet.common.seeds import derive_key

from .base import ResumableDataModule
from .corpora import open_corpus
from .documents import DocumentIndex, DocumentMode
from .folder import Part, Settings, TokenizedCorpus
from .loader import TrainingLoader, WindowDataset, WindowLoader
from .report import corpus_line
from .sampler import Mixture, TrainingDocuments, TrainingWindows, ValidationWindows, check_length
from .split import DEFAULT_SPLIT, Split
from .token_array import concatenate
from .token_cache import default_cache, tokenize_corpora
from .token_files import is_token_corpus, open_token_corpus
from .tokenizers import KINDS, IdTokenizer, Tokenizer

# Of a validation batch, where nobody says: enough to keep a core busy, small beside what a training step holds.
VAL_TOKENS = 4096


class TextDataModule(ResumableDataModule):
    """Batches `{"tokens": (b, s) int64, "targets": (b, s) int64}` of text; targets are −100 where nothing is to be
    predicted.

    Training batches are random windows whose order depends on (seed, epoch, index) alone (`sampler.py`); validation is
    the whole held-out text, every target once.

    Args:
        corpus: `shakespeare`, `plays`; the path of a text file, a table, a folder of them, a saved dataset or a file of
            tokens (docs/data.md lists them all); such a dataset itself; or several: {corpus: weight}.
        tokenizer: `char`, `byte` or `bpe`, made from the text; or one that exists: the path of a `tokenizer.json` or of
            a folder that holds one, or a name of tiktoken's that is on this disk.
        context_length: tokens a training window predicts.
        batch_size: windows in a batch, on each rank.
        vocab_size: tokens of a `bpe` tokenizer.
        val_context_length: tokens a validation window predicts; None for context_length.
        val_batch_size: validation windows in a batch, on each rank; None for about 4,096 tokens, at least batch_size
            windows.
        val_fraction: share of the characters held out, where the corpus does not say (`plays`: four whole plays).
        batches_per_epoch: training batches in an epoch; None for one pass over the text.
        num_workers: processes that gather batches ahead; a batch costs some 0.05 ms, so 0 is mostly best.
        seed: of the order of the training windows; independent of the global seed.
        cache_dir: where tokenized text lies; None for `$CUBELET_CACHE` or `~/.cache/cubelet`.
        suffixes: of a folder's files that are read, such as [.py, .md]; None for all that hold text.
        text_field: column of tables and datasets; None for `text`.
        split: what is held out: whole `documents`, the `tail` of the text, or `auto`, documents where they exist.
        val_corpus: another corpus to validate on, all of it; then nothing of `corpus` is held out.
        test_corpus: another corpus to test on; None for what is validated on.
        documents: `join`, a corpus is one text; `pack`, a batch has `documents` (b, s), which tells the documents in a
            row apart, and nothing is predicted across them; `crop`, a row lies within one document.
        eos: an end token behind each document; None where the tokenizer has one.
        num_proc: processes that tokenize; None for one a core.

    Attributes:
        tokenizer: the tokenizer, an object with `encode`, `decode`, `to_dict`.
        vocab_size: its number of tokens.
        characters_per_token: of the validation text; bits per character = loss / ln 2 / characters_per_token.
        sha256: digest of the text.

    Raises:
        UserError: bad sizes or bad text, in one sentence, at construction (each kind of it is a ValueError or an
            OSError as well).

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "words.txt").write_text("to be or not to be, " * 50)
        >>> data = TextDataModule(str(folder / "words.txt"), context_length=8, batch_size=2, cache_dir=str(folder))
        >>> batch = next(iter(data.train_dataloader()))
        >>> data.vocab_size, batch["tokens"].shape
        (8, torch.Size([2, 8]))
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        corpus: str | dict[str, float] = "shakespeare",
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
        suffixes: list[str] | None = None,
        text_field: str | None = None,
        split: Split = DEFAULT_SPLIT,
        val_corpus: str | None = None,
        test_corpus: str | None = None,
        documents: DocumentMode = "join",
        eos: bool | None = None,
        num_proc: int | None = None,
    ) -> None:
        super().__init__()
        # A dict of datasets is one corpus; only a plain one holds weights.
        weighted: list[tuple[Any, float]] = list(corpus.items()) if type(corpus) is dict else [(corpus, 1.0)]
        sizes = {
            "context_length": context_length,
            "batch_size": batch_size,
            "val_context_length": val_context_length,
            "val_batch_size": val_batch_size,
            "batches_per_epoch": batches_per_epoch,
            "num_proc": num_proc,
        }
        for name, size in sizes.items():
            if size is not None:
                _check(check_at_least, name, size, 1)
        _check(check_at_least, "num_workers", num_workers, 0)
        _check(check_choice, "documents", documents, DocumentMode)
        _check(check_choice, "split", split, Split)
        # Not to the logger: `vocab_size` and others may well be the model's hyper-parameters too, with other values.
        self.save_hyperparameters(ignore=["cache_dir", "num_proc", "corpus"], logger=False)
        self.hparams["corpus"] = (
            {_name(one): weight for one, weight in weighted} if type(corpus) is dict else _name(corpus)
        )
        self.corpus, self.seed, self.num_workers = self.hparams["corpus"], seed, num_workers
        self.context_length, self.batch_size, self.batches_per_epoch = context_length, batch_size, batches_per_epoch
        self.val_context_length = val_context_length or context_length
        self.val_batch_size = val_batch_size or max(batch_size, VAL_TOKENS // self.val_context_length)
        self.documents: DocumentMode = documents
        self._corpora, self._weights = [one for one, _ in weighted], [weight for _, weight in weighted]
        self._others = {"val": val_corpus, "test": test_corpus}
        self._reading = {"suffixes": suffixes, "text_field": text_field}
        self._settings = Settings(tokenizer, vocab_size, eos, split, val_fraction, num_proc)
        self._cache = Path(cache_dir).expanduser() if cache_dir else default_cache()
        self._prepare()
        lengths = [corpus.train_tokens for corpus in self._train]
        for length in lengths if documents != "crop" else ():
            check_length(length, context_length, "training")
        check_length(sum(corpus.val_tokens for corpus in self._val), 1, "validation")

    def _prepare(self) -> None:
        parts: list[Part | None] = [None if self._others["val"] is None else "train"] * len(self._corpora)
        extra = [corpus for corpus in self._others.values() if corpus is not None]
        done = self._tokenize([*self._corpora, *extra], [*parts, *("val" for _ in extra)])
        self._train, extra = done[: len(self._corpora)], done[len(self._corpora) :]
        self._test = [extra.pop()] if self._others["test"] is not None else None
        self._val = extra or self._train
        self.tokenizer = done[0].tokenizer
        for corpus, one in zip(self._corpora, self._train, strict=True):
            if line := corpus_line(_name(corpus), one.taken):
                rank_zero_info(line)

    def _tokenize(self, corpora: list[Any], parts: list[Part | None]) -> list[TokenizedCorpus]:
        """All corpora with one tokenizer: files of tokens as they are, everything else through the cache."""
        paths = [Path(corpus).expanduser() if isinstance(corpus, (str, Path)) else None for corpus in corpora]
        ready = [path is not None and is_token_corpus(path) for path in paths]
        texts = [n for n, is_ready in enumerate(ready) if not is_ready]
        sources = [open_corpus(corpora[n], self._cache, **self._reading) for n in texts]
        done = dict(zip(texts, self._through_cache(sources, [parts[n] for n in texts]), strict=True))
        settings = self._settings
        for _ in range(2 if sum(ready) > 1 else 1):  # the second time with the largest vocabulary, where none is named
            for n, path in enumerate(paths):
                if ready[n] and path is not None:
                    done[n] = open_token_corpus(path, settings, self._cache, parts[n])
            if settings.tokenizer in KINDS and settings.vocab_size is None:
                sizes = [one.tokenizer.vocab_size for n, one in done.items() if ready[n]]
                settings = replace(settings, vocab_size=max(sizes, default=None))
        ordered = [done[n] for n in range(len(corpora))]
        if len({corpus.tokenizer.sha256 for corpus in ordered}) > 1:
            both = zip(corpora, ordered, strict=True)
            sizes = ", ".join(f"{_name(name)} {one.tokenizer.vocab_size}" for name, one in both)
            raise ConfigError(
                f"the corpora have different vocabularies ({sizes}); name the tokenizer that all share, or the "
                "vocab_size of files of tokens"
            )
        return ordered

    def _through_cache(self, sources: list[Any], parts: list[Part | None]) -> list[TokenizedCorpus]:
        return tokenize_corpora(sources, self._settings, self._cache, parts) if sources else []

    @property
    def vocab_size(self) -> int:
        """Number of tokens, from construction on."""
        return self.tokenizer.vocab_size

    @property
    def characters_per_token(self) -> float:
        """Characters to a target of the validation text."""
        targets = [max(1, corpus.val_tokens - 1) for corpus in self._val]
        characters = [corpus.characters_per_token * n for corpus, n in zip(self._val, targets, strict=True)]
        return sum(characters) / sum(targets)

    @property
    def sha256(self) -> str:
        """Digest of the text, training and validation part."""
        digests = [corpus.sha256 for corpus in self._train + (self._val if self._val is not self._train else [])]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def prepare_data(self) -> None:
        """Make the cache again where somebody emptied it since construction, or where this node has one of its own."""
        if not all(file.path.exists() for corpus in self._train + self._val for file in corpus.train.files):
            self._prepare()

    def train_dataloader(self) -> TrainingLoader:
        """Random windows; a resumable loader of `batches_per_epoch` batches an epoch."""
        windows = self._windows(self._train, "train", self.context_length)
        rank, world_size = self._place()
        options = {"rank": rank, "world_size": world_size, "batches_per_epoch": self.batches_per_epoch}
        if len(self._train) == 1:
            kind = TrainingWindows if windows.crops is None else TrainingDocuments
            length = len(windows) if windows.windows is None else windows.windows
            order = kind(length, self.context_length, self.batch_size, seed=self.seed, **options)
        else:
            order = self._mixture(windows, options)
        self._repeat_few(order)
        return TrainingLoader(windows, order, **self._loading(), trained=self._counter())

    def _mixture(self, windows: WindowDataset, options: dict[str, Any]) -> Mixture:
        parts, bases, at = [], [], 0
        for number, corpus in enumerate(self._train):
            seed, end = derive_key(self.seed, number), at + corpus.train_tokens
            if windows.crops is None:
                parts.append(TrainingWindows(corpus.train_tokens, self.context_length, 1, seed=seed))
                bases.append(at)
            else:
                first = windows.crops.before(at)
                parts.append(TrainingDocuments(windows.crops.before(end) - first, self.context_length, 1, seed=seed))
                bases.append(first)
            at = end
        return Mixture(parts, self._weights, bases, self.batch_size, seed=self.seed, **options)

    def val_dataloader(self) -> WindowLoader:
        """The whole held-out text, every target once."""
        return self._whole(self._val)

    def test_dataloader(self) -> WindowLoader:
        """The test corpus, every target once; the held-out text where there is none."""
        return self._whole(self._test or self._val)

    def _whole(self, corpora: list[TokenizedCorpus]) -> WindowLoader:
        windows = self._windows(corpora, "val", self.val_context_length)
        rank, world_size = self._place()
        length, size = self.val_context_length, self.val_batch_size
        order = ValidationWindows(len(windows), length, size, rank=rank, world_size=world_size, windows=windows.windows)
        return WindowLoader(windows, order, **self._loading())

    def _windows(self, corpora: list[TokenizedCorpus], part: Part, context_length: int) -> WindowDataset:
        arrays = [corpus.train if part == "train" else corpus.val for corpus in corpora]
        tokens = concatenate(arrays)
        if self.documents == "join":
            return WindowDataset(tokens, context_length)
        places, at = [], 0
        for corpus, array in zip(corpora, arrays, strict=True):
            places.append((at, corpus.train_documents if part == "train" else corpus.val_documents))
            at += len(array)
        return WindowDataset(tokens, context_length, documents=DocumentIndex(places, at), mode=self.documents)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to know of the text to notice another one."""
        names = [self.corpus] if isinstance(self.corpus, str) else list(self.corpus)
        return {
            "corpus": " + ".join(Path(name).name for name in names),
            "corpus_sha256": self.sha256,
            "tokenizer": "ids" if isinstance(self.tokenizer, IdTokenizer) else Path(self._settings.tokenizer).name,
            "tokenizer_sha256": self.tokenizer.sha256,
            "vocab_size": self.vocab_size,
            "taken": {name: corpus.taken for name, corpus in zip(names, self._train, strict=True)},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of another vocabulary, and to go on training on another text.

        Raises:
            ConfigError: says what differs.
        """
        # Before 0.2.0 a folder was its .txt and .md files, its end held out.
        hint = "" if "taken" in state_dict else " (for a folder of 0.1.0: --data.suffixes=[.txt,.md] --data.split=tail)"
        vocabulary = (
            f"the checkpoint's vocabulary ({_vocabulary(state_dict)}) is not this data's "
            f"({_vocabulary(self.state_dict())}): its token ids mean other text; use the corpus and tokenizer it was "
            "trained with"
        )
        self._check_state(state_dict, vocabulary=vocabulary, data="text", hint=hint)


def _name(corpus: Any) -> str:
    return str(corpus) if isinstance(corpus, (str, Path)) else getattr(corpus, "name", type(corpus).__name__)


def _check(check: Any, *arguments: Any) -> None:
    """A check of an argument, as an error of its user."""
    try:
        check(*arguments)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _vocabulary(state: dict[str, Any]) -> str:
    return f"{state['tokenizer']}, {state['vocab_size']} tokens, sha256 {state['tokenizer_sha256'][:12]}"
