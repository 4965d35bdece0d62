"""Greedy generation beside `transformers`: a Llama of the same size, dynamic cache, in one process.

    python benchmarks/generation.py [--tokens 512] [--threads 2]

Prints CPU and wall seconds of each, the better of two runs that take turns; CPU time counts all threads, so other work
on the machine weighs little.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from cubelet.models import Decoder
from cubelet.models.blocks import ResidualBlock
from cubelet.models.rotary import RoPE

DIMS, LAYERS, HEADS, VOCAB, PROMPT = 256, 4, 4, 256, 16


def llama() -> LlamaForCausalLM:
    """A Llama of DIMS, its MLP as wide as a SwiGLU of ratio 4."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIMS,
        intermediate_size=DIMS * 8 // 3 // 8 * 8,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    peer, own = (
        llama(),
        Decoder(VOCAB, DIMS, LAYERS, HEADS, rotary=RoPE, block=partial(ResidualBlock, activation="swiglu")),
    )
    counts = [sum(p.numel() for p in model.parameters()) for model in (own, peer)]
    print(f"{args.tokens} tokens, parameters {counts[0]:,} and {counts[1]:,}")

    def generate_peer(prompt: Tensor) -> Tensor:
        mask = torch.ones_like(prompt)
        with torch.no_grad():
            return peer.generate(prompt, attention_mask=mask, max_new_tokens=args.tokens, do_sample=False)

    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "cubelet": lambda prompt: own.generate(prompt, args.tokens, temperature=0),
        "transformers": generate_peer,
    }
    for batch in args.batches:
        prompt = torch.randint(1, VOCAB, (batch, PROMPT))
        best = {name: (float("inf"), float("inf")) for name in calls}
        for _ in range(2):
            for name, call in calls.items():
                cpu, wall = time.process_time(), time.perf_counter()
                assert call(prompt).shape == (batch, PROMPT + args.tokens)
                best[name] = min(best[name], (time.process_time() - cpu, time.perf_counter() - wall))
        for name, (cpu, wall) in best.items():
            print(f"batch {batch:3} {name:14} {cpu:7.2f} s CPU {wall:7.2f} s", flush=True)


if __name__ == "__main__":
    main()
