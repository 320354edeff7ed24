"""``isospike demo``: the four things isospike is for, each in a minute, on what comes with it."""

import gzip
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from isospike.cli.app import command
from isospike.cli.emit import Outcome
from isospike.errors import InputError
from isospike.progress import update

DOORS = {
    "port": (
        "port minilm --steps 6 --sentences 16 --out {0}/minilm",
        "embed {0}/minilm --text {0}/lines.txt",
    ),
    "train": (
        "train integer-net {0}/bars --epochs 8 --batch 24 --out {0}/trained",
    ),
    "learn": (
        "learn chorales --out {0}/bach.safetensors",
        "recall {0}/bach.safetensors --symbols 12",
    ),
    "analyse": (
        "order sachs --out {0}/order",
        "rank minilm --tokens 48 --sequences 1 --no-controls --out {0}/rank",
    ),
}  # fmt: skip
"""Commands of each demonstration; {0} is the folder they write to."""
LINES = "A spike is a one.\nNeurons add and compare.\nThe weather is fine today.\n"
SIDE, TRAIN, TEST = 32, 480, 120  # pixels, and pictures of bars


@command(
    "Start",
    examples=("isospike demo port", "isospike demo learn"),
    kept="what its commands have written is kept.",
)
def demo(door: str, *, out: Path | None = None) -> Outcome:
    """Show what isospike does, in about a minute: its commands and what they print.

    Args:
        door (NAME): ``port``: a sentence model on binary spikes. ``train``: a spiking network on
            small pictures. ``learn``: melodies in one pass, then continued. ``analyse``: causes in
            a table, and what collapses in a model.
        out (DIR): Where its commands write. [default: a folder that is removed]
    """
    if door not in DOORS:
        raise InputError(f"demo needs one of {', '.join(DOORS)}, got {door!r}. Try demo port.")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        return _run(door, out)
    with tempfile.TemporaryDirectory(prefix="isospike-demo-") as folder:
        return _run(door, Path(folder))


def _run(door: str, out: Path) -> Outcome:
    """The demonstration's commands, one after the other, up to the first that fails."""
    if door == "port":
        (out / "lines.txt").write_text(LINES, encoding="utf-8")
    if door == "train":
        _draw_bars(out / "bars")
    printed, status = [], 0
    for done_before, line in enumerate(DOORS[door]):
        update(f"demo {door}", done_before, len(DOORS[door]))
        words = [word.format(out) for word in line.split()]
        done = subprocess.run(
            [sys.executable, "-m", "isospike", *words, "--quiet"], capture_output=True, text=True
        )
        printed.append({"command": f"isospike {' '.join(words)}", "output": done.stdout.rstrip()})
        status = done.returncode
        if status:
            printed[-1]["output"] += done.stderr.rstrip()
            break
    text = "\n\n".join(f"$ {step['command']}\n{step['output']}" for step in printed)
    return Outcome(data={"door": door, "commands": printed}, text=text, status=status)


def _draw_bars(folder: Path) -> None:
    """Pictures of bars in four directions, in the files of MNIST."""
    import numpy as np

    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    down, across = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    for name, count in (("train", TRAIN), ("t10k", TEST)):
        labels = random.integers(0, 4, count)
        angles = labels * np.pi / 4 + random.normal(0, 0.1, count)
        shifts = random.normal(0, 4, count)
        sine, cosine = (f(angles)[:, None, None] for f in (np.sin, np.cos))
        far = np.abs(down * cosine - across * sine - shifts[:, None, None])
        pictures = 200 * (far < 2.5) + random.normal(0, 40, far.shape)
        head = struct.pack(">IIII", 0x803, count, SIDE, SIDE)
        body = pictures.clip(0, 255).astype(np.uint8).tobytes()
        with gzip.open(folder / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(head + body)
        with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">II", 0x801, count) + labels.astype(np.uint8).tobytes())
