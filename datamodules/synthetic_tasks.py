"""Tasks with one right answer at every length: a question, a separator, and the answer that is to be predicted.

The battery of Kazemnejad et al. 2023 (https://arxiv.org/abs/2305.19466) and Ruoss et al. 2023
(https://arxiv.org/abs/2305.16843), with recall by Arora et al. 2023 (https://arxiv.org/abs/2312.04927). A task is a
function (generator, size n, number of symbols) → (text, predicted): the row's tokens, and which of them the model is to
predict from those before. Token `symbols`, the one above the alphabet, is the separator.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Row = tuple[np.ndarray, np.ndarray]


def question_and_answer(question: np.ndarray, answer: np.ndarray, separator: int) -> Row:
    """One row: the question, the separator, the answer, of which the answer is predicted."""
    text = np.concatenate([question, [separator], answer])
    return text, np.arange(len(text)) > len(question)


def copy_row(draw: np.random.Generator, n: int, symbols: int) -> Row:
    """n symbols, and the same again. Finding the symbol n + 1 places back needs positions, and n changes."""
    question = draw.integers(0, symbols, n)
    return question_and_answer(question, question, symbols)


def reverse_row(draw: np.random.Generator, n: int, symbols: int) -> Row:
    """n symbols, and the same from the last to the first."""
    question = draw.integers(0, symbols, n)
    return question_and_answer(question, question[::-1], symbols)


def sort_row(draw: np.random.Generator, n: int, symbols: int) -> Row:
    """n different symbols, and the same from the smallest to the largest."""
    question = draw.permutation(symbols)[:n]
    return question_and_answer(question, np.sort(question), symbols)


def addition_row(draw: np.random.Generator, n: int, symbols: int) -> Row:
    """Two numbers of n decimal digits with the plus sign (token 10) between them, and their sum of n + 1 digits.

    The least significant digit comes first, as in Ruoss et al., so that carries run in the order of writing.
    """
    numbers = draw.integers(0, 10, (2, n))  # (summand, digit)
    total, carry = np.zeros(n + 1, dtype=np.int64), 0
    for place, column in enumerate(numbers.sum(0)):
        carry, total[place] = divmod(column + carry, 10)
    total[n] = carry
    return question_and_answer(np.concatenate([numbers[0], [10], numbers[1]]), total, symbols)


def parity_row(draw: np.random.Generator, n: int, symbols: int) -> Row:
    """n bits, and after the separator the parity of the first, of the first two, …, of all.

    The running form is what a scratchpad writes; a single bit would be right by chance in half of all rows.
    """
    bits = draw.integers(0, 2, n)
    return question_and_answer(bits, np.cumsum(bits) % 2, symbols)


def recall_row(draw: np.random.Generator, n: int, symbols: int) -> Row:
    """n pairs (key, value), then all keys again in another order, each to be answered by its value; no separator.

    Keys are the first half of the symbols, without repetition within a row, values the second half.
    """
    half = symbols // 2
    pairs = np.stack([draw.permutation(half)[:n], draw.integers(half, symbols, n)], axis=1)  # (pair, key and value)
    text = np.concatenate([pairs.ravel(), pairs[draw.permutation(n)].ravel()])
    place = np.arange(4 * n)
    return text, (place >= 2 * n) & (place % 2 == 1)


@dataclass(frozen=True)
class SyntheticTask:
    """A task's rows and their sizes.

    Attributes:
        row: (generator, size n, symbols) → (text, predicted).
        size: largest n whose row has at most `length` inputs (one token less than the row).
        needed_symbols: smallest alphabet for rows of size n.
    """

    row: Callable[[np.random.Generator, int, int], Row]
    size: Callable[[int], int]
    needed_symbols: Callable[[int], int]


TASKS = {
    "copy": SyntheticTask(copy_row, lambda length: (length - 1) // 2, lambda n: 2),
    "reverse": SyntheticTask(reverse_row, lambda length: (length - 1) // 2, lambda n: 2),
    "sort": SyntheticTask(sort_row, lambda length: (length - 1) // 2, lambda n: max(2, n)),
    "addition": SyntheticTask(addition_row, lambda length: (length - 2) // 3, lambda n: 11),
    "parity": SyntheticTask(parity_row, lambda length: (length - 1) // 2, lambda n: 2),
    "recall": SyntheticTask(recall_row, lambda length: length // 4, lambda n: 2 * n),
}
