"""Ports of models larger than the memory they get: read shard by shard, ported block by block."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace as P

import torch
import transformers
from safetensors.torch import save_file

import isospike
from isospike.experiments.study import Findings, Goal, study
from isospike.porting.offload import offload
from isospike.report import Table

ROWS = 8  # of a batch
SHARD = 500_000_000  # bytes of a file, at most


def random_shards(folder, p, seed=0):
    """A Llama of random bfloat16 weights in shards, of which one at a time is in memory."""
    config = transformers.LlamaConfig(
        vocab_size=p.words, hidden_size=p.width, intermediate_size=p.inner,
        num_hidden_layers=p.layers, num_attention_heads=p.heads, num_key_value_heads=p.heads // 8,
        max_position_embeddings=2048, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = transformers.LlamaForCausalLM(config).state_dict()
    shards, size = [[]], 0
    for name, tensor in shapes.items():
        if size + 2 * tensor.numel() > p.shard:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * tensor.numel()
    draw, places = torch.Generator().manual_seed(seed), {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(
            {name: _weight(name, shapes[name].shape, draw) for name in names},
            Path(folder) / file, metadata={"format": "pt"},
        )  # fmt: skip
        places |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": places}
    (Path(folder) / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(t.numel() for t in shapes.values())


def _weight(name, shape, draw):
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (0.02 * torch.randn(shape, generator=draw)).bfloat16()


@study(
    "port-large",
    question="In how much memory, and how long, is a model in shards ported block by block?",
    presets={"tiny": P(words=200, width=64, inner=96, layers=2, heads=8, rows=16, tokens=8,
                       shard=100_000, apart=False),
             "small": P(words=32000, width=512, inner=1408, layers=4, heads=8, rows=16, tokens=32,
                        shard=50_000_000, apart=True),
             "full": P(words=32000, width=2048, inner=5632, layers=22, heads=32, rows=64,
                       tokens=128, shard=SHARD, apart=True)},
)  # fmt: skip
def port_large(p, ctx):
    """Forward and port in a process of their own each, of which the kernel tells the peak."""
    with TemporaryDirectory(dir=Path.cwd()) as folder:
        count = random_shards(folder, p)
        of = {case: measured(case, folder, p) for case in ("forward", "port")}
    ratio = of["port"]["cpu"] / of["forward"]["cpu"]
    rows = tuple(
        (case, f"{n['peak']:.2f}", f"{n['cpu']:.0f}", f"{n['wall']:.0f}") for case, n in of.items()
    )
    table = Table(
        f"A Llama of {count / 1e9:.2f} billion bfloat16 weights",
        ("what", "peak, GiB", "processor, s", "elapsed, s"), rows,
        f"{p.rows} rows of {p.tokens} tokens; a quarter more are held out. The forward has its "
        "float32 weights in memory.",
    )  # fmt: skip
    numbers = {"error": of["port"]["error"], "time over the forward": ratio}
    if not p.apart:
        return Findings({"error": of["port"]["error"]}, [table])
    goals = {"peak, GiB": Goal(of["port"]["peak"], 4.0),
             "time over the forward of the calibration set": Goal(ratio, 10.0)}  # fmt: skip
    return Findings(numbers, [table], goals)


def measured(case, folder, p):
    """What a case gives in a process of its own; ``tiny`` runs here."""
    if not p.apart:
        return run(case, folder, p)
    code = "from types import SimpleNamespace as P; from benchmarks.large import *; "
    code += f"print(json.dumps(run({case!r}, {str(folder)!r}, P(**{vars(p)!r}))))"
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    return json.loads(out.stdout.splitlines()[-1])


def run(case, folder, p):
    """Peak memory in GiB, times in seconds, and the error of a port."""
    transformers.utils.logging.disable_progress_bar()
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, p.words, (p.rows * 5 // 4, p.tokens), generator=draw)
    batches = [{"input_ids": part} for part in ids.split(ROWS)]
    cut, error = p.rows // ROWS, None
    kind = "float32" if case == "forward" else "auto"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
    if case == "forward":
        model(input_ids=ids[:1, :2])  # its weights are read
    start = time.time(), time.process_time()
    if case == "forward":
        with torch.inference_mode():
            for batch in batches[:cut]:
                model(**batch, use_cache=False)
    else:
        ported = isospike.port(offload(model, folder), batches[:cut], evaluation=batches[cut:])
        error = ported.report.error
        with TemporaryDirectory(dir=folder) as place:
            ported.save(Path(place) / "port")
    return {"wall": time.time() - start[0], "cpu": time.process_time() - start[1], "peak": peak(),
            "error": error}  # fmt: skip


def peak():
    """Most memory that this process has had, in GiB, as the kernel tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**20
    return float("nan")
