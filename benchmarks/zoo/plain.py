"""Plain PyTorch modules, and timm's models."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.zoo.inputs import images
from benchmarks.zoo.registry import Shelf

WIDTH, HEADS, LENGTH = 32, 4, 10


def vectors(rows, g):
    """Vectors of tokens."""
    return {"x": torch.randn(rows, LENGTH, WIDTH, generator=g)}


def sequence_first(rows, g):
    """The same, tokens first."""
    return {"x": torch.randn(LENGTH, rows, WIDTH, generator=g)}


def padded(rows, g):
    """Vectors of tokens, some of them padding."""
    ends = torch.randint(4, LENGTH + 1, (rows,), generator=g)
    return {**vectors(rows, g), "padding": torch.arange(LENGTH) >= ends[:, None]}


def pictures(rows, g):
    """Images, by another name."""
    return {"x": images(rows, g, 16)["pixel_values"]}


def waves(rows, g):
    """Channels of a signal."""
    return {"x": torch.randn(rows, 4, 20, generator=g)}


def volumes(rows, g):
    """Channels of a volume."""
    return {"x": torch.randn(rows, 3, 4, 8, 8, generator=g)}


class Encoder(nn.Module):
    """torch's own transformer encoder and a classifier of its tokens."""

    def __init__(self, batch_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, 0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, x, padding=None):
        return self.head(self.encoder(x, src_key_padding_mask=padding))


class Attention(nn.Module):
    """nn.MultiheadAttention between two linear layers."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 7)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        x = self.enter(x)
        return self.leave(self.attention(x, x, x, need_weights=False)[0])


class Perceptron(nn.Module):
    """Two layers; what happens between them is given by ``mix``, a function or a module."""

    def __init__(self, mix=nn.Identity, out=7):
        super().__init__()
        self.first, self.second, self.mix = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, out), mix()

    def forward(self, x):
        return self.second(self.mix(F.gelu(self.first(x))))


class Table(nn.Module):
    """A layer reads a table that has no rows of a batch."""

    def __init__(self, length):
        super().__init__()
        self.table = nn.Parameter(torch.empty(length, WIDTH))
        self.read, self.first = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, 7)

    def forward(self, x):
        return self.second(F.gelu(self.first(x) + self.read(self.table).mean(0)))


class Experts(nn.Module):
    """Each token goes to the expert that a router chooses."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        flat = x.flatten(0, -2)
        weight, chosen = self.router(flat).softmax(-1).max(-1)
        y = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            if len(rows):
                y = y.index_add(0, rows, expert(flat[rows]) * weight[rows, None])
        return y.view(x.shape)


class BySums(nn.Module):
    """Attention by element-wise products and sums."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        p = ((q[:, :, None] * k[:, None]).sum(-1) / WIDTH**0.5).softmax(-1)
        return (p[..., None] * v[:, None]).sum(2)


class Fourier(nn.Module):
    """Tokens mixed by a Fourier transform."""

    def forward(self, x):
        return torch.fft.fft2(x, dim=(1, 2)).real


class Codebook(nn.Module):
    """Distances to the vectors of a codebook."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.empty(WIDTH, WIDTH))

    def forward(self, x):
        return torch.cdist(x, self.codes.expand(len(x), -1, -1)).neg().softmax(-1)


class Recurrent(nn.Module):
    """A recurrent layer of torch."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(WIDTH, WIDTH, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]


class ReadsSizes(nn.Module):
    """Asks its layer for its sizes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, 8)

    def forward(self, x):
        return self.layer(x).view(*x.shape[:-1], 2, self.layer.out_features // 2)


class ReadsWeight(nn.Module):
    """Uses the weight of its layer once more."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.layer(x) * self.layer.weight.norm()


class Doubled(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Bare(nn.Module):
    """A parameter that is used as a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDTH, WIDTH))

    def forward(self, x):
        return F.linear(x, self.weight)


class Block(nn.Module):
    """A block as many write it: one layer for queries, keys and values, torch's attention."""

    def __init__(self, causal=False):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.causal = causal

    def forward(self, x):
        shape = (*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        q, k, v = self.qkv(self.norms[0](x)).view(shape).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Patches(nn.Module):
    """A small vision transformer of such blocks."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.places = nn.Parameter(torch.empty(16, WIDTH))
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.blocks(x).mean(1))


class Branch(nn.Module):
    """Takes another layer where it reads more than three rows."""

    def __init__(self):
        super().__init__()
        self.few, self.many = nn.Linear(WIDTH, 7), nn.Linear(WIDTH, 7)

    def forward(self, x):
        return self.many(x) if len(x) > 3 else self.few(x)


class Score(nn.Module):
    """One number a row."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.second(F.gelu(self.first(x))).mean((1, 2))


add = Shelf("plain", vectors).built
seen = Shelf("plain", pictures).built
heard = Shelf("plain", waves).built


class Chain(nn.Sequential):
    """Layers one after the other; the input is called ``x``."""

    def forward(self, x):
        return super().forward(x)


def chain(*layers):
    """A chain of what functions without arguments make."""
    return Chain(*(layer() for layer in layers))


def stack(*layers):
    """Layers as functions without arguments, for :func:`chain`."""
    return partial(chain, *layers)


def register() -> None:
    """Register them, each with its inputs."""
    add("nn.TransformerEncoder batch_first", Encoder, padded)
    add("nn.TransformerEncoder seq-first", partial(Encoder, False), sequence_first)
    add("nn.MultiheadAttention", Attention)
    add("MLP only", Perceptron)
    add("Linear on seq-first tensor", Perceptron, sequence_first)
    add("Linear on batch-free table (even)", partial(Table, 8))
    add("Linear on batch-free table (odd)", partial(Table, 7))
    add("Token-routed experts (ModuleList of Linear)", Experts)
    add("Attention by mul+sum", partial(Perceptron, BySums))
    add("FFT mixing", partial(Perceptron, Fourier))
    add("cdist to a codebook", partial(Perceptron, Codebook))
    add("GRU", partial(Perceptron, partial(Recurrent, nn.GRU)))
    add("LSTM", partial(Perceptron, partial(Recurrent, nn.LSTM)))
    add("reads Linear.out_features", ReadsSizes)
    add("uses Linear.weight elsewhere", ReadsWeight)
    add("subclass of nn.Linear", partial(Perceptron, partial(Doubled, WIDTH, WIDTH)))
    add("F.linear on a Parameter", partial(Perceptron, Bare))
    add("nanoGPT/timm style SDPA", partial(Perceptron, partial(Block, True)))
    seen("small ViT (SDPA)", Patches)
    add("branch not taken by the two sample rows", Branch)
    add("regression output [batch]", Score)
    end = partial(nn.Conv2d, 8, 5, 1)
    volume = stack(partial(nn.Conv3d, 3, 8, 2), nn.GELU, partial(nn.Conv3d, 8, 5, 1))
    Shelf("plain", volumes).built("Conv3d", volume)
    heard("Conv1d", stack(partial(nn.Conv1d, 4, 8, 3), nn.GELU, partial(nn.Conv1d, 8, 5, 3)))
    same = partial(nn.Conv2d, 3, 8, 3, padding="same")
    deep = partial(nn.Conv2d, 8, 8, 3, padding=1, groups=8)
    seen("Conv2d padding same", stack(same, nn.GELU, end))
    seen("Conv2d depthwise", stack(partial(nn.Conv2d, 3, 8, 1), deep, nn.GELU, end))
    seen("ConvTranspose2d", stack(partial(nn.ConvTranspose2d, 3, 8, 2, 2), nn.GELU, end))
    norm = partial(nn.BatchNorm2d, 8)
    seen("Conv2d + BatchNorm", stack(partial(nn.Conv2d, 3, 8, 3), norm, nn.ReLU, end))
    seen("timm ResNet18", partial(timm_model, "resnet18", channels=(8, 8, 16, 16)), small)
    seen("timm ViT", partial(timm_model, "vit_tiny_patch16_224", embed_dim=32, depth=2, num_heads=4,
                             img_size=32, patch_size=8), small)  # fmt: skip
    Shelf("plain", images).built("HF TimmWrapper ViT", wrapped_vit)


def small(rows, g):
    """Images of 32 x 32."""
    return {"x": images(rows, g)["pixel_values"]}


def timm_model(name, **sizes):
    """A model of timm, without weights from the hub."""
    import timm

    return timm.create_model(name, num_classes=5, **sizes)


def wrapped_vit():
    """A model of timm inside transformers."""
    import transformers as t

    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8}
    config = t.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args=sizes, num_labels=5
    )
    return t.TimmWrapperForImageClassification(config)


register()
