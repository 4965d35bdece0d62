"""Text from a model with a decoder and a tokenizer: one prompt, a batch of them, or piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from cubelet.models import Decoder


class TextGeneration:
    """Mixin of a module that has `decoder`, `tokenizer` and `context_length`.

    Texts are pure functions of the weights and `seed`: each row draws from a generator of its own, so a prompt goes on
    in a batch as it does alone.
    """

    decoder: Decoder
    tokenizer: Any
    context_length: int | None

    def sample_text(
        self,
        prompt: str,
        max_new_tokens: int = 300,
        *,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        **options: Any,
    ) -> str:
        """The prompt and its continuation.

        Args:
            prompt: text to continue.
            max_new_tokens, temperature, top_k, top_p, options: see `Decoder.generate`; `stop` is a text that ends the
                continuation (left out of it).
            seed: of the draws.

        Raises:
            RuntimeError: the model has no tokenizer (built in Python and never fitted on text).
            ValueError: a prompt that is empty or has characters outside the vocabulary.
        """
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        return self.sample_texts([prompt], max_new_tokens, **settings, **options)[0]

    def sample_texts(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 300,
        *,
        seed: int = 0,
        stop: str | None = None,
        **options: Any,
    ) -> list[str]:
        """`sample_text` for several prompts in one batch; with `num_return_sequences` k, k texts for each in turn."""
        tokens = self._encode_prompts(prompts)
        copies = options.get("num_return_sequences", 1)
        options.setdefault("temperature", 0.8)
        out = self.decoder.generate_with_details(
            tokens,
            max_new_tokens,
            generator=self._generators(len(tokens) * copies, copies, seed),
            **self._reading(options),
        )
        texts = [self.tokenizer.decode([*tokens[row // copies], *new]) for row, new in enumerate(out.new_tokens())]
        return (
            texts if stop is None else [_cut(text, len(prompts[row // copies]), stop) for row, text in enumerate(texts)]
        )

    def stream_text(
        self, prompt: str, max_new_tokens: int = 300, *, seed: int = 0, stop: str | None = None, **options: Any
    ) -> Iterator[str]:
        """Yield what `sample_text` adds to the prompt, piece by piece."""
        (tokens,) = self._encode_prompts([prompt])
        options.setdefault("temperature", 0.8)
        ids, start, sent = list(tokens), len(self.tokenizer.decode(tokens)), 0
        for new in self.decoder.stream(
            [tokens], max_new_tokens, generator=self._generators(1, 1, seed), **self._reading(options)
        ):
            ids.append(int(new))
            text = self.tokenizer.decode(ids)[start:]
            if stop is not None and stop in text:
                yield text[sent : text.index(stop)]
                return
            # Half a character, or what may be the beginning of the stop text, waits.
            held = 0 if stop is None else max((n for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
            if not text.endswith("\ufffd") and len(text) - held > sent:
                yield text[sent : len(text) - held]
                sent = len(text) - held
        text = self.tokenizer.decode(ids)[start:]
        if sent < len(text):
            yield text[sent:]

    def _encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        if self.tokenizer is None:
            raise RuntimeError(
                "this model has no tokenizer; fit it on a TextDataModule, or load such a run's checkpoint"
            )
        tokens = [list(self.tokenizer.encode(prompt)) for prompt in prompts]
        if not tokens or not all(tokens):
            raise ValueError("the prompt is empty; give at least one character to continue")
        return tokens

    def _generators(self, count: int, copies: int, seed: int) -> list[torch.Generator]:
        """One a row; the copies of a prompt draw from seed, seed + 1, …"""
        return [
            torch.Generator(self.decoder.embedding.weight.device).manual_seed(seed + row % copies)
            for row in range(count)
        ]

    def _reading(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"context_length": self.context_length} | options


def _cut(text: str, start: int, stop: str) -> str:
    """Text up to the first `stop` behind its first `start` characters."""
    end = text.find(stop, start)
    return text if end < 0 else text[:end]
