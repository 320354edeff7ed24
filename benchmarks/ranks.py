"""Ranks of transformers: the rules for a tolerance, heads, reports of real models, cost.

    python benchmarks/ranks.py [--data data] [--only tolerance,noise,heads,stories,spikes,cost]

``stories`` writes a page to out/rank. DATA holds ``stories260k`` and
``tinystories_sample``, see README.md. ``noise`` needs the extra ``demo``.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from isospike.ranks.heads import head_ambiguity
from isospike.ranks.numerical import affine_rank, numerical_rank

ROWS, WIDTH, RANK = 256, 192, 40
TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16,
         "float16": torch.float16}  # fmt: skip
SECONDS, MEMORY = 60.0, 2.0
CASES = ("import", "forward", "report", "report without controls")


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tolerance(data: Path) -> None:
    """Rank 40 (41 with an offset), 256 rows of width 192, rounded, then upcast."""
    low = normal(0, ROWS, RANK) @ normal(1, RANK, WIDTH) / RANK**0.5
    wide = low * torch.logspace(-4, 0, ROWS, dtype=torch.float64)[:, None]
    cases = {"plain": low, "offset 1e3": low + 1e3 * normal(2, 1, WIDTH),
             "rows 1e-4 to 1, offset 1e3": wide + 1e3 * normal(2, 1, WIDTH)}  # fmt: skip
    print("| data | type | default of NumPy | eps of the type | ours | gap | ours, affine |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for case, exact in cases.items():
        for name, dtype in TYPES.items():
            x = exact.to(dtype).double()
            s = torch.linalg.svdvals(x)
            own = int((s > s[0] * ROWS * torch.finfo(dtype).eps).sum())
            found = numerical_rank(x, dtype)
            print(
                f"| {case} | {name} | {int(torch.linalg.matrix_rank(x))} | {own} | {found} | "
                f"{found.gap:.3g} | {affine_rank(x, dtype)} |"
            )


def noise(data: Path) -> None:
    """Rounding of MiniLM's activations against the edge of one rounding, from a float64 copy."""
    import copy

    from speed import load_minilm

    model = load_minilm()
    ids = torch.randint(1000, 20000, (1, 256), generator=torch.Generator().manual_seed(0))
    print("| type | layer | edge | largest singular value of the error | median |")
    print("|---|--:|--:|--:|--:|")
    for dtype in (torch.float32, torch.bfloat16):
        rounded = copy.deepcopy(model).to(dtype)
        with torch.no_grad():
            ours = rounded(ids, output_hidden_states=True).hidden_states
            true = copy.deepcopy(rounded).double()(ids, output_hidden_states=True).hidden_states
        for layer in (0, 1, 3, 6):
            x, y = ours[layer][0], true[layer][0]
            at = rounded(x, dtype, "noise")
            top, scale = float(x.double().abs().max()), at.noise.norm(dim=1, keepdim=True)
            s = torch.linalg.svdvals((x.double() - y) / top / scale)
            edge = 1 + float((at.noise / scale).norm(dim=0).max())
            name = str(dtype).removeprefix("torch.")
            print(
                f"| {name} | {layer} | {edge:.1f} | {float(s[0]):.1f} | {float(s.median()):.1f} |"
            )


def heads(data: Path) -> None:
    """Dimensions lost in the sum of heads at 512 tokens, random W_O: published, and true."""
    print("| W_O | published n (H - 1) d_k | true | largest noise gain | recovered to |")
    print("|---|--:|--:|--:|--:|")
    cases = {"BERT-base, 12 x 64 = 768": (12, 64, 768, None), "H d_k = 1024 > d = 768":
             (16, 64, 768, None), "BERT-base of rank 640": (12, 64, 768, 640),
             "all heads in one subspace, rank 64": (12, 64, 768, 64)}  # fmt: skip
    for name, (count, each, width, rank) in cases.items():
        w = normal(0, count * each, width)
        if rank is not None:
            w = normal(1, count * each, rank) @ normal(2, rank, width)
        found = head_ambiguity(w, count)
        from isospike.ranks.heads import recover_heads

        y = normal(3, 64, count, each)
        back = recover_heads(y.flatten(1) @ w, w, count)
        print(
            f"| {name} | {512 * found.published_nullity:,} | {512 * found.nullity:,} | "
            f"{max(found.noise_gains):.3g} | {float((back - y).abs().max() / y.abs().max()):.1e} |"
        )


def tiny_stories(data: Path) -> tuple[torch.nn.Module, torch.Tensor]:
    """stories260K, and the tokens of the TinyStories sample, one story after the other."""
    from stories import Tokenizer, load_llama2c

    text = (data / "tinystories_sample" / "tinystories_sample.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer(data / "stories260k" / "tok512.bin")
    ids = [tokenizer.encode(part.strip()) for part in text.split("<|endoftext|>") if part.strip()]
    model = load_llama2c(data / "stories260k" / "stories260K.bin")
    return model, torch.tensor([i for story in ids for i in story])


def stories(data: Path) -> None:
    """stories260K (Llama: RMSNorm, grouped queries) on the TinyStories sample, 2 x 256 tokens."""
    import isospike

    model, tokens = tiny_stories(data)
    report = isospike.measure_ranks(model, {"input_ids": tokens[:512].view(2, 256)},
                                  name="stories260K")  # fmt: skip
    Console().print(report.summary())
    print("saved:", report.save("out/rank/stories260k"))


def spikes(data: Path) -> None:
    """stories260K on spikes: what the code does to rank, one window of 128 tokens."""
    import isospike

    model, tokens = tiny_stories(data)
    windows = tokens[: len(tokens) // 128 * 128].view(-1, 128)
    batches = [{"input_ids": windows[i : i + 1]} for i in range(len(windows))]
    rows = {"float": isospike.measure_ranks(model, batches[-1], controls=False)}
    for steps in (2, 4, 8):
        ported = isospike.port(model, batches[:-2], steps=steps, evaluation=batches[-2:]).model
        rows[f"signed-digit T={steps}"] = isospike.measure_ranks(
            ported, batches[-1], controls=False
        )
    print("| | rank of Z, layers | entropic rank of Z | rank at the end | entropic | cosine | "
          "s2/s1 | entropy | worst recovery |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    for name, r in rows.items():
        z = [s for row in r.depth for s in r.at(row.layer, "attention")]
        end, last = r.at(r.depth[-1].layer, "output")[0], r.depth[-1]
        print(
            f"| {name} | {min(s.rank.rank for s in z)} to {max(s.rank.rank for s in z)} | "
            f"{sum(s.collapse.entropic for s in z) / len(z):.1f} | {end.rank} | "
            f"{last.entropic:.1f} | {last.cosine:.3f} | "
            f"{sum(d.ratio for d in r.depth) / len(r.depth):.3f} | "
            f"{sum(d.entropy for d in r.depth) / len(r.depth):.3f} | "
            f"{max(x.recovered for x in r.layers):.1e} |"
        )


def cost(data: Path) -> None:
    """A random 12-layer BERT-base at 512 tokens; each case in a process of its own."""
    print("| case | s | CPU s | peak MiB | of the forward's | goal |\n|---|--:|--:|--:|--:|:--|")
    base = 0.0
    for case in CASES:
        out = subprocess.run([sys.executable, __file__, "--case", case], check=True,
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
        seconds, cpu, peak = map(float, out.stdout.split()[-3:])
        base = peak if case == "forward" else base
        ratio = f"{peak / base:.2f}" if base else ""
        goal = ""
        if case == "report":
            met = seconds <= SECONDS and peak <= MEMORY * base
            goal = f"{SECONDS:g} s, {MEMORY:g}x: {'met' if met else 'missed'}"
        print(f"| {case} | {seconds:.1f} | {cpu:.1f} | {peak:.0f} | {ratio} | {goal} |", flush=True)


def run_case(case: str) -> None:
    """Seconds, CPU seconds and peak MiB of one case."""
    import transformers

    from isospike.ranks.report import measure_ranks

    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig()).eval()
    ids = torch.randint(1000, 30000, (1, 512))
    start, cpu = time.perf_counter(), time.process_time()
    if case == "forward":
        with torch.inference_mode():
            model(ids)
    elif case.startswith("report"):
        measure_ranks(model, {"input_ids": ids}, controls=case == "report")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(time.perf_counter() - start, time.process_time() - cpu, peak)


def main() -> None:
    known = {f.__name__: f for f in (tolerance, noise, heads, stories, spikes, cost)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ISOSPIKE_DATA", "data")))
    parser.add_argument("--only", default=",".join(known))
    parser.add_argument("--case", choices=CASES)
    args = parser.parse_args()
    if args.case:
        run_case(args.case)
        return
    for name in args.only.split(","):
        print(f"\n{(known[name].__doc__ or '').splitlines()[0]}\n")
        known[name](args.data)


if __name__ == "__main__":
    main()
