"""Prediction and anomalies on streams that the machine has not seen: text, music, NAB, logs."""

import contextlib
import csv
import gzip
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace as P
from typing import NamedTuple

import numpy as np

from benchmarks.machine import area
from benchmarks.peers import mixer, ppm_c, ppmd
from isospike.data import chorales, read_abc, shakespeare
from isospike.errors import InputError
from isospike.experiments.study import Findings, Goal, study
from isospike.memory import (
    Backoff,
    BackoffNgram,
    Combined,
    Mixed,
    SequenceMachine,
    Shift,
    Watcher,
    line_template,
)
from isospike.progress import update
from isospike.report.table import Table

PROFILES = {"standard": (0.11, 1), "low FP": (0.22, 1), "low FN": (0.11, 2)}
PUBLISHED = {"standard": 72.1, "low FP": 65.0, "low FN": 77.4}
LONG = 500_000  # symbols from which two seeds do
NOTES = 100_000  # of a collection of tunes
PEERS = ("5-gram", "PPM-C", "mixer", "PPMd")
SYSTEMS = ("HDFS", "BGL", "Apache", "Linux")


@study(
    "prediction",
    question="How well does the default machine predict, beside PPM and a bitwise mixer?",
    presets={"tiny": P(seeds=1, texts={"Shakespeare": (0, 1500)}, chords=0),
             "small": P(seeds=3, texts={"Shakespeare": (0, 100_000)}, chords=0),
             "full": P(seeds=10, chords=None, texts={
                 "Shakespeare": (0, 100_000), "Shakespeare, all": (0, None)})},
)  # fmt: skip
def prediction(p, ctx):
    """On line, one pass, every character; a seed changes the machine's hash only; two seeds from
    half a million symbols on."""
    cases = {name: shakespeare()[first : None if n is None else first + n]
             for name, (first, n) in p.texts.items()}  # fmt: skip
    for path in sorted(ctx.data.glob("prose/*.txt")) if ctx.data and p.seeds > 1 else ():
        text = path.read_text(encoding="utf-8", errors="replace")
        cases |= {f"{path.stem}, {n:,}": text[:n] for n in (100_000, 1_000_000) if len(text) >= n}
    music = {}
    if p.chords != 0:
        music["chorales, chords"] = [chord for piece in chorales() for chord in piece]
        music |= folk_tunes(ctx.data)
    rows, numbers, goals, found, keys = [], {}, {}, {}, []
    for done, (name, sequence) in enumerate({**cases, **music}.items()):
        update("prediction", done, len(cases) + len(music))
        symbols = sorted(set(sequence))
        accuracy, bits, roc = machine_figures(sequence, symbols, p.seeds, notes=name in music)
        if name in music:
            plain = machine_figures(sequence, symbols, p.seeds)
            keys.append((name, cell(accuracy, bits), cell(*plain[:2])))
            numbers |= {f"accuracy without intervals, {name}": plain[0],
                        f"bits without intervals, {name}": plain[1]}  # fmt: skip
        others = other_figures(sequence, symbols)
        ahead = 100 * (accuracy - max(right for right, _ in others.values() if right is not None))
        numbers |= {f"accuracy, {name}": accuracy, f"bits, {name}": bits, f"area, {name}": roc,
                    f"points ahead, {name}": ahead}  # fmt: skip
        goals[f"points over the best other, {name}"] = Goal(ahead, 2.0, at_least=True)
        goals[f"area under the ROC curve, {name}"] = Goal(roc, 0.86, at_least=True)
        packed = others["PPMd"][1]
        if packed is not None:
            numbers[f"bits of PPMd, {name}"] = packed
        if packed is not None and len(sequence) >= LONG:
            goals[f"bits against PPMd, {name}"] = Goal(bits, packed)
        if isinstance(sequence, str) and len(sequence) < LONG:
            found[name] = {"default": accuracy, **context_figures(sequence, symbols)}
            best = max(found[name].values())
            goals[f"default against the best context, {name}"] = Goal(accuracy, best, True)
        rows.append((name, cell(accuracy, bits), *(cell(*of) for of in others.values())))
    meaning = (
        "Share of next symbols right (bits): the machine is ahead of all in accuracy. Of music it "
        "counts intervals, as that of isospike learn does."
    )
    tables = [Table("Next symbol, on line", ("sequence", "machine", *PEERS), tuple(rows), meaning)]
    if keys:
        meaning = "Share right (bits): what is known in one key is known in all."
        head = ("sequence", "with intervals", "without")
        tables.append(Table("Notes, with intervals and without", head, tuple(keys), meaning))
    if found:
        parts = [(name, *(f"{x:.3f}" for x in of.values())) for name, of in found.items()]
        head = ("sequence", *next(iter(found.values())))
        meaning = "Share of next symbols right: the default context is the best one."
        tables.append(Table("By context", head, tuple(parts), meaning))
    return Findings(numbers, tables, goals if p.seeds > 1 else {})


def cell(accuracy, bits):
    """Accuracy and bits as a table has them."""
    parts = (
        None if accuracy is None else f"{accuracy:.3f}",
        None if bits is None else f"({bits:.2f})",
    )
    return " ".join(filter(None, parts)) or None


def folk_tunes(folder):
    """The first notes of each collection of tunes: those of tunes/NAME/*.abc, by name."""
    found = {}
    for place in sorted(folder.glob("tunes/*")) if folder else ():
        notes = []
        for path in sorted(place.glob("*.abc")):
            with contextlib.suppress(InputError):  # damaged in the mail, a few of a thousand
                notes += [note for voice in read_abc(path) for note in voice]
        found[f"{place.name}, notes"] = notes[:NOTES]
    return found


def machine_figures(sequence, symbols, seeds, notes=False):
    """Accuracy, bits a symbol and area under the ROC curve of the machine of the command."""
    found = []
    for seed in range(seeds if len(sequence) < LONG else min(seeds, 2)):
        one, other = (SequenceMachine(symbols, context=Mixed(notes=notes), seed=seed)
                      for _ in range(2))  # fmt: skip
        right, match, _ = one.match_sequence(sequence, learn=True)
        bits = other.surprise_sequence(sequence).mean()
        found.append((float(right.mean()), float(bits), area(match, right)))
    return np.mean(found, 0).tolist()


def other_figures(sequence, symbols):
    """Accuracy and bits of each of PEERS, None for what it has not."""
    number = {symbol: i for i, symbol in enumerate(symbols)}
    ids = [number[symbol] for symbol in sequence]
    both = [(float(right.mean()), float(bits.mean()))
            for right, bits in (ppm_c(ids, len(symbols)), mixer(ids, len(symbols)))]  # fmt: skip
    ngram = float(np.mean(BackoffNgram(5).learn_sequence(sequence))), None
    packed = None, ppmd(sequence) if isinstance(sequence, str) else None
    return dict(zip(PEERS, (ngram, *both, packed), strict=True))


def context_figures(sequence, symbols):
    """Accuracy of machines of other contexts than the default."""
    contexts = {"Backoff(depth=4)": Backoff(depth=4), "Backoff()": Backoff(),
                "Shift(depth=4)": Shift(depth=4), "Combined()": Combined()}  # fmt: skip
    return {name: float(SequenceMachine(symbols, context=context).learn_sequence(sequence).mean())
            for name, context in contexts.items()}  # fmt: skip


def series(folder):
    """NAB: name, numbers, windows and hours of the day of each file of data."""
    windows = json.loads((folder / "labels/combined_windows.json").read_text())
    for path in sorted(folder.glob("data/*/*.csv.gz")):
        name = f"{path.parent.name}/{path.name[:-3]}"
        rows = list(csv.reader(io.TextIOWrapper(gzip.open(path))))[1:]
        times = [row[0] for row in rows]
        ends = [(times.index(a[:19]), len(times) - 1 - times[::-1].index(b[:19]))
                for a, b in windows[name]]  # fmt: skip
        hours = [datetime.fromisoformat(time).hour for time in times]
        yield name, [float(row[1]) for row in rows], sorted(ends), hours


def worth(length, windows):
    """Of an alarm at each row: its window or -1, and its worth before weights (README of NAB)."""
    window, value = np.full(length, -1), np.full(length, -1.0)
    sigmoid = lambda y: 2 / (1 + np.exp(5 * y)) - 1  # noqa: E731
    for k, (a, b) in enumerate(windows):
        width, rows = b - a + 1, np.arange(a, b + 1)
        window[a : b + 1] = k
        value[a : b + 1] = sigmoid(-(b - rows + 1) / width) / sigmoid(-1.0)
        after = np.arange(b + 1, windows[k + 1][0] if k + 1 < len(windows) else length)
        y = (after - b) / (width - 1)
        value[after] = np.where(y > 3, -1.0, sigmoid(np.minimum(y, 3.0)))
    return window, value


def nab_scores(scores, files):
    """NAB's score of each profile at its best threshold: 0 for no alarm, 100 for perfect."""
    every, windows, values, total = [], [], [], 0
    for name, numbers, ends, _ in files:
        first = min(int(0.15 * len(numbers)), 750)
        window, value = worth(len(numbers), ends)
        every.append(scores[name][first:])
        windows.append(np.where(window >= 0, window + total, -1)[first:])
        values.append(value[first:])
        total += len(ends)
    order = np.argsort(-np.concatenate(every), kind="stable")
    every, windows, values = (np.concatenate(x)[order] for x in (every, windows, values))
    gain, hits, best = np.zeros(len(order)), np.zeros(len(order)), {}
    for i in np.flatnonzero(windows >= 0):
        hits[i] = windows[i] not in best
        before = best.get(windows[i], 0.0)
        best[windows[i]] = max(before, values[i])
        gain[i] = best[windows[i]] - before
    last = np.append(np.flatnonzero(np.diff(every)), len(every) - 1)  # of equal scores
    gain, hits = gain.cumsum()[last], hits.cumsum()[last]
    false = np.where(windows < 0, values, 0).cumsum()[last]
    found = {}
    for profile, (fp, fn) in PROFILES.items():
        raw = max((gain + fp * false - fn * (total - hits)).max(), -fn * total)
        found[profile] = 100 * (raw + fn * total) / ((1 + fn) * total)
    return found


@study(
    "nab",
    question="How well does a machine that watches numbers find the anomalies of NAB?",
    presets={"tiny": P(files=0, goal=False), "small": P(files=6, goal=False),
             "full": P(files=None, goal=True)},
)  # fmt: skip
def nab(p, ctx):
    """Numenta Anomaly Benchmark, 48 series, one setting, found while looking at them all; either
    half of the files is beside it. A detector may know a file's least and greatest value.
    """
    if p.files == 0:  # the form of the study on made numbers
        numbers = [*np.sin(np.arange(400) / 9), 5.0, *np.sin(np.arange(20) / 9)]
        files = [("made", numbers, [(395, 410)], [i // 12 % 24 for i in range(421)])]
    else:
        files = list(series(ctx.file("nab")))[: p.files]
    scores, costs = {}, {}
    for by_hour in (True, False):
        kind, start = "with the hour" if by_hour else "without", time.perf_counter()
        for done, (name, numbers, _, hours) in enumerate(files):
            update(f"nab, {kind}", done, len(files))
            low, high = min(numbers), max(numbers)
            phases = 24 if by_hour else 0
            watcher = Watcher(low, high if high > low else low + 1, phases=phases)
            moments = watcher.take_all(numbers, hours if by_hour else None)
            scores[kind, name] = np.array([moment.anomaly for moment in moments])
        rows = sum(len(numbers) for _, numbers, _, _ in files)
        costs[kind] = 1e6 * (time.perf_counter() - start) / rows
    parts = {"all": files, "even files": files[::2], "odd files": files[1::2]}
    found = {(kind, part): nab_scores({name: scores[kind, name] for name, *_ in some}, some)
             for kind in costs for part, some in parts.items() if some}  # fmt: skip
    table = Table(
        "Numenta Anomaly Benchmark",
        ("hour of the day", "files", *PROFILES, "us a row"),
        tuple((kind, f"{part}, {len(parts[part])}", *(f"{v:.1f}" for v in of.values()),
               f"{costs[kind]:.0f}" if part == "all" else None)
              for (kind, part), of in found.items()),
        "Score at the best threshold, as NAB reports it: 0 for no alarm at all, 100 for perfect. "
        "Time of one row, 256 taken at once.",
    )  # fmt: skip
    numbers = {f"{part}, {key}, {kind}": v for (kind, part), of in found.items()
               for key, v in of.items()}  # fmt: skip
    numbers |= {f"microseconds a row, {kind}": cost for kind, cost in costs.items()}
    goals = {key: Goal(found["with the hour", "all"][key], limit, at_least=True)
             for key, limit in PUBLISHED.items()} if p.goal else {}  # fmt: skip
    return Findings(numbers, [table], goals)


def precision_area(score, positive):
    """Area under the curve of precision over recall."""
    hit = positive[np.argsort(-score, kind="stable")]
    return float((hit.cumsum() / np.arange(1, len(hit) + 1))[hit].mean())


@study(
    "logs",
    question="Does a machine that watches a log find its alerts and predict its next line?",
    presets={"tiny": P(systems=()), "small": P(systems=("Apache",)), "full": P(systems=SYSTEMS)},
)  # fmt: skip
def logs(p, ctx):
    """Loghub, 2,000 lines each, by template; the alert label is cut off before they are seen."""
    rows, numbers, goals = [], {}, {}
    logs_ = {"made": ["a 1", "b 2", "c 3"] * 20} if not p.systems else {}
    for system in p.systems:
        text = gzip.open(ctx.file("loghub", f"{system}_2k.log.gz"), "rt").read()
        logs_[system] = text.splitlines()
    for system, lines in logs_.items():
        alert = np.array([line.split(" ", 1)[0] != "-" for line in lines])
        cut = [line.split(" ", 1)[1] for line in lines] if system == "BGL" else lines
        templates = [line_template(line) for line in cut]
        machine = SequenceMachine(grow=True)
        watcher = Watcher()
        bits = np.array([watcher.take(template).bits for template in templates])
        right = []
        for template in templates:
            right.append(machine.predict().symbol == template)
            machine.learn(template)
        peer = BackoffNgram(5).learn_sequence(templates)
        common = BackoffNgram(0).learn_sequence(templates)
        accuracy = [float(np.mean(x)) for x in (right, peer, common)]
        numbers[f"accuracy, {system}"] = accuracy[0]
        goals[f"next template over the n-gram, {system}"] = Goal(accuracy[0], accuracy[1], True)
        rows.append((system, str(len(set(templates))), *(f"{x:.3f}" for x in accuracy)))
        if system == "BGL":
            counts, rare = {}, []
            for template in templates:
                rare.append(-counts.get(template, 0))
                counts[template] = counts.get(template, 0) + 1
            areas = precision_area(bits, alert), precision_area(np.array(rare, float), alert)
            numbers |= {"alerts, machine": areas[0], "alerts, rare first": areas[1],
                        "alerts, chance": float(alert.mean())}  # fmt: skip
            goals["alerts, area over a frequency baseline"] = Goal(areas[0], areas[1], True)
    head = ("log", "templates", "machine", "5-gram", "commonest")
    meaning = "Share of next templates predicted, on line."
    table = Table("Logs", head, tuple(rows), meaning)
    return Findings(numbers, [table], goals if p.systems == SYSTEMS else {})


class Killed(NamedTuple):
    """A ``watch`` that was killed: exit status, lines it printed, and saved lines that are gone."""

    status: int
    printed: int
    lost: int


def log_lines(count):
    """A log that a seed made: few templates, many numbers."""
    draw = random.Random(0)
    kinds = ("accept", "close", "retry", "disk slow", "user login", "user logout")
    return [f"10:{i % 60:02} {kinds[min(int(draw.expovariate(0.6)), 5)]} id {i}"
            for i in range(count)]  # fmt: skip


def kill_watch(lines, model, every, after):
    """Kill ``watch``, fed by a pipe with what its model lacks, some time after its first line."""
    done = Watcher.load(model).count if model.exists() else 0
    command = [sys.executable, "-m", "isospike", "watch", "-", "--model", str(model),
               "--every", str(every), "--quiet"]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    feeder = threading.Thread(target=_feed, args=(process.stdin, lines[done:]))
    feeder.start()
    seen = [process.stdout.readline()]
    threading.Timer(after, process.kill).start()
    seen += process.stdout.read().split("\n")[:-1]
    status = process.wait()
    feeder.join()
    for end in (process.stdout, process.stdin):
        with contextlib.suppress(OSError):
            end.close()
    saved = Watcher.load(model).count - done if model.exists() else 0
    # The line after a save point is printed once it is saved.
    points = (len(seen) - 1) // every * every
    return Killed(status, len(seen), max(0, points - saved))


def _feed(pipe, lines):
    with contextlib.suppress(OSError):
        for line in lines:
            pipe.write(f"{line}\n")
            pipe.flush()


@study(
    "killed-watches",
    question="Is anything lost that came before the last save point, if watch is killed?",
    presets={
        "tiny": P(kills=1, lines=500),
        "small": P(kills=5, lines=20_000),
        "full": P(kills=20, lines=100_000),
    },
)
def killed_watches(p, ctx):
    """kill -9, on a pipe, at a random time; one model, which goes on each time with what it lacks.
    At the end it is compared with a watcher that was never killed."""
    lines, draw, rows = log_lines(p.lines), random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "w.safetensors")
        for kill in range(p.kills):
            update("killed-watches", kill, p.kills)
            rows.append(kill_watch(lines, model, 20, draw.uniform(0.05, 0.5)))
        loaded, whole = Watcher.load(model), Watcher()
        left = len(list(Path(folder).iterdir()))
    whole.take_all(map(line_template, lines[: loaded.count]))
    rest = [line_template(line) for line in lines[-1000:]]
    apart = sum(a != b for a, b in zip(loaded.take_all(rest), whole.take_all(rest), strict=True))
    killed = sum(row.status == -signal.SIGKILL for row in rows)
    numbers = {"kills": killed, "lines printed": sum(row.printed for row in rows),
               "lines saved": loaded.count - len(rest), "files left beside": left - 1}  # fmt: skip
    numbers["lost before a save point"] = sum(row.lost for row in rows)
    numbers["of the next 1,000 surprises, other than unkilled"] = apart
    table = Table("Killed on a pipe", ("what", "number"), tuple(numbers.items()),
                  "Saved every 20 lines; what came after the last save is read again.")  # fmt: skip
    goals = {"lost before a save point": Goal(numbers["lost before a save point"], 0),
             "surprises other than unkilled": Goal(apart, 0)}  # fmt: skip
    return Findings(numbers, [table], goals if p.kills > 1 else {})
