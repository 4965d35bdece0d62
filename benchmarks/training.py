"""Training speed against a plain GPT, and what Lightning's Trainer costs over a bare loop.

    python benchmarks/training.py [--rounds 40] [--steps 200] [--json FILE]

1. Tokens per second of whole training steps (forward, backward, clipping-free AdamW step) relative to `PlainGPT`, the
   floor: learned positions, LayerNorm, GELU, no rotary; 4 layers, 4 heads, dims 128, context 256, batch 16, 2 threads.
   Steps of all models are interleaved in one run, one step each in turn, and medians compared.
2. CPU time a step of the default experiment under the Trainer with its loggers and progress bar, minus a bare loop of
   the same model, data and optimizer. Threads that spin while they wait are counted: OMP_WAIT_POLICY=PASSIVE or
   OMP_NUM_THREADS=1 in the environment shows the Trainer alone.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cubelet.callbacks.progress import ProgressBar
from cubelet.cli.loggers import default_loggers
from cubelet.cli.quiet import quiet_dependencies
from cubelet.datamodules import TextDataModule
from cubelet.lightning_modules import LanguageModel
from cubelet.models.attention import MultiHeadAttention
from cubelet.models.blocks import ShortConvBlock
from cubelet.models.decoder import Decoder
from cubelet.models.rotary import CombinedRotary, RoPE

VOCAB, LAYERS, HEADS, DIMS, CONTEXT, BATCH = 65, 4, 4, 128, 256, 16


class PlainLayer(nn.Module):
    """Pre-norm attention and GELU MLP, written for speed: one fused projection, SDPA, no options."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIMS, bias=False), nn.LayerNorm(DIMS, bias=False)
        self.qkv, self.out = nn.Linear(DIMS, 3 * DIMS, bias=False), nn.Linear(DIMS, DIMS, bias=False)
        self.up, self.down = nn.Linear(DIMS, 4 * DIMS, bias=False), nn.Linear(4 * DIMS, DIMS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = (t.view(b, s, HEADS, d // HEADS).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(d, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainGPT(nn.Module):
    """The floor: a GPT with learned positions and tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, DIMS), nn.Embedding(CONTEXT, DIMS)
        self.layers, self.norm = nn.ModuleList(PlainLayer() for _ in range(LAYERS)), nn.LayerNorm(DIMS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.tokens.weight)


def training_step(model: nn.Module) -> Callable[[], None]:
    """One whole training step on random tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        tokens = torch.randint(VOCAB, (BATCH, CONTEXT + 1), generator=generator)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def interleave(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round, one of each in turn."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= 3:
                taken[name].append(time.perf_counter() - start)
    return taken


def measure_speed(rounds: int) -> list[dict[str, object]]:
    torch.manual_seed(0)
    decoder = partial(Decoder, VOCAB, DIMS, LAYERS, HEADS)
    models = {
        "PlainGPT (floor)": PlainGPT(),
        "Decoder, RoPE": decoder(rotary=RoPE),
        "Decoder, CombinedRotary (folded)": decoder(rotary=CombinedRotary),
        "Decoder, RoPE, qk-norm, short convolutions (the default)": decoder(
            rotary=RoPE, attention=partial(MultiHeadAttention, qk_norm=True), block=ShortConvBlock
        ),
    }
    taken = interleave({name: training_step(model) for name, model in models.items()}, rounds)
    floor = taken["PlainGPT (floor)"]
    rows = []
    for name, seconds in taken.items():
        # Pair by pair within a round: what slows the machine slows both.
        ratio = statistics.median(f / s for f, s in zip(floor, seconds, strict=True))
        rows.append({"model": name, "tokens_per_second": BATCH * CONTEXT / statistics.median(seconds), "ratio": ratio})
    return rows


def measure_trainer(steps: int) -> dict[str, float]:
    """CPU milliseconds a step, Trainer and bare loop, on the default experiment's model."""
    quiet_dependencies()
    adamw = partial(torch.optim.AdamW, lr=5e-3, fused=True)
    parts = {
        "rotary": RoPE, "attention": partial(MultiHeadAttention, qk_norm=True), "block": ShortConvBlock,
        "optimizer": adamw,
    }  # fmt: skip
    data = TextDataModule()

    def bare() -> float:
        L.seed_everything(0, verbose=False)
        model = LanguageModel(data.vocab_size, DIMS, LAYERS, HEADS, **parts)
        optimizer = adamw(model.parameters())
        start = time.process_time()
        for done, batch in enumerate(data.train_dataloader(), start=1):
            loss, _ = model.loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if done == steps:
                break
        return (time.process_time() - start) / steps * 1e3

    class Clock(L.Callback):
        start = end = 0.0

        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.start = time.process_time()

        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.end = time.process_time()

    def trained(folder: str) -> float:
        L.seed_everything(0, verbose=False)
        clock = Clock()
        trainer = L.Trainer(
            accelerator="cpu", max_steps=steps, log_every_n_steps=20, gradient_clip_val=1.0, limit_val_batches=0,
            logger=default_loggers(folder, "run"), callbacks=[ProgressBar(), clock],
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(LanguageModel(data.vocab_size, DIMS, LAYERS, HEADS, **parts), data)
        return (clock.end - clock.start) / steps * 1e3

    pairs = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            pairs.append((bare(), trained(folder)))
    return {
        "bare_ms": statistics.median(b for b, _ in pairs),
        "trainer_ms": statistics.median(t for _, t in pairs),
        "overhead_ms": statistics.median(t - b for b, t in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="interleaved training steps of each model")
    parser.add_argument("--steps", type=int, default=200, help="steps of each Trainer run")
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows = measure_speed(options.rounds)
    print("| model | tokens/s | relative to the floor |\n|---|---|---|")
    for row in rows:
        print(f"| {row['model']} | {row['tokens_per_second']:,.0f} | {row['ratio']:.3f} |")
    overhead = measure_trainer(options.steps)
    print("\nCPU ms a step of the default experiment: " + ", ".join(f"{k} {v:.2f}" for k, v in overhead.items()))
    if options.json:
        options.json.write_text(json.dumps({"speed": rows, "trainer": overhead}, indent=2))


if __name__ == "__main__":
    main()
