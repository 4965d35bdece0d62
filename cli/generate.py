"""`cubelet generate`: continue a prompt from a checkpoint, nothing else needed."""

import sys
from collections.abc import Sequence

import lightning as L
from jsonargparse import auto_cli

from cubelet.common.errors import ConfigError
from cubelet.lightning_modules.language_model import LanguageModel

from .parser import Parser
from .quiet import quiet_dependencies
from .run import resolve_checkpoint


def generate(
    ckpt_path: str = "last",
    prompt: str = "\n",
    max_new_tokens: int = 400,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | None = None,
    num_return_sequences: int = 1,
    seed: int = 0,
    root: str = "runs",
) -> None:
    """Continue a prompt from a checkpoint and print the text as it comes.

    Args:
        ckpt_path: a checkpoint, or `last` for the newest valid one under `root`.
        prompt: text to continue, made of characters the run's tokenizer knows.
        max_new_tokens: tokens to add.
        temperature: 0 for greedy decoding.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the smallest set of tokens whose probabilities sum to p.
        repetition_penalty: above 1 makes tokens that were there less likely to come again; 1.2 is usual.
        stop: text that ends the continuation.
        num_return_sequences: how many continuations; several are printed when all are done, with an empty line between.
        seed: the same seed and checkpoint give the same text.
        root: where `last` looks.
    """
    path = resolve_checkpoint(ckpt_path, root)
    if path is None:
        raise ConfigError(f"--ckpt_path={ckpt_path} needs a run; give the path of a checkpoint, or `last`")
    model = LanguageModel.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    device = L.Fabric(accelerator="auto", devices=1).device
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    options |= {"stop": stop, "seed": seed}
    model = model.to(device)
    try:
        if num_return_sequences > 1:
            texts = model.sample_texts([prompt], max_new_tokens, num_return_sequences=num_return_sequences, **options)
            sys.stdout.write("\n\n".join(texts) + "\n")
            return
        for place, piece in enumerate(model.stream_text(prompt, max_new_tokens, **options)):
            sys.stdout.write(piece if place else prompt + piece)
            sys.stdout.flush()
    except ValueError as error:  # a prompt that the vocabulary cannot spell, a temperature below 0
        raise ConfigError(str(error)) from error
    sys.stdout.write("\n")


def generate_command(arguments: Sequence[str]) -> None:
    """Parse `arguments` and generate."""
    quiet_dependencies()
    auto_cli(generate, args=list(arguments), as_positional=False, prog="cubelet generate", parser_class=Parser)
