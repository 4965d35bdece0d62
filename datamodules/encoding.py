"""Text to tokens, piece by piece, in this process or in several.

- Pieces are gathered into tasks of about a million characters, whose order and content depend on the text alone; so a
  build that was stopped goes on at the task it had come to.
- Processes are forked and get text through pipes: the source is read once, by the parent, whatever it is (a compressed
  file cannot be read from its middle). They end with the parent, even when it is killed.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from cubelet.common.errors import UserError

from .split import END, START, Piece
from .tokenizers import Tokenizer, id_type

CHARACTERS = 1 << 20  # of a task, about; bounds what a process holds
TEXTS = 4096  # of a task, at most


class WorkerError(UserError, RuntimeError):
    """A process that was to encode text ended by itself."""


@dataclass
class Task:
    """Texts that belong to one part; each is encoded by itself.

    Attributes:
        part: "train" or "val".
        texts: what to encode. marks: of each, whether it begins a document (START) or an end token follows (END).
    """

    part: str
    texts: list[str]
    marks: list[int]

    def characters(self) -> int:
        return sum(map(len, self.texts))


@dataclass
class Encoded:
    """Tokens of a task, and where documents begin among them.

    Attributes:
        task: number of the task.
        starts: (documents,) int64, from the first token of the task.
        characters: of the task's texts, in all. first_characters: of the very first token.
    """

    task: int
    part: str
    tokens: np.ndarray
    starts: np.ndarray
    characters: int
    first_characters: int


def make_tasks(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[Task]:
    """Gather pieces into tasks; texts are cut only where a document ends or the tokenizer allows it."""
    carried = {"train": _Carry(), "val": _Carry()}
    for part, text, mark in pieces:
        carry = carried[part]
        if mark & START and carry.text:
            carry.close()
        if mark & START:
            carry.mark |= START
        if mark & END:
            carry.mark |= END
            carry.close()
        else:
            carry.text += text
            carry.split(tokenizer)
        if carry.is_full():
            yield carry.take(part)
    for part, carry in carried.items():
        if carry.text:
            carry.close()
        if carry.texts:
            yield carry.take(part)


class _Carry:
    """Text of one part that is not in a task yet."""

    def __init__(self) -> None:
        self.text, self.mark = "", 0
        self.texts: list[str] = []
        self.marks: list[int] = []
        self.characters = 0

    def close(self) -> None:
        self._add(self.text)
        self.text = ""

    def split(self, tokenizer: Tokenizer) -> None:
        if len(self.text) < CHARACTERS:
            return
        end = tokenizer.cut(self.text)
        if not end and len(self.text) >= 16 * CHARACTERS:
            end = len(self.text)
        if end:
            rest = self.text[end:]
            self._add(self.text[:end])
            self.text = rest

    def _add(self, text: str) -> None:
        self.texts.append(text)
        self.marks.append(self.mark)
        self.mark = 0
        self.characters += len(text)

    def is_full(self) -> bool:
        return self.characters >= CHARACTERS or len(self.texts) >= TEXTS

    def take(self, part: str) -> Task:
        task = Task(part, self.texts, self.marks)
        self.texts, self.marks, self.characters = [], [], 0
        return task


def encode_task(number: int, task: Task, tokenizer: Tokenizer) -> Encoded:
    """The tokens of a task."""
    dtype = id_type(tokenizer.vocab_size)
    parts, starts, length = [], [], 0
    for text, mark in zip(task.texts, task.marks, strict=True):
        if mark & START:
            starts.append(length)
        parts.append(tokenizer.encode_array(text).astype(dtype, copy=False))
        length += len(parts[-1])
        if mark & END:
            parts.append(np.array([tokenizer.eos_id], dtype=dtype))
            length += 1
    tokens = np.concatenate(parts)
    first = len(tokenizer.decode(tokens[:1])) if length and not (task.marks[0] & END and not task.texts[0]) else 0
    return Encoded(number, task.part, tokens, np.array(starts, np.int64), task.characters(), first)


def encode_tasks(tasks: Iterable[tuple[int, Task]], tokenizer: Tokenizer, processes: int) -> Iterator[Encoded]:
    """Encode numbered tasks, in their order.

    Args:
        processes: how many encode at the same time; 1 encodes in this process.

    Raises:
        WorkerError: a process was killed, mostly for want of memory.
    """
    if (
        processes <= 1
        or multiprocessing.current_process().daemon
        or "fork" not in multiprocessing.get_all_start_methods()
    ):
        for number, task in tasks:
            yield encode_task(number, task, tokenizer)
        return
    waiting: deque[Future[Encoded]] = deque()
    with _quiet_fork(), _pool(tokenizer, processes) as pool:
        try:
            for number, task in tasks:
                waiting.append(pool.submit(_encode, number, task))
                while len(waiting) > 2 * processes or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkerError(
                f"one of {processes} processes that encode the corpus was ended by the system, mostly for want of "
                "memory; set num_proc to a smaller number, or 1"
            ) from error


_tokenizer: Tokenizer | None = None  # of a worker process


def _begin_worker(tokenizer: Tokenizer, parent: int) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent ends the others

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _encode(number: int, task: Task) -> Encoded:
    assert _tokenizer is not None
    return encode_task(number, task, _tokenizer)


@contextlib.contextmanager
def _pool(tokenizer: Tokenizer, processes: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin_worker,
        initargs=(tokenizer, os.getpid()),
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _quiet_fork() -> Iterator[None]:
    """The library's threads and a warning of Python's about threads at a fork have no part in these processes."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork.*", DeprecationWarning)
            yield
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before
