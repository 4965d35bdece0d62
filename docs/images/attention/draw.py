"""Draws the pictures of this folder: what small trained models attend to.

    python docs/images/attention/draw.py [--steps 300]

One decoder of two layers per attention, trained on the Shakespeare preset for a few hundred steps (about ten seconds
each on two cores), then shown the first line of the validation split. What a head does is linear in the values, so its
weights are read off by giving it the identity as values: the picture is what the code computes, whatever the variant.
"""

import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cubelet.datamodules import TextDataModule
from cubelet.models import attention as family
from cubelet.models.attention.masking import AttentionScope
from cubelet.models.blocks import ResidualBlock
from cubelet.models.decoder import Decoder
from cubelet.models.rotary import RoPE

DIMS, HEADS, LAYERS, CONTEXT = 64, 4, 2, 64
FOLDER = Path(__file__).parent
VARIANTS = {
    "multi_head": partial(family.MultiHeadAttention, qk_norm=True),
    "local": partial(family.SlidingWindowAttention, qk_norm=True, window=16),
    "adaptive_span": partial(family.AdaptiveSpanAttention, qk_norm=True, max_span=48, ramp=16),
    "content_gated": partial(family.ContentGatedAttention, qk_norm=True, gate_bias=0.0),
    "dynamic_conv": partial(family.DynamicConvAttention, qk_norm=True),
    "relative_force": partial(family.RelativeForceAttention, qk_norm=True),
}


def train(attention, data: TextDataModule, steps: int) -> Decoder:
    """A decoder after `steps` of AdamW, learning rate falling to 0."""
    torch.manual_seed(0)
    model = Decoder(data.vocab_size, DIMS, LAYERS, HEADS, attention=attention, rotary=RoPE, block=ResidualBlock)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    batches = iter(data.train_dataloader())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        batch = next(batches)
        loss = F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"  loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def weights(module: family.ProjectedAttention, x: Tensor) -> Tensor:
    """What each head of `module` makes of its inputs x (1, s, d): (h, s, s), row = query, column = slot of the key."""
    length = x.shape[1]
    q, k, _ = module.project(x, None)
    identity = torch.eye(length).expand(1, module.kv_heads, -1, -1)
    scope = AttentionScope(length, length, module.causal, streams=module.extra_streams(x))
    k, _ = module.update_kv(x, k, torch.zeros_like(k), scope, None)
    return module.attend(x, q, k, identity, scope)[0]


@torch.no_grad()
def draw(name: str, model: Decoder, tokens: Tensor) -> None:
    """One picture: layers × heads."""
    inputs: list[Tensor] = []
    hooks = [b.attention.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for b in model.blocks]
    model(tokens)
    for hook in hooks:
        hook.remove()
    figure, axes = plt.subplots(LAYERS, HEADS, figsize=(2.2 * HEADS, 2.3 * LAYERS), layout="constrained")
    for layer, (block, x) in enumerate(zip(model.blocks, inputs, strict=True)):
        for head, pattern in enumerate(weights(block.attention, x)):
            axis = axes[layer, head]
            axis.imshow(pattern.clamp(min=0).sqrt(), cmap="magma", vmin=0, vmax=1)
            axis.set_title(f"layer {layer}, head {head}", fontsize=8)
            axis.tick_params(labelsize=6)
    figure.supxlabel("key", fontsize=8)
    figure.supylabel("query", fontsize=8)
    file = FOLDER / f"{name}.png"
    figure.savefig(file, dpi=80)
    plt.close(figure)
    Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    data = TextDataModule(context_length=CONTEXT, batch_size=16, batches_per_epoch=steps)
    data.prepare_data()
    data.setup("fit")
    tokens = next(iter(data.val_dataloader()))["tokens"][:1]
    for name, attention in VARIANTS.items():
        print(name)
        draw(name, train(attention, data, steps), tokens)


if __name__ == "__main__":
    main()
