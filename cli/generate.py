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
    seed: int = 0,
    root: str = "runs",
) -> None:
    """Continue a prompt from a checkpoint and print the text.

    Args:
        ckpt_path: a checkpoint, or `last` for the newest valid one under `root`.
        prompt: text to continue, made of characters the run's tokenizer knows.
        max_new_tokens: tokens to add.
        temperature: 0 for greedy decoding.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the smallest set of tokens whose probabilities sum to p.
        seed: the same seed and checkpoint give the same text.
        root: where `last` looks.
    """
    path = resolve_checkpoint(ckpt_path, root)
    if path is None:
        raise ConfigError(f"--ckpt_path={ckpt_path} needs a run; give the path of a checkpoint, or `last`")
    model = LanguageModel.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    device = L.Fabric(accelerator="auto", devices=1).device
    try:
        text = model.to(device).sample_text(
            prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        )
    except ValueError as error:  # a prompt that the vocabulary cannot spell, a temperature below 0
        raise ConfigError(str(error)) from error
    sys.stdout.write(text + "\n")


def generate_command(arguments: Sequence[str]) -> None:
    """Parse `arguments` and generate."""
    quiet_dependencies()
    auto_cli(generate, args=list(arguments), as_positional=False, prog="cubelet generate", parser_class=Parser)
