"""Training steps a second of models/transformer.py against x-transformers' equivalent.

    pip install x-transformers
    python benchmarks/positions.py [--rounds 15]

Same width, depth, heads, rotary encoding over the whole head, GELU, four times the width in the
perceptron, batch and optimizer; both attend through torch's fused function. Runs alternate; the
ratio is the median over rounds of the ratio within the round. Below 1, ours is faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from x_transformers import Decoder, TransformerWrapper

from isospike.models.transformer import Transformer
from isospike.positions import RoPE

GOAL = 1.1
SHAPES = ((64, 2, 4, 16, 64), (256, 4, 4, 8, 256))  # width, layers, heads, batch, length
VOCABULARY = 65


def models(width: int, layers: int, heads: int, length: int) -> dict[str, nn.Module]:
    """Ours and theirs."""
    size = width // heads
    return {
        "isospike": Transformer(VOCABULARY, width, heads, layers, RoPE(size)),
        "x-transformers": TransformerWrapper(
            num_tokens=VOCABULARY,
            max_seq_len=length,
            use_abs_pos_emb=False,
            attn_layers=Decoder(
                dim=width, depth=layers, heads=heads, attn_dim_head=size, attn_flash=True,
                rotary_pos_emb=True, rotary_emb_dim=size, ff_mult=4,
            ),
        ),
    }  # fmt: skip


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> None:
    """One step of training on the next token."""
    loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def seconds(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Of each run in each round, after three of warm-up."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(3):
                run()
            if i >= 3:
                found[name].append((time.perf_counter() - start) / 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    print("| shape | parameters, ours and theirs | steps/s, ours | ratio | goal |")
    print("|---|--:|--:|--:|---|")
    for width, layers, heads, batch, length in SHAPES:
        tokens = torch.randint(VOCABULARY, (batch, length + 1))
        runs, counts = {}, []
        for name, model in models(width, layers, heads, length).items():
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
            counts.append(sum(p.numel() for p in model.parameters()))
            runs[name] = lambda m=model, o=optimizer, t=tokens: step(m, o, t)
        found = seconds(runs, args.rounds)
        ours, theirs = found["isospike"], found["x-transformers"]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        shape = f"{batch} x {length} tokens, width {width}, {layers} layers, {heads} heads"
        verdict = "met" if ratio <= GOAL else "missed"
        print(
            f"| {shape} | {counts[0]}, {counts[1]} | {1 / statistics.median(ours):.1f} | "
            f"{ratio:.2f}x | {GOAL}x {verdict} |"
        )


if __name__ == "__main__":
    main()
