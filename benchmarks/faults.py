"""Files that were damaged, saves that were killed, and loads while another process saves.

Whatever may crash runs in processes of their own: ``python -m benchmarks.faults KIND FOLDER FROM
TO`` prints a line of JSON for each case, whose number is also its seed.
"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace as P
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save as to_bytes

import isospike
from benchmarks.models import random_batches, small_bert, small_llama
from isospike.errors import IsospikeError, MissingExtraError
from isospike.experiments.grid import TrainingRun, train_all
from isospike.experiments.study import Findings, Goal, study
from isospike.memory import Backoff, Combined, SequenceMachine, Shift, Store
from isospike.memory.files import _digest
from isospike.porting.files import port_files
from isospike.progress import update
from isospike.report.files import MANIFEST, write_file, write_folder
from isospike.report.table import Table

TEXT = "the quick brown fox jumps over a lazy dog " * 3
OUTCOMES = ("equal", "refused", "another result", "foreign error", "crash")
CHUNK = 250  # cases of one process
VALUES = (
    -1, 0, 1, 3, 2**31, 2**40, 10**9, -(2**63), 10**400, 0.5, -0.5, 1e308, math.nan, math.inf, None,
    True, False, "", "x", "phase", [], [11], [[1]], {}, {"a": 1}, "org/name", "../../x",
)  # fmt: skip


# ------------------------------------------------------------------------- originals


def machines() -> dict[str, SequenceMachine]:
    """A machine of each kind."""
    store = Store(locations=512)
    made = {
        "combined": SequenceMachine(sorted(set(TEXT)), store=store),
        "wheel": SequenceMachine(sorted(set(TEXT)), store=store, layers="wheel"),
        "shift": SequenceMachine(
            sorted(set(TEXT)), context=Shift(), store=Store(locations=512, rule="decay")
        ),
        "backoff": SequenceMachine(context=Backoff(depth=3, synapses=4096), grow=True),
        "published": SequenceMachine(
            sorted(set(TEXT)),
            context=Combined(weight=0.3),
            store=Store(locations=256, data=(5, 64)),
        ),
    }
    for machine in made.values():
        machine.learn_sequence(TEXT)
        machine.metadata["unit"] = "char"
        machine.predict()
    return made


def ports() -> dict[str, Any]:
    """Ports of small random models, with the rows that tell them apart."""
    rows = random_batches(4, 8, 12)
    return {
        "bert": isospike.port(small_bert(), rows, steps=8),
        "bert-4": isospike.port(small_bert(), rows, steps=4),
        "bert-spiking": isospike.port(small_bert(), rows, steps=6, functions="spiking"),
        "llama": isospike.port(small_llama(), rows, code="phase", steps=6),
    }


def save_originals(folder: Path) -> None:
    """Save all of them, once."""
    for name, machine in machines().items():
        machine.save(folder / f"{name}.machine")
    for name, ported in ports().items():
        ported.save(folder / f"{name}.port")


# ------------------------------------------------------------------------- mutations


def change_bytes(
    data: bytes, draw: random.Random, first: int = 0, last: int | None = None
) -> bytes:
    """Some bytes flipped, zeroed or drawn, between two places."""
    changed, last = bytearray(data), len(data) if last is None else last
    count = draw.choice((1, 1, 1, 7, 64))
    start = draw.randrange(first, max(first + 1, last))
    for at in range(start, min(last, start + count)):
        how = draw.randrange(3)
        changed[at] = (changed[at] ^ (1 << draw.randrange(8)), 0, draw.randrange(256))[how]
    return bytes(changed)


def cut_or_add(data: bytes, draw: random.Random) -> bytes:
    """A file that is shorter or longer."""
    if draw.random() < 0.7:
        return data[: draw.randrange(len(data))]
    return data + bytes(draw.randrange(1, 99))


def change_leaf(value: Any, draw: random.Random) -> Any:
    """JSON with one value replaced, removed, or added."""
    places: list[tuple[Any, Any]] = []

    def visit(part: Any) -> None:
        for key in part if isinstance(part, dict) else range(len(part)):
            places.append((part, key))
            if isinstance(part[key], dict | list):
                visit(part[key])

    visit(value)
    holder, key = draw.choice(places)
    how = draw.random()
    if how < 0.1 and isinstance(holder, dict):
        del holder[key]
    elif how < 0.2 and isinstance(holder, dict):
        holder["more"] = draw.choice(VALUES)
    elif how < 0.4 and type(holder[key]) in (int, float):
        holder[key] = holder[key] * draw.choice((-1, 2, 10, 1000)) + draw.choice((0, 1, -1, 0.5))
    else:
        holder[key] = draw.choice(VALUES)
    return value


def header_end(data: bytes) -> int:
    """Where the header of a safetensors file ends."""
    return 8 + int.from_bytes(data[:8], "little")


def open_tensors(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Metadata and arrays of a safetensors file."""
    with safe_open(path, "np") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def change_value(tensors: dict[str, Any], draw: random.Random) -> None:
    """One number of one array."""
    tensor = tensors[draw.choice(sorted(n for n, t in tensors.items() if t.size))].reshape(-1)
    at = draw.randrange(tensor.size)
    if tensor.dtype.kind == "f":
        value: Any = draw.choice((math.nan, math.inf, -1.0, 0.0, 1e30, float(tensor[at]) * 2 + 1))
        with np.errstate(over="ignore"):
            tensor[at] = value
    else:
        about = np.iinfo(tensor.dtype)
        value = draw.choice((-5, -1, 0, 1, 10**6, 2**40, about.min, about.max))
        tensor[at] = min(max(value, about.min), about.max)


MACHINE_KINDS = ("bytes", "value", "metadata", "header", "cut", "value, signed", "metadata, signed")


def mutate_machine(path: Path, kind: str, draw: random.Random) -> None:
    """Damage a machine's file; *signed* with the digest that is then right."""
    data = path.read_bytes()
    end = header_end(data)
    if kind == "bytes":
        path.write_bytes(change_bytes(data, draw, end))
    elif kind == "header":
        path.write_bytes(change_bytes(data, draw, 0, end))
    elif kind == "cut":
        path.write_bytes(cut_or_add(data, draw))
    else:
        about, tensors = open_tensors(path)
        described = json.loads(about["isospike"])
        if kind.startswith("value"):
            change_value(tensors, draw)
        else:
            change_leaf(described, draw)
        if kind.endswith("signed"):
            described.pop("sha256", None)
            described["sha256"] = _digest(described, tensors)
        path.write_bytes(to_bytes(tensors, metadata={"isospike": json.dumps(described)}))


PORT_KINDS = (
    "bytes", "value", "config, isospike", "config, model", "config, bytes", "header", "cut",
    "manifest", "answers", "another port's file", "value, signed", "config, isospike, signed",
    "config, model, signed", "answers, signed",
)  # fmt: skip


def mutate_port(folder: Path, kind: str, draw: random.Random) -> None:
    """Damage a port's folder; *signed* with the digests that are then right."""
    weights, config = folder / "isospike.safetensors", folder / "config.json"
    what, data = kind.removesuffix(", signed"), weights.read_bytes()
    if what in ("bytes", "header", "cut"):
        end = header_end(data)
        change = {"bytes": lambda: change_bytes(data, draw, end),
                  "header": lambda: change_bytes(data, draw, 0, end),
                  "cut": lambda: cut_or_add(data, draw)}[what]  # fmt: skip
        weights.write_bytes(change())
    elif what == "value":
        about, tensors = open_tensors(weights)
        change_value(tensors, draw)
        weights.write_bytes(to_bytes(tensors, metadata=about or None))
    elif what == "config, bytes":
        config.write_bytes(change_bytes(config.read_bytes(), draw))
    elif what.startswith("config"):
        described = json.loads(config.read_bytes())
        change_leaf(described["model" if "model" in what else "isospike"], draw)
        config.write_text(json.dumps(described))
    elif what == "manifest":
        manifest = folder / MANIFEST
        if draw.random() < 0.5:
            manifest.write_bytes(change_bytes(manifest.read_bytes(), draw))
        else:
            manifest.write_text(json.dumps(change_leaf(json.loads(manifest.read_bytes()), draw)))
    elif what == "answers":
        path = folder / "answers.safetensors"
        path.write_bytes(change_bytes(path.read_bytes(), draw))
    else:
        other = draw.choice([p for p in folder.parents[1].glob("*.port") if p.stem != folder.stem])
        name = draw.choice(("isospike.safetensors", "config.json", "answers.safetensors"))
        shutil.copy(other / name, folder / name)
    if kind.endswith("signed"):
        digests = {p.name: sha256(p.read_bytes()).hexdigest()
                   for p in folder.iterdir() if p.name != MANIFEST}  # fmt: skip
        (folder / MANIFEST).write_text(json.dumps({"sha256": digests}))


# -------------------------------------------------------------------------- outcomes


def use_machine(path: Path) -> Any:
    """What a machine in a file does."""
    machine = SequenceMachine.load(path)
    expected, guess = machine._expected, machine.predict()
    told = machine.symbols, machine.metadata, machine.settings, expected, guess
    right, match, margin = machine.match_sequence(TEXT, learn=True)
    return repr((told, right.tolist(), match.tolist(), margin.tolist(),
                 machine.generate("the ", 20)))  # fmt: skip


def use_port(folder: Path) -> Any:
    """What a port in a folder answers."""
    model = isospike.load(folder)
    with torch.no_grad():
        return [model(**row)[0] for row in probes()]


@cache
def probes() -> list[Any]:
    """Rows of several lengths, which no port has seen."""
    return [random_batches(1, 2, length, seed=9)[0] for length in (3, 12, 40)]


def same(found: Any, expected: Any) -> bool:
    """Whether two uses agree: of a machine exactly, of a port to one part in a thousand."""
    if isinstance(found, str):
        return bool(found == expected)
    return all(x.shape == y.shape and bool((x - y).norm() <= 1e-3 * y.norm())
               for x, y in zip(found, expected, strict=True))  # fmt: skip


def outcome(use: Callable[[Path], Any], path: Path, *expected: Any) -> str:
    """What becomes of a file that may be damaged: *equal* to one of those that are expected."""
    try:
        found = use(path)
    except (IsospikeError, MissingExtraError) as error:
        return "refused" if "\n" not in str(error) else "foreign error"
    except Exception as error:  # noqa: BLE001 - this is what is counted
        return f"foreign error: {type(error).__name__} {error}"
    return "equal" if any(same(found, one) for one in expected) else "another result"


def damage(what: str, folder: Path, first: int, last: int) -> Iterator[dict[str, Any]]:
    """Cases of damaged machines or ports."""
    use, mutate, kinds = {
        "machine": (use_machine, mutate_machine, MACHINE_KINDS),
        "port": (use_port, mutate_port, PORT_KINDS),
    }[what]
    originals = sorted(folder.glob(f"*.{what}"))
    expected = {path: use(path) for path in originals}  # type: ignore[operator]
    for number in range(first, last):
        draw = random.Random(f"{what} {number}")
        kind = kinds[number % len(kinds)]
        source = originals[number // len(kinds) % len(originals)]
        place = folder / f"case-{os.getpid()}" / source.name
        shutil.rmtree(place.parent, ignore_errors=True)
        place.parent.mkdir()
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place)
        mutate(place, kind, draw)  # type: ignore[operator]
        yield {"number": number, "kind": kind, "found": outcome(use, place, expected[source])}  # type: ignore[arg-type]


def run_cases(what: str, folder: Path, first: int, last: int, label: str) -> list[dict[str, Any]]:
    """All cases, in processes that may die of one."""
    found: list[dict[str, Any]] = []
    at = first
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.faults", what, str(folder)]
    root = Path(__file__).parents[1]
    paths = [str(root), str(Path(isospike.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                   "PYTHONPATH": os.pathsep.join(paths)}  # fmt: skip
    while at < last:
        update(label, at - first, last - first)
        stop = min(last, at + CHUNK)
        done = subprocess.run(
            [*command, str(at), str(stop)], env=environment, capture_output=True, text=True
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found += lines
        at += len(lines)
        if done.returncode < 0 and at < stop:
            found.append({"number": at, "kind": "?", "found": f"crash: {done.returncode}"})
            at += 1
        elif at < stop:
            raise RuntimeError(f"case {at} of {what} stopped: {done.stderr[-500:]}")
    update(label, last - first, last - first)
    return found


# --------------------------------------------------------------------- kills and loads


def prepared_ports(folder: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """The files of two ports and what they answer."""
    files, answers = [], []
    for name in ("bert", "bert-4"):
        result = ports_once()[name]
        files.append({**port_files(result.model), **result.report.files()})
        write_folder(folder / f"{name}.only", files[-1])
        answers.append(use_port(folder / f"{name}.only"))
    return files, answers


@cache
def ports_once() -> dict[str, Any]:
    """The ports of this process."""
    return ports()


def forked(work: Callable[[], None]) -> int:
    """A child that works until it is killed."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                work()
        finally:
            os._exit(1)
    return child


def end(child: int) -> None:
    """Kill a child that is still at work."""
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError("the child stopped before it was killed")


def leftovers(folder: Path) -> int:
    """Names that begin with a dot, which no save leaves on purpose."""
    return sum(p.name.startswith(".") for p in folder.rglob("*"))


def kill_saves(what: str, folder: Path, first: int, last: int) -> Iterator[dict[str, Any]]:
    """Kill a process while it saves; load; save something else there; look for rubbish."""
    home = folder / f"kills-{os.getpid()}"
    check: Callable[[], bool]
    if what == "kill-machine":
        both = [machines()["combined"], machines()["backoff"]]
        saves: list[Callable[[], Any]] = [partial(m.save, home / "m") for m in both]
        for n, machine in enumerate(both):
            machine.save(folder / f"{n}.only")
        known = [use_machine(folder / f"{n}.only") for n in range(2)]
        check = lambda: use_machine(home / "m") in known  # noqa: E731
    elif what == "kill-port":
        files, answers = prepared_ports(folder)
        saves = [partial(write_folder, home / "p", f) for f in files]
        check = lambda: any(same(use_port(home / "p"), a) for a in answers)  # noqa: E731
    else:
        runs = [TrainingRun("copy-8", "none", 0.01, seed, 1, 2) for seed in range(3)]
        results = train_all(runs, folder / "cells")
        expected = {run.file: r["token"] for run, r in zip(runs, results, strict=True)}

        def cells() -> None:
            shutil.rmtree(home / "cells", ignore_errors=True)
            train_all(runs, home / "cells")

        saves = [cells]
        check = lambda: all(json.loads(p.read_bytes())["token"] == expected[p.name]  # noqa: E731
                            for p in (home / "cells").glob("*.json"))  # fmt: skip
    saves[0]()
    start = time.perf_counter()
    for save in saves:
        save()
    long = time.perf_counter() - start
    for number in range(first, last):
        draw = random.Random(f"{what} {number}")
        child = forked(lambda: [save() for save in saves] and None)
        time.sleep(draw.uniform(0, 2 * long))
        end(child)
        left = leftovers(home)
        try:
            good = check()
        except Exception:  # noqa: BLE001 - counted
            good = False
        for place in {
            home,
            *(p.parent for p in home.rglob(".isospike-*") if p.parent.name == "cells"),
        }:
            write_file(place / "other", b"next")
            if place != home:
                (place / "other").unlink()
        found = "good" if good else "lost"
        yield {"number": number, "kind": what, "found": found, "left": left,
               "rubbish": leftovers(home)}  # fmt: skip


def load_beside(what: str, folder: Path, first: int, last: int) -> Iterator[dict[str, Any]]:
    """Load while another process saves two ports, or two machines, by turns."""
    home = folder / f"loads-{os.getpid()}"
    if what == "load-machine":
        both = [machines()["combined"], machines()["backoff"]]
        saves: list[Callable[[], Any]] = [partial(m.save, home / "m") for m in both]
        place, use = home / "m", use_machine
        saves[0]()
        known = [use(place)]
        saves[1]()
        known.append(use(place))
    else:
        files, known = prepared_ports(folder)
        saves = [partial(write_folder, home / "p", f) for f in files]
        place, use = home / "p", use_port
        saves[0]()
    child = forked(lambda: [save() for save in saves] and None)
    try:
        for number in range(first, last):
            found = outcome(use, place, *known)
            yield {"number": number, "kind": what, "found": found}
    finally:
        end(child)


# --------------------------------------------------------------------------- studies


@study(
    "damaged-files",
    question="Does a damaged file load as something else, or end the interpreter?",
    presets={"tiny": P(machines=14, ports=14), "small": P(machines=140, ports=140),
             "full": P(machines=1500, ports=1500)},
)  # fmt: skip
def damaged_files(p, ctx):
    """Random damage to saved machines and ports; *signed* files have the digest that is right."""
    numbers, goals, tables = {}, {}, []
    with tempfile.TemporaryDirectory(prefix="isospike-") as scratch:
        folder = Path(scratch)
        save_originals(folder)
        for what, count in (("machine", p.machines), ("port", p.ports)):
            found = run_cases(what, folder, 0, count, f"damaged {what}s")
            rows = []
            for kind in dict.fromkeys(case["kind"] for case in found):
                of_kind = Counter(c["found"].split(":")[0] for c in found if c["kind"] == kind)
                rows.append((kind, *(of_kind[name] for name in OUTCOMES)))
            plain = [c for c in found if not c["kind"].endswith("signed")]
            for name in OUTCOMES[2:]:
                among = plain if name == "another result" else found
                number = sum(c["found"].split(":")[0] == name for c in among)
                numbers[f"{what}s, {name}"] = number
                goals[f"{what}s, {name}"] = Goal(number, 0)
            for case in found:
                if case["found"].split(":")[0] in OUTCOMES[3:]:
                    print(what, case, file=sys.stderr)
            meaning = (
                "A file that loads does what it did; the others are refused in a line. Whoever "
                "writes the right digest can make another machine, or a port that answers as the "
                "stored rows say, but no crash."
            )
            head = ("damage", *OUTCOMES)
            tables.append(Table(f"{count:,} damaged {what}s, seeds 0 to {count - 1:,}", head,
                                tuple(rows), meaning))  # fmt: skip
    return Findings(numbers, tables, goals)


@study(
    "killed-saves",
    question="Does kill -9 in the middle of a save lose the last good file, or leave rubbish?",
    presets={"tiny": P(kills=1), "small": P(kills=20), "full": P(kills=334)},
)  # fmt: skip
def killed_saves(p, ctx):
    """Processes that save without a pause, killed at random moments."""
    numbers, rows = {}, []
    with tempfile.TemporaryDirectory(prefix="isospike-") as scratch:
        for what in ("kill-machine", "kill-port", "kill-cells"):
            found = run_cases(what, Path(scratch), 0, p.kills, what)
            good = sum(c["found"] == "good" for c in found)
            left = sum(c.get("left", 0) > 0 for c in found)
            rubbish = sum(c.get("rubbish", 1) > 0 for c in found)
            name = {"kill-cells": "cells of an experiment"}.get(what, what.removeprefix("kill-"))
            rows.append((name, len(found), good, left, rubbish))
            numbers[f"lost, {name}"] = len(found) - good
            numbers[f"rubbish after the next save, {name}"] = rubbish
    head = ("saved", "kills", "last good one loads", "kills that left files",
            "left after the next save")  # fmt: skip
    meaning = "The old one or the new one is there, whole; the next save removes what was left."
    goals = {name: Goal(value, 0) for name, value in numbers.items()}
    return Findings(numbers, [Table("Killed in the middle of a save", head, tuple(rows), meaning)],
                    goals)  # fmt: skip


@study(
    "loads-beside-saves",
    question="Does a load beside a save in another process get one save whole?",
    presets={"tiny": P(loads=1), "small": P(loads=50), "full": P(loads=500)},
)  # fmt: skip
def loads_beside_saves(p, ctx):
    """Another process saves two ports, or two machines, by turns and without a pause."""
    numbers, rows = {}, []
    with tempfile.TemporaryDirectory(prefix="isospike-") as scratch:
        for what in ("load-machine", "load-port"):
            found = run_cases(what, Path(scratch), 0, p.loads, what)
            count = Counter(c["found"].split(":")[0] for c in found)
            name = what.removeprefix("load-")
            rows.append((name, len(found), count["equal"], count["another result"],
                         count["refused"] + count["foreign error"] + count["crash"]))  # fmt: skip
            numbers[f"mixed, {name}"] = count["another result"]
            numbers[f"missing, {name}"] = len(found) - count["equal"] - count["another result"]
    head = ("loaded", "loads", "one of the two, whole", "mixed", "missing or refused")
    meaning = "A reader opens all files of one save at once."
    goals = {name: Goal(value, 0) for name, value in numbers.items()}
    return Findings(numbers, [Table("Loads beside saves", head, tuple(rows), meaning)], goals)


def main() -> None:
    """Run some cases and print what became of each."""
    what, folder, first, last = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:5])
    torch.set_num_threads(1)
    cases = damage if what in ("machine", "port") else kill_saves
    for case in (load_beside if what.startswith("load") else cases)(what, folder, first, last):
        print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
