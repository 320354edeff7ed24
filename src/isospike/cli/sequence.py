"""``isospike learn`` and ``recall``: the sequence machine on a file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isospike import progress
from isospike.cli.app import command
from isospike.cli.emit import Outcome, compiling, note
from isospike.errors import InputError, RangeError
from isospike.report.disk import held
from isospike.report.files import check_file, write_file

CHUNK = 2000  # symbols between two looks at the progress
NGRAM = 5
MOST_SYMBOLS = 1_000_000  # of a recall
TUNES = (".mid", ".midi", ".abc")


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
        file (FILE): A UTF-8 text; tunes in ABC notation (``.abc``) or MIDI (``.mid``); melodies as
            JSON, lists of MIDI numbers or of chords; or ``shakespeare`` or ``chorales``, which come
            with isospike.
        unit (UNIT): What a symbol of a text is: ``char``, ``word`` or ``line``.
        limit: Number of symbols to learn, at most. [default: all]
        context (KIND): What the next symbol is predicted from. ``mixed``: contexts of many kinds,
            weighted by how right they were; of melodies intervals count too, so that a phrase of
            one key is known in all. ``backoff``: the last symbols, as an n-gram. ``combined``,
            ``layer``: a code of all symbols so far. ``shift``: codes of the last symbols side by
            side. [default: mixed]
        depth: Number of symbols in the longest context. [default: 6; 2 with shift]
        synapses: Number of counters that the memory may hold, at most. [default: 8388608]
        when_full (WHAT): What ``mixed`` does once it has all --synapses: ``keep`` what it knows and
            learn nothing new, ``grow`` beyond, or ``forget`` what was used longest ago.
            [default: keep]
        out: File to save the machine in. One that is there already is loaded and goes on learning.
    """
    if limit is not None and limit < 1:
        raise RangeError(f"learn needs limit of at least 1, got {limit}. Leave it out for all.")
    check_file(out, Path(file))
    with alone(out, "learn"):
        from isospike.data.sequences import is_music, read_sequences

        chosen = {"depth": depth, "synapses": synapses, "when_full": when_full}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        music = is_music(file)
        machine = _machine(context, chosen, music, seed, out)
        sequences = read_sequences(file, unit, limit)
        _take_unit(machine, "melody" if music else unit, out)
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
    "Sequence memory",
    examples=(
        "isospike recall out/sequence.safetensors --prompt 'To be, or'",
        "isospike recall out/bach.safetensors --prompt 60-64-67 --out bach.mid",
    ),
)
def recall(
    machine: Path, *, prompt: str = "", symbols: int = 100, out: Path | None = None
) -> Outcome:
    """Continue a prompt with what a machine has learned.

    Args:
        machine: A machine that isospike learn saved.
        prompt (TEXT): Text to continue. For a machine of melodies: MIDI numbers, those of a chord
            joined by ``-``, with spaces between them.
        symbols: Number of symbols to add, at most.
        out (FILE): For a machine of melodies: the tune's file, ``.mid`` or ``.abc``.
    """
    if out is not None:
        check_file(out, machine)
        if out.suffix.lower() not in TUNES:
            raise InputError(
                f"recall needs --out to end in {' or '.join(TUNES)}, got {out}. Name it so."
            )
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
            f"knows {len(learned.symbols)}, such as {_some(learned.symbols)}. Use those."
        )
    joint = {"char": "", "line": "\n"}.get(unit, " ")
    if out is not None and unit != "melody":
        raise InputError(
            f"recall needs a machine of melodies for --out, got one of the unit {unit}. Leave it "
            "out."
        )
    added = learned.generate(start, symbols)
    whole = [str(s) for s in [*start, *added]]
    if out is not None:
        _write_tune(out, whole)
    text = joint.join(whole)
    data = {"prompt": prompt, "text": text, "symbols": len(added)}
    return Outcome(data=data, text=text, saved=out)


def _some(symbols: Any) -> str:
    """The first of the symbols, for a message."""
    return ", ".join(repr(str(symbol)) for symbol in list(symbols)[:4])


def _write_tune(path: Path, symbols: list[str]) -> None:
    from isospike.data import write_abc, write_midi

    midi = path.suffix.lower() != ".abc"
    write_file(path, write_midi(symbols) if midi else write_abc(symbols, path.stem).encode())


@contextlib.contextmanager
def alone(path: Path, name: str) -> Iterator[None]:
    """Keep other processes from learning with the same machine: what one learns would be lost.

    Args:
        path: Its file, which need not be there.
        name: Of the command.

    Raises:
        InputError: Another process does.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(path))
        except BlockingIOError:
            raise InputError(
                f"{name} needs a machine that no other process learns with, got {path}. Wait, or "
                "name another file."
            ) from None
        yield


def _machine(
    context: str | None, chosen: dict[str, Any], music: bool, seed: int, path: Path
) -> Any:
    """A new machine of the chosen settings, or the one that is in the file."""
    from isospike.memory import SequenceMachine
    from isospike.memory.contexts import CONTEXTS

    if path.exists():
        if chosen or context is not None:
            raise InputError(
                f"learn needs no --context, --depth, --synapses or --when-full for the machine in "
                f"{path}, got some. Leave them out, or name another --out."
            )
        machine = SequenceMachine.load(path)
        if music and getattr(machine.settings.context, "notes", True) is False:
            note("note", "the machine counts no intervals: an older one, or not of music.")
        return machine
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
    notes = {"notes": True} if music and "notes" in kind.__dataclass_fields__ else {}
    return SequenceMachine(context=kind(**chosen, **notes), grow=True, seed=seed)


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
            with compiling(done == 0):
                right += int(machine.learn_sequence(part).sum())
            right_ngram += sum(ngram.learn_sequence(part))
            done += len(part)
            progress.update("learn", done, total)
    return right / total, right_ngram / total
