"""The tables that README and the pages of the site show first, filled in from results/.

A page has a line ``<!-- table: NAME -->`` and, further down, ``<!-- end -->``; ``make docs`` writes
the table of that name between them.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from isospike.experiments.study import StudyReport, stored
from isospike.report.numbers import percent
from isospike.report.table import Table

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def result(name: str) -> StudyReport:
    """The full result of a study."""
    return stored(ROOT / "results" / f"{name}-full.json")


def row(name: str, title: str, key: str) -> dict[str, str]:
    """A row of a result, by the title of its table and its first cell, by its headings."""
    for table in result(name).results:
        if table.title == title:
            for cells in table.rows:
                if cells[0] == key:
                    return dict(zip(table.head, map(str, cells), strict=True))
    raise KeyError(f"{name}: {title}: {key}")


def share(value: float) -> str:
    """A share in percent, as the other tables have it."""
    return percent(value).replace("%", " %")


def short(error: str | float) -> str:
    """An error, to two digits."""
    return f"{float(error):.2g}".removeprefix("0")


def ports() -> Table:
    """Models by what a port of them costs and keeps."""
    synapses, others = "MiniLM by bits of a weight", "The same weights in other hands: costs"
    rows = []
    for bits in ("16 bits", "8 bits", "4 bits"):
        errors = row("synapses", synapses, bits)
        costs = row("beside-others", others, f"port, T=8, {bits}")
        was = result("synapses").numbers["Spearman, float32"]
        now = errors["Spearman (change)"].split()[0]
        rows.append((
            "MiniLM: Spearman on STS-B", f"8, {bits}",
            f"{short(errors['error'])} ({short(errors['foreign text'])})", costs["spikes/token"],
            costs["time / float"], f"{was:.2f} → {now}",
        ))  # fmt: skip
    numbers = result("trained-port").numbers
    rows.append((
        "MiniLM: accuracy on SST-2", "6, 4 bits",
        f"{short(numbers['error, SST-2 dev, port, T=6'])} "
        f"({short(numbers['error, text of other kinds, port, T=6'])})",
        None, None,
        f"{share(numbers['accuracy, SST-2 dev, float32'])} → "
        f"{share(numbers['accuracy, SST-2 dev, port, T=6'])}",
    ))  # fmt: skip
    story = "stories260K on TinyStories"
    was, now = (row("stories", story, key) for key in ("float32", "signed-digit, T=8"))
    rows.append((
        "stories260K: nats a token, lower is better", "8, 16 bits",
        short(now["error"]), None, None,
        f"{was['nats by story (change)']} → {now['nats by story (change)'].split()[0]}",
    ))  # fmt: skip
    known, new = (row("masked-lm", "Tokens of reactions", f"{k}, 8") for k in ("amide", "ester"))
    rows.append((
        "BERT of reactions: masked tokens, right", "8, 16 bits",
        f"{short(known['error'])} ({short(new['error'])})", None, None,
        _arrow(known["masked named right: float, spikes"]),
    ))  # fmt: skip
    words = row("whisper", "Words that are wrong", "passages of a novel")
    error = result("whisper").numbers["error, commands"]
    rows.append((
        f"Whisper base: wrong words of {words['words']}", "8, 16 bits", short(error),
        None, None, f"{words['wrong, float']} → {words['on spikes']}",
    ))  # fmt: skip
    head = ("model and task", "steps, weights", "error (foreign)", "spikes / token", "time / float",
            "score: float → port")  # fmt: skip
    return Table("Ports", head, tuple(rows))


def _arrow(pair: str) -> str:
    return " → ".join(pair.split(", "))


def errors() -> Table:
    """What is left of a task at an error, from the smallest error up."""
    kept = []
    for kind in ("amide", "sulfonamide"):
        cells = row("masked-lm", "Tokens of reactions", f"{kind}, 8")
        kept.append((float(cells["error"]), "name masked tokens", "BERT of reactions",
                     f"{cells['same token']} of the tokens are float's"))  # fmt: skip
    for key in ("signed-digit, T=8",):
        cells = row("stories", "stories260K on TinyStories", key)
        kept.append((float(cells["error"]), "write the next token", "stories260K",
                     f"{share(float(cells['same arg-max']))} of the tokens are float's; "
                     f"{cells['nats by story (change)'].split()[1].strip('()')} nats"))  # fmt: skip
    numbers = result("whisper").numbers
    words = row("whisper", "Words that are wrong", "passages of a novel")
    kept.append(
        (
            numbers["error, commands"],
            "write down speech",
            "Whisper base",
            "{} of {} words differ".format(words["unlike float's"], words["words"]),
        )
    )
    numbers = result("trained-port").numbers
    for steps in ("6", "4"):
        name = f"SST-2 dev, port, T={steps}"
        kept.append((numbers[f"error, {name}"], "classify sentences", "MiniLM, SST-2",
                     f"{share(numbers[f'same class, {name}'])} of the classes are float's; "
                     f"accuracy {share(numbers['accuracy, SST-2 dev, float32'])} → "
                     f"{share(numbers[f'accuracy, {name}'])}"))  # fmt: skip
    for key in ("signed-digit, T=4", "signed-digit, T=6", "signed-digit, T=8"):
        cells = row("stsb", "MiniLM on STS-B", key)
        kept.append((float(cells["error"]), "compare sentences", "MiniLM, STS-B",
                     f"cosine {cells['cosine'].removeprefix('0')} to float's; rank correlation "
                     f"{cells['Spearman (change)'].split()[1].strip('()')} points"))  # fmt: skip
    rows = tuple((short(e), *rest) for e, *rest in sorted(kept, key=lambda one: one[0]))
    return Table("Errors", ("error", "task", "model", "what is left"), rows)


TABLES: Mapping[str, Callable[[], Table]] = {"ports": ports, "errors": errors}
"""Tables by the names that pages call them by."""


def filled() -> dict[str, str]:
    """The pages with such a table, by path from docs/, as they should be."""
    pages = {}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))):
        text = path.read_text(encoding="utf-8")
        if BLOCK.search(text):
            made = BLOCK.sub(lambda m: f"{m[1]}\n{TABLES[m[2]]().markdown()}\n\n{m[3]}", text)
            pages[os.path.relpath(path, ROOT / "docs")] = made
    return pages
