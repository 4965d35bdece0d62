"""The data room once more, slowly: Python integers, one window at a time, strings instead of arrays."""

import math

MASK = 2**64 - 1


def slow_mix(x: int, key: int) -> int:
    """splitmix64's finaliser on one Python integer."""
    x = ((x ^ (key & MASK)) + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def slow_key(*parts: int) -> int:
    key = 0
    for part in parts:
        key = slow_mix(key, part)
    return key


def slow_permute(i: int, size: int, key: int, rounds: int = 6) -> int:
    """One place of the keyed permutation of range(size): a Feistel network on Z_a × Z_b, walked until inside."""
    a = math.ceil(math.sqrt(size))
    b = math.ceil(size / a)
    while True:
        left, right = divmod(i, b)
        for turn in range(rounds):
            if turn % 2:
                right = (right + slow_mix(left, slow_key(key, turn)) % b) % b
            else:
                left = (left + slow_mix(right, slow_key(key, turn)) % a) % a
        i = left * b + right
        if i < size:
            return i


def slow_offset(seed: int, epoch: int, index: int, length: int, context_length: int) -> int:
    """Where training window number `index` of an epoch starts."""
    per_pass = max(1, (length - 1) // context_length - 1)
    slack = length - 1 - per_pass * context_length
    key = slow_key(seed, epoch, index // per_pass)
    return slow_key(key, 1) % (slack + 1) + slow_permute(index % per_pass, per_pass, key) * context_length


def slow_batch(text: list[int], offsets: list[int], context_length: int) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens and targets of the windows at `offsets`; 0 and −100 past the end."""
    tokens, targets = [], []
    for offset in offsets:
        tokens.append([text[i] if i < len(text) else 0 for i in range(offset, offset + context_length)])
        targets.append([text[i + 1] if i + 1 < len(text) else -100 for i in range(offset, offset + context_length)])
    return tokens, targets


def slow_char_ids(text: str, alphabet_of: str) -> list[int]:
    """nanoGPT's character ids: the place of each character among the sorted ones."""
    places = {character: place for place, character in enumerate(sorted(set(alphabet_of)))}
    return [places[character] for character in text]


def slow_tiny(markdown: str) -> list[tuple[str, list[str]]]:
    """(speaker, lines) of a play in the wheel's Markdown, for plays whose directions each fill whole lines."""
    played: list[tuple[str, list[str]]] = []
    for line in markdown.splitlines():
        line = line.strip()
        if line.startswith("**") and line.endswith("**"):
            played.append((line[2:-2], []))
        elif line and not line.startswith(("#", "_")) and played:
            played[-1][1].append(line)
    return played
