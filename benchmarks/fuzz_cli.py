"""Fuzzed command lines: hostile files and arguments, against every command."""

import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace as P

from isospike.experiments.study import Findings, Goal, study
from isospike.progress import update
from isospike.report.table import Table

WORDS = [f"w{i}" for i in range(26)]
FORM = re.compile(r"error: \S+( --\S+)? needs .+, got .+[.?)] \S.*[.?]")
FOREIGN = "needs an input that it can work on"  # what any exception that is not ours becomes
SLOW_S = 120

BYTES = {
    "empty": b"", "nul": b"\0" * 99, "bom": b"\xef\xbb\xbfa b", "utf16.txt": "a b".encode("utf-16"),
    "utf16le.txt": "a b c d".encode("utf-16-le"), "utf32.txt": "a b".encode("utf-32"),
    "latin.txt": b"caf\xe9", "cr.txt": b"a\rb\rc", "u2028.txt": "a\u2028b\u2029c".encode(),
    "long.txt": b"x" * 300_000, "deep.json": b"[" * 100_000,
    "digits.json": b"[[" + b"9" * 5000 + b"]]", "bool.json": b"[[true, false]]",
    "dict.json": b'{"": []}', "text.json": b'[""]', "half.json": b"[[60, 6",
    "SONG.JSON": b"[[60, 62, [60, 64], []]]", "tune.mid": b"MThd\0\0\0\6\0",
    "t.gz": b"\x1f\x8b\x08\0", "t.zip": b"PK\3\4abc", "ragged.csv": b"a,b\n1,2\n3\n",
    "nan.csv": b"a,b\n1,nan\n2,3\n4,5\n", "inf.csv": b"a,b\n1,inf\n2,3\n4,1e400\n",
    "cell.csv": b"a,b\n1," + b"2" * 200_000, "quote.csv": b'a,b\n1,"2\n3,4\n',
    "one.csv": b"a\n1\n2\n", "same.csv": b"a,a\n1,2\n3,4\n", "header.csv": b"a,b\n",
    "constant.csv": b"a,b\n1,2\n1,3\n1,4\n", "edges.csv": b"a,b\n", "cycle.csv": b"a,b\nb,a\n",
    "formula.csv": b"=cmd(),+b\n1,2\n3,5\n4,4\n9,1\n7,2\n", "pickle.bin": b"\x80\x04\x95",
    "huge.st": b"\xff" * 64, "cut.st": b"\x10\0\0\0\0\0\0\0{",
}  # fmt: skip
NUMBERS = [
    "-1", "0", "1", "2", "3", "nan", "inf", "-inf", "1e400", "0.5", "x", "", "9" * 30,
    "1" + "0" * 5000, "0x10", "1_000", "\u0663", "1e3",
]  # fmt: skip
NAMES = [
    "~nobody-of-this-name/x", "~", "a\nb", "\udcff", "\udcff\udc80/x", "x" * 300, "/", ".", "..",
    "", " ", "nowhere", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem",
    "/proc/self/maps", "[bold]x[/bold]", "\x1b[31mred", "é\U0001f600", "a b", "--", "-x",
    "minilm@", "bert@0", "bert@2", "bert@" + "9" * 5000, "@", "@8", "nobody/nothing",
]  # fmt: skip
CHOICES = [
    "signed-digit", "latency", "phase", "morse", "collapsed", "stepped", "exact", "fast", "float",
    "spiking", "char", "word", "line", "cam", "row", "mean", "tiny", "shrinkage", "",
]  # fmt: skip
GOOD = {
    "learn": ["good.txt", "good.csv", "SONG.JSON"], "order": ["good.csv"], "recall": ["machine.st"],
    "embed": ["bert-port"], "generate": ["gpt2-port"], "compare": ["bert-port", "gpt2-port"],
    "reproduce": ["geometry", "lemma-1"],
}  # fmt: skip
"""Arguments that a command takes; a model for any other."""

DAMAGED = {
    "no-weights": ("bert", "model.safetensors", None), "bad-config": ("bert", "config.json", b"["),
    "deep-config": ("bert", "config.json", b"[" * 100_000),
    "no-words": ("bert", "tokenizer.json", None),
    "cut-port": ("bert-port", "isospike.safetensors", b"\x10\0\0"),
    "mute-port": ("bert-port", "tokenizer_config.json", None),
    "deep-port": ("bert-port", "config.json", b"[" * 100_000),
    "odd-port": ("bert-port", "config.json", b'{"isospike": 3}'),
}  # fmt: skip
"""Copies of a model or a port of which a file is gone or has another content."""

COMMANDS = {
    "check": (1, "--out"),
    "port": (1, "--text --code --steps --max-error --execution --precision --functions --sentences "
                "--seed --out --per-channel --no-curve --workers"),
    "compare": (2, "--text --sentences --out"),
    "embed": (1, "--text --execution --out"),
    "generate": (1, "--prompt --tokens --temperature --seed --execution"),
    "dimension": (1, "--text --share --sentences --seed --out"),
    "rank": (1, "--text --tokens --sequences --seed --out --no-controls"),
    "learn": (1, "--unit --limit --context --depth --synapses --when-full --seed --out"),
    "watch": (1, "--unit --low --high --seed"),
    "recall": (1, "--prompt --symbols"),
    "order": (1, "--truth --correction --information --prune --level --threshold --gamma "
                 "--noise-scale --required --forbidden --tiers --rule --columns --drop --missing "
                 "--resamples --seed --out"),
    "reproduce": (1, "--preset --studies --data --workers --out"),
    "positions": (0, "--tasks --encodings --seeds --workers --out"),
}  # fmt: skip
NUMERIC = set(
    "--steps --max-error --sentences --seed --tokens --temperature --share --sequences --limit "
    "--symbols --level --threshold --gamma --workers --seeds --depth --synapses --low --high "
    "--resamples".split()
)
SWITCHES = {"--per-channel", "--no-curve", "--no-controls", "--json", "--quiet"}
CHOSEN = set("--code --execution --precision --functions --unit --correction --information --prune "
             "--preset --context --when-full --rule --missing".split())  # fmt: skip


def make_models(folder):
    """A tiny encoder, a tiny decoder, a port of each, a machine, and damaged copies."""
    import shutil

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
    )

    known = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    raw = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="[PAD]"
    )
    encoder = BertConfig(
        vocab_size=28, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=32,
    )  # fmt: skip
    decoder = GPT2Config(vocab_size=28, n_embd=8, n_layer=1, n_head=2, n_positions=32)
    for name, model in (("bert", BertModel(encoder)), ("gpt2", GPT2LMHeadModel(decoder))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        say(
            "port",
            name,
            "--text",
            "good.txt",
            "--sentences",
            "8",
            "--no-curve",
            "--out",
            f"{name}-port",
        )
    say("learn", "good.txt", "--out", "machine.st")
    for name, (source, file, content) in DAMAGED.items():
        shutil.copytree(folder / source, folder / name)
        (folder / name / file).unlink()
        if content is not None:
            (folder / name / file).write_bytes(content)


def make_files(folder):
    """Hostile files beside some good ones."""
    chance = random.Random(0)
    lines = [" ".join(chance.choices(WORDS, k=chance.randint(8, 14))) for _ in range(12)]
    (folder / "good.txt").write_text("\n".join(lines))
    rows = [(x := chance.gauss(0, 1), x + chance.gauss(0, 1)) for _ in range(40)]
    (folder / "good.csv").write_text("a,b\n" + "\n".join(f"{a:.4f},{b:.4f}" for a, b in rows))
    for name, content in BYTES.items():
        (folder / name).write_bytes(content)
    for name, target in (("link", "good.txt"), ("dangling", "nowhere"), ("loop", "loop")):
        (folder / name).symlink_to(target)
    (folder / "a folder").mkdir()
    (folder / "a folder" / "mine.txt").write_text("mine")
    os.mkfifo(folder / "pipe")
    with (folder / "sparse.txt").open("wb") as file:
        file.truncate(2**33)
    with chdir(folder):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("socket")
        listener.close()
    (folder / "odd\nname.txt").write_text("w1 w2")
    make_models(folder)


def draw(chance, places):
    """A random command line."""
    command = chance.choice(list(COMMANDS))
    count, options = COMMANDS[command]
    line = [command]
    good = GOOD.get(command, ["bert", "gpt2"])
    count += chance.choice([0] * 8 + [-1, 1])
    line += [chance.choice(good if chance.random() < 0.6 else places) for _ in range(max(0, count))]
    if command == "positions":  # what could be trained takes minutes
        line += ["--tasks", chance.choice(["nope", "", ",", "copy-8,nope", "\udcff"])]
    if command == "reproduce":
        line += ["--preset", chance.choice(["tiny", "tiny", "huge", ""])]
    if command == "port":
        line += ["--text", "good.txt", "--no-curve"]
    if command == "embed":
        line += ["--text", chance.choice(["good.txt", *places])]
    if command == "generate":
        line += ["--prompt", chance.choice(["w1 w2", "", "\udcff", "[UNK]", "w1 " * 40])]
    for option in chance.sample(options.split(), k=min(chance.randint(0, 3), len(options.split()))):
        line.append(option)
        if option in SWITCHES:
            continue
        pool = NUMBERS if option in NUMERIC else CHOICES if option in CHOSEN else places
        if option == "--out":
            pool = [*places, "new", "new/deep/er", "out.npy", "good.txt/below"]
        line.append(chance.choice(pool))
    if chance.random() < 0.3:
        line.append(chance.choice(["--json", "--quiet"]))
    if chance.random() < 0.1:
        line[chance.randrange(len(line))] = chance.choice(
            [*NAMES, *NUMBERS, "--bogus", "--steps=", "-o"]
        )
    return line


@contextmanager
def alarm(seconds):
    """Raise where a call takes too long."""

    def ring(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def say(*line):
    """Exit code and both outputs of a command line in this process."""
    from typer.testing import CliRunner

    from isospike.cli import app

    return CliRunner().invoke(app, list(line))


def faults(status, errors, output, raised=None):
    """What is wrong with an answer, by kind."""
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    found = []
    if "Traceback" in errors or raised is not None and not isinstance(raised, SystemExit):
        found.append("traceback")
    if status not in (0, 1, 2):
        found.append("exit code")
    if FOREIGN in errors:
        found.append("foreign exception")
    if len(lines) != (status == 2) or not all(FORM.fullmatch(line) for line in lines):
        found.append("off the form")
    if status == 2 and output.strip():
        found.append("output beside an error")
    return found


def digest(folder):
    """Of all plain files that commands only read; a folder that one wrote, another may replace."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "sparse.txt"]
    files = [p for p in files if not (p.parent / "isospike.json").exists()]
    fresh = {"new", "out", "cells"}
    files = [
        p for p in files if not fresh & set(p.relative_to(folder).parts) and p.name != "out.npy"
    ]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run_lines(p, folder, seed):
    """The answers to random command lines in this process, by kind of fault, with examples."""
    chance, count, examples = random.Random(seed), Counter(), []
    places = [*NAMES, *sorted(x.name for x in folder.iterdir())]
    before = digest(folder)
    for i in range(p.lines):
        update("command lines", i, p.lines)
        line = draw(chance, places)
        try:
            with alarm(SLOW_S):
                done = say(*line)
            found = faults(done.exit_code, done.stderr, done.stdout, done.exception)
            count[f"exit {done.exit_code}"] += 1
            if isinstance(done.exception, TimeoutError) or "TimeoutError" in done.stderr:
                found = ["hang"]
        except TimeoutError:
            found, done = ["hang"], P(stderr="")
        for kind in found:
            count[kind] += 1
            examples.append((kind, " ".join(line)[:200], done.stderr.strip()[-200:]))
    after = digest(folder)
    changed = [name for name in before if before[name] != after.get(name)]
    count["input changed"] = len(changed)
    examples += [("input changed", name, "") for name in changed]
    return count, examples


START = (  # The byte says that two small modules are loaded, which takes milliseconds.
    "import os; from isospike import interrupts; interrupts.answer(); os.write(1, b'.'); "
    "from isospike.__main__ import main; main()"
)


def run_processes(p, folder, seed):
    """The same as real processes, and Ctrl-C at random times."""
    chance, count, examples = random.Random(seed), Counter(), []
    places = [name for name in NAMES if "\0" not in name]
    for i in range(p.processes):
        update("processes", i, p.processes)
        line = [os.fsencode(part) for part in draw(chance, places)]
        done = subprocess.run(
            [sys.executable, "-m", "isospike", *line], cwd=folder, capture_output=True, check=False,
            timeout=SLOW_S,
        )  # fmt: skip
        for kind in faults(done.returncode, done.stderr.decode(errors="replace"), ""):
            count[kind] += 1
            examples.append((kind, repr(line)[:200], done.stderr.decode(errors="replace")[-200:]))
    for i in range(p.interrupts):
        update("Ctrl-C", i, p.interrupts)
        line = ["order", "sachs", "--out", f"new/{i}"]
        process = subprocess.Popen(
            [sys.executable, "-c", START, *line], cwd=folder, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        process.stdout.read(1)
        time.sleep(chance.random() * p.longest_s)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SLOW_S)
        told = [x for x in errors.decode().splitlines() if x.startswith("interrupted: ")]
        if process.returncode != 0 and (process.returncode, len(told)) != (130, 1):
            count["Ctrl-C not answered"] += 1
            examples.append(
                ("Ctrl-C not answered", str(process.returncode), errors.decode()[-200:])
            )
    return count, examples


KINDS = ("traceback", "off the form", "foreign exception", "exit code", "output beside an error",
         "hang", "input changed", "Ctrl-C not answered")  # fmt: skip


@study(
    "command-lines",
    question="Does every command line end in a result or in one line that says what to do?",
    presets={
        "tiny": P(lines=60, processes=1, interrupts=1, longest_s=0.3, seed=0),
        "small": P(lines=1000, processes=10, interrupts=10, longest_s=1.0, seed=1),
        "full": P(lines=5000, processes=40, interrupts=60, longest_s=2.0, seed=2),
    },
)
def command_lines(p, ctx):  # noqa: ARG001
    """Random and mutated arguments of all commands against hostile files."""
    import huggingface_hub.constants as hub

    online, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    os.environ["HF_HUB_OFFLINE"] = "1"  # of the processes
    try:
        with TemporaryDirectory() as place, chdir(place):
            folder = Path(place)
            make_files(folder)
            count, examples = run_lines(p, folder, p.seed)
            more, others = run_processes(p, folder, p.seed)
    finally:
        hub.HF_HUB_OFFLINE = online
    total, examples = count + more, examples + others
    rows = tuple((kind, count[kind], more[kind]) for kind in KINDS)
    ends = tuple((name, n) for name, n in sorted(count.items()) if name.startswith("exit "))
    head = ("fault", f"{p.lines:,} in this process", f"{p.processes + p.interrupts} processes")
    meaning = f"Seed {p.seed}; {p.interrupts} of the processes get Ctrl-C. All are to be 0."
    tables = [
        Table("Faults of fuzzed command lines", head, rows, meaning),
        Table("How they end", ("exit code", "command lines"), ends, "2: a mistake, named."),
    ]
    if examples:
        tables.append(Table("Examples", ("fault", "command line", "stderr"), tuple(examples[:40])))
    return Findings(
        {kind: total[kind] for kind in KINDS},
        tables,
        {kind: Goal(total[kind], 0) for kind in KINDS},
    )
