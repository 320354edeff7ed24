"""Training steps of :class:`isospike.Transformer` against x-transformers' equivalent.

Same width, depth, heads, rotary encoding over the whole head, GELU, four times the width in the
perceptron, batch and optimizer; both attend through torch's fused function.
"""

from functools import partial
from types import SimpleNamespace as P

import torch
from torch.nn.functional import cross_entropy

from isospike.experiments.study import Findings, Goal, study
from isospike.models.transformer import Transformer
from isospike.positions import RoPE
from isospike.report.table import Table

VOCABULARY = 65
SHAPES = ((64, 2, 4, 16, 64), (256, 4, 4, 8, 256))  # width, layers, heads, batch, length


def peer(width, layers, heads, length):
    """x-transformers' model."""
    from x_transformers import Decoder, TransformerWrapper

    size = width // heads
    return TransformerWrapper(
        num_tokens=VOCABULARY,
        max_seq_len=length,
        use_abs_pos_emb=False,
        attn_layers=Decoder(
            dim=width, depth=layers, heads=heads, attn_dim_head=size, attn_flash=True,
            rotary_pos_emb=True, rotary_emb_dim=size, ff_mult=4,
        ),
    )  # fmt: skip


def step(model, optimizer, tokens):
    """Three steps of training on the next token."""
    for _ in range(3):
        loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@study(
    "training-speed",
    question="Does the transformer of the experiments train as fast as x-transformers' one?",
    extra="peers",
    presets={"tiny": P(rounds=1, shapes=((16, 1, 2, 2, 8),), peer=False),
             "small": P(rounds=5, shapes=SHAPES[:1], peer=True),
             "full": P(rounds=15, shapes=SHAPES, peer=True)},
)  # fmt: skip
def training_speed(p, ctx):
    """Both models in turn; below 1, ours is faster."""
    rows, goals = [], {}
    for width, layers, heads, batch, length in p.shapes:
        tokens = torch.randint(VOCABULARY, (batch, length + 1))
        models = {"isospike": Transformer(VOCABULARY, width, heads, layers, RoPE(width // heads))}
        if p.peer:
            models["x-transformers"] = peer(width, layers, heads, length)
        runs = {}
        for name, model in models.items():
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
            runs[name] = partial(step, model, optimizer, tokens)
        times = ctx.timing(runs, p.rounds, warm_up=3)
        shape = f"{batch} x {length} tokens, width {width}, {layers} layers, {heads} heads"
        ratio = times.ratio("isospike", list(models)[-1])
        rows.append((shape, f"{3 / times.seconds('isospike'):.1f}", f"{ratio:.2f}"))
        if p.peer:
            goals[shape] = Goal(ratio, 1.1)
    head = ("shape", "steps/s", "ratio to x-transformers")
    meaning = "Time of a training step; below 1 ours is faster."
    return Findings({}, [Table("Training step", head, tuple(rows), meaning)], goals)
