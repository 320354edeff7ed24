"""stories260K, a real Llama decoder, on spikes: nats per token, and what it writes.

    python benchmarks/stories.py --data data [--code signed-digit phase] [--steps 8]

DATA holds ``stories260k/stories260K.bin`` and ``tok512.bin`` (the llama2.c v0 format) and
``tinystories_sample/tinystories_sample.txt``. The port is calibrated on text that the float model
itself wrote, sampled with a seeded generator, and evaluated on the TinyStories sample: story by
story, and packed into windows of 512 tokens. The text to calibrate on is as long as the model's
context: RoPE turns keys further at each position, so ranges seen at early positions cut keys at
later ones.
"""

import argparse
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import isospike

BOS = 1  # also separates stories
GOAL = 0.02  # nats per token


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
        raise ValueError(f"{path} needs {start} weights for its header, got {len(flat)}.")
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
    with torch.inference_mode():
        while ids.shape[1] < length:
            out = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            drawn = torch.multinomial(out.logits[:, -1].softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, drawn], 1)
    return ids.clone()


def nats(model: nn.Module, stories: Sequence[Tensor]) -> float:
    """Mean cross-entropy of every token but the first of each ``[1, tokens]``."""
    with torch.inference_mode():
        losses = [
            F.cross_entropy(model(input_ids=s[:, :-1]).logits[0], s[0, 1:], reduction="none")
            for s in stories
        ]
    return float(torch.cat(losses).double().mean())


def greedy(model: LlamaForCausalLM, ids: Tensor, count: int) -> list[int]:
    """The prompt and ``count`` most likely tokens after it, with a cache."""
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
        )
    tokens: list[int] = out[0].tolist()
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ISOSPIKE_DATA", "data"))
    parser.add_argument("--code", nargs="+", default=["signed-digit", "phase"])
    parser.add_argument("--steps", nargs="+", type=int, default=[8])
    parser.add_argument("--texts", type=int, default=16, help="to calibrate on")
    parser.add_argument("--length", type=int, default=512, help="of each, in tokens")
    parser.add_argument("--seed", type=int, default=0, help="of their sampling")
    parser.add_argument("--prompt", default="Once upon a time")
    args = parser.parse_args()
    data = Path(args.data)
    model = load_llama2c(data / "stories260k" / "stories260K.bin")
    tokenizer = Tokenizer(data / "stories260k" / "tok512.bin")
    text = (data / "tinystories_sample" / "tinystories_sample.txt").read_text(encoding="utf-8")
    parts = [part.strip() for part in text.split("<|endoftext|>")]
    limit = model.config.max_position_embeddings
    stories = [torch.tensor([tokenizer.encode(part)[:limit]]) for part in parts if part]
    calibration = [{"input_ids": sample(model, args.texts, args.length, args.seed)}]
    held_back = [{"input_ids": story} for story in stories]
    joined = torch.cat(stories, 1)
    packed = [joined[:, i : i + limit + 1] for i in range(0, joined.shape[1] - 1, limit)]
    reference, reference_packed = nats(model, stories), nats(model, packed)
    prompt = torch.tensor([tokenizer.encode(args.prompt)])
    texts = {"float32": greedy(model, prompt, 100)}
    print(
        f"{len(stories)} stories, {joined.shape[1]} tokens (longest "
        f"{max(s.shape[1] for s in stories)}); float32 {reference:.4f} nats/token by story, "
        f"{reference_packed:.4f} in windows of {limit}; calibrated on {args.texts} x {args.length} "
        f"tokens that the float model wrote (seed {args.seed})\n"
    )
    print(
        "| code | T | by story | - float | packed | - float | error | arg-max | spikes/token "
        "| /value | goal |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|:--|", flush=True)
    for code in args.code:
        for steps in args.steps:
            result = isospike.port(model, calibration, code=code, steps=steps, evaluation=held_back)
            change = nats(result.model, stories) - reference
            change_packed = nats(result.model, packed) - reference_packed
            report = result.report
            values = sum(site.values for site in report.sites)
            met = "met" if max(abs(change), abs(change_packed)) <= GOAL else "missed"
            print(
                f"| {code} | {steps} | {reference + change:.4f} | {change:+.4f} | "
                f"{reference_packed + change_packed:.4f} | {change_packed:+.4f} | "
                f"{report.error:.4f} | {report.agreement:.3f} | {report.spikes:.0f} | "
                f"{report.spikes / values:.3f} | {met} |",
                flush=True,
            )
            texts[f"{code}, T = {steps}"] = greedy(result.model, prompt, 100)
    print("\nGreedy text of 100 tokens:")
    for name, ids in texts.items():
        pairs = zip(ids[prompt.shape[1] :], texts["float32"][prompt.shape[1] :], strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), 100)
        print(f"\n**{name}** (first {same} tokens as float32)\n\n> {tokenizer.decode(ids)}")


if __name__ == "__main__":
    main()
