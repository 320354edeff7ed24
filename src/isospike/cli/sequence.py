"""``isospike learn``, ``recall`` and ``watch``: the sequence machine on a file or a pipe."""

import contextlib
import io
import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from isospike import progress
from isospike.cli.app import command
from isospike.cli.emit import Outcome, note
from isospike.errors import InputError, RangeError
from isospike.report.files import check_file

try:
    import fcntl
except ImportError:  # no Unix: nothing is locked
    fcntl = None  # type: ignore[assignment]

CHUNK = 2000  # symbols between two looks at the progress
NGRAM = 5
MOST_SYMBOLS = 1_000_000  # of a recall
WATCHED = ("char", "line", "number")
MOST_LINE = 2**16  # characters of a line that is watched


@command(
    "Sequence memory",
    examples=("isospike learn my.txt", "isospike learn chorales --out out/bach.safetensors"),
    smaller="--limit",
)
def learn(
    file: str,
    *,
    unit: str = "char",
    limit: int | None = None,
    context: str | None = None,
    depth: int | None = None,
    synapses: int | None = None,
    when_full: str | None = None,
    seed: int = 0,
    out: Path = Path("out/sequence.safetensors"),
) -> Outcome:
    """Learn a text or melodies in one pass, symbol by symbol.

    Every symbol is predicted before it is learned. The result compares the accuracy of the machine
    with that of a back-off n-gram of order 5 that learned in the same way.

    Args:
        file (FILE): A UTF-8 text; melodies as JSON, lists of MIDI numbers or of chords; or
            ``shakespeare`` or ``chorales``, which come with isospike.
        unit (UNIT): What a symbol of a text is: ``char``, ``word`` or ``line``.
        limit: Most symbols to learn. [default: all]
        context (KIND): What predicts: ``mixed``, ``backoff``, ``combined``, ``layer`` or ``shift``.
            [default: mixed]
        depth: Symbols of the longest context. [default: 6; of shift 2]
        synapses: Most counters of the store. [default: 8388608]
        when_full (WHAT): What a full store of ``mixed`` does: ``keep`` what it knows, ``grow``, or
            ``forget`` what was used longest ago. [default: keep]
        out: Where to save. A machine that is there already learns on.
    """
    if limit is not None and limit < 1:
        raise RangeError(f"learn needs limit of at least 1, got {limit}. Leave it out for all.")
    check_file(out, Path(file))
    with _locked(out):
        chosen = {"depth": depth, "synapses": synapses, "when_full": when_full}
        machine = _machine(context, {k: v for k, v in chosen.items() if v is not None}, seed, out)
        from isospike.data import read_sequences

        sequences = read_sequences(file, unit, limit)
        melodies = file == "chorales" or Path(file).suffix.lower() == ".json"
        _take_unit(machine, "melody" if melodies else unit, out)
        if out.exists():
            note("note", "the machine has learned before, the n-gram has not: do not compare them.")
        else:
            _tell_memory(machine.settings.context)
        accuracy, ngram = _learn(machine, sequences)
        machine.save(out)
    total, alphabet = sum(map(len, sequences)), len(machine.symbols)
    found = {
        "symbols": total, "alphabet": alphabet, "accuracy": accuracy, f"ngram_{NGRAM}": ngram,
        "synapses": machine.synapses, "full": machine.full,
    }  # fmt: skip
    lines = {
        "learned": f"{total:,} symbols of {alphabet}",
        "predicted before learning": f"{accuracy:.1%}",
        f"order-{NGRAM} back-off n-gram": f"{ngram:.1%}",
        "synapses": f"{machine.synapses:,}{', full' if machine.full else ''}",
    }
    if machine.full:
        note("note", "the store is full: give more --synapses, or --when-full grow or forget.")
    text = "\n".join(f"{name:<26}{value}" for name, value in lines.items())
    return Outcome(data={**found, "model": str(out)}, text=text, saved=out)


@command(
    "Sequence memory", examples=("isospike recall out/sequence.safetensors --prompt 'To be, or'",)
)
def recall(machine: Path, *, prompt: str = "", symbols: int = 100) -> Outcome:
    """Continue a prompt with what a machine has learned.

    Args:
        machine: A machine that isospike learn saved.
        prompt (TEXT): Text to continue; symbols of melodies with spaces between them.
        symbols: Most symbols to add.
    """
    if not 0 <= symbols <= MOST_SYMBOLS:
        raise RangeError(
            f"recall needs symbols of at least 0 and at most {MOST_SYMBOLS}, got {symbols}. Try "
            "100."
        )
    from isospike.data import split_symbols
    from isospike.memory.machine import SequenceMachine

    learned = SequenceMachine.load(machine)
    unit = learned.metadata.get("unit", "char")
    start = split_symbols(prompt, unit)
    unknown = [s for s in start if s not in learned]
    if unknown:
        raise InputError(
            f"recall needs prompt of symbols that the machine has learned, got {unknown[0]!r}. It "
            f"knows {len(learned.symbols)}; choose from those."
        )
    joint = {"char": "", "line": "\n"}.get(unit, " ")
    added = learned.generate(start, symbols)
    text = joint.join(str(s) for s in [*start, *added])
    return Outcome(data={"prompt": prompt, "text": text, "symbols": len(added)}, text=text)


@command(
    "Sequence memory",
    examples=("isospike watch server.log", "tail -f values.csv | isospike watch - --unit number "
              "--low 0 --high 100"),
    kept="what was printed stays.",
)  # fmt: skip
def watch(
    file: str,
    *,
    unit: str = "line",
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
    as_json: bool = False,
) -> Outcome:
    """Say how much each line, number or character of a stream surprises, and how unusual that is.

    Each is predicted before it is learned. One line a symbol is printed as it comes: its number,
    its surprise in bits, how unusual it is from 0 to 1, and the symbol.

    Args:
        file (FILE): A file, or ``-`` for a pipe.
        unit (UNIT): What a symbol is: ``line`` (words with digits left out, as of a log),
            ``char``, or ``number`` (one a line, or the last column of a CSV).
        low: Least number expected. [default: of the file]
        high: Greatest number expected. [default: of the file]
    """
    if unit not in WATCHED:
        raise InputError(
            f"watch needs unit to be one of {', '.join(WATCHED)}, got {unit!r}. Choose one of them."
        )
    if unit != "number" and (low, high) != (None, None):
        raise InputError("watch needs --low and --high only with --unit number, got them. Leave "
                         "them out.")  # fmt: skip
    from isospike.memory.watch import Watcher

    if unit == "number" and file != "-" and low is None and high is None:
        numbers = [number for number, _ in _symbols(file, unit)]
        low, high = min(numbers, default=0.0), max(numbers, default=0.0)
        high = high if high > low else low + 1.0
    elif unit == "number" and (low is None or high is None):
        raise InputError(
            "watch needs --low and --high for numbers of a pipe, got not both. Name the range in "
            "which they are expected."
        )
    watcher = Watcher(low, high, seed=seed)
    show = partial(_watch, watcher, file, unit)
    return Outcome(data=partial(show, True), text=partial(show, False))


def _watch(watcher: Any, file: str, unit: str, as_json: bool) -> None:
    """Print what a watcher says of every symbol, as it comes."""
    for count, (symbol, shown) in enumerate(_symbols(file, unit), 1):
        moment = watcher.take(symbol)
        if as_json:
            about = {"symbol": shown, "bits": moment.bits, "anomaly": moment.anomaly}
            print(json.dumps(about), flush=True)
        else:
            safe = shown if shown.isprintable() else repr(shown)[1:-1]  # no codes for the terminal
            print(f"{count}\t{moment.bits:.2f}\t{moment.anomaly:.3f}\t{safe}", flush=True)


def _symbols(file: str, unit: str) -> Iterator[tuple[Any, str]]:
    """Symbols of a file or a pipe as they come, and as they are shown."""
    from isospike.data import read_text
    from isospike.memory.watch import line_template

    if file == "-" and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # whatever the locale says
    lines: Any = sys.stdin if file == "-" else read_text(file).splitlines()
    try:
        for count, line in enumerate(iter(partial(lines.readline, MOST_LINE), "")
                                     if file == "-" else lines, 1):  # fmt: skip
            text = line.rstrip("\r\n")
            if unit == "char":
                yield from ((letter, repr(letter)[1:-1]) for letter in f"{text}\n")
            elif unit == "line":
                yield line_template(text), text
            elif text.strip():
                cell = text.rsplit(",", 1)[-1].strip()
                try:
                    number = float(cell)
                except ValueError:
                    if count == 1:
                        continue  # the names of the columns
                    number = math.nan
                if not math.isfinite(number):
                    raise InputError(
                        f"watch needs finite numbers, got {cell[:40]!r} in line {count}. Leave the "
                        "line out."
                    )
                yield number, cell
    except UnicodeDecodeError:
        raise InputError(
            f"watch needs UTF-8 text, got other bytes in {file!r}. Convert it to UTF-8."
        ) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from learning with a machine that is there; what they learn is lost."""
    with contextlib.ExitStack() as stack:
        if fcntl is not None and path.is_file():
            with contextlib.suppress(OSError):  # a file system without locks
                file = stack.enter_context(path.open("rb"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InputError(
                        f"learn needs a machine that no other process learns with, got {path}. "
                        "Wait, or name another --out."
                    ) from None
        yield


def _machine(context: str | None, chosen: dict[str, Any], seed: int, path: Path) -> Any:
    """A new machine of the chosen settings, or the one that is in the file."""
    from isospike.memory import SequenceMachine
    from isospike.memory.contexts import CONTEXTS

    if path.exists():
        if chosen or context is not None:
            raise InputError(
                f"learn needs no settings of a machine that has learned, got some for {path}. "
                "Leave them out, or name another --out."
            )
        return SequenceMachine.load(path)
    kind = CONTEXTS.get("mixed" if context is None else context)
    if kind is None:
        raise InputError(
            f"learn needs context to be one of {', '.join(CONTEXTS)}, got {context!r}. Choose one "
            "of them."
        )
    wrong = [name for name in chosen if name not in kind.__dataclass_fields__]
    if wrong:
        raise InputError(
            f"learn needs {wrong[0]} only for a context that has it, got it for {kind.name}. Leave "
            "it out."
        )
    return SequenceMachine(context=kind(**chosen), grow=True, seed=seed)


def _tell_memory(context: Any) -> None:
    """Say beforehand what the store may come to take."""
    if hasattr(context, "most_bytes"):
        most = f"{context.most_bytes / 2**20:,.0f} MiB"
        end = ", then beyond" if context.when_full == "grow" else " at most"
        note("memory", f"the store grows with use, to {most}{end}.")


def _take_unit(machine: Any, unit: str, path: Path) -> None:
    saved = machine.metadata.setdefault("unit", unit)
    if saved != unit:
        raise InputError(
            f"learn needs a machine of the unit {unit}, got one of {saved} in {path}. Name another "
            "--out."
        )


def _learn(machine: Any, sequences: list[list[str]]) -> tuple[float, float]:
    """Accuracy of the machine and of the n-gram, each symbol predicted before it is learned."""
    from isospike.memory.ngram import BackoffNgram

    ngram = BackoffNgram(NGRAM)
    total, done, right, right_ngram = sum(map(len, sequences)), 0, 0, 0
    for sequence in sequences:
        machine.reset_context()
        ngram.reset_context()
        for start in range(0, len(sequence), CHUNK):
            part = sequence[start : start + CHUNK]
            right += int(machine.learn_sequence(part).sum())
            right_ngram += sum(ngram.learn_sequence(part))
            done += len(part)
            progress.update("learn", done, total)
    return right / total, right_ngram / total
