"""Render results/ to docs/measurements/, docs/claims/ and the tables of README: ``make docs``.

A page has a question for a heading, the command that answers it, tables with a sentence above each,
goals, and notes from results/notes/NAME.md. Claims come from the registry and results/claims.toml.
"""

import math
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path

from benchmarks import front
from benchmarks.examples import example_pages
from benchmarks.reference import reference_pages
from isospike.experiments.study import (
    CORRECTED,
    FAILS,
    HOLDS,
    PRESETS,
    StudyReport,
    find_studies,
    stored,
)
from isospike.report.table import Table

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "results", ROOT / "docs"

PAGES = {
    "port": ("Ports of real models", (
        "stsb", "stories", "foreign", "foreign-captions", "foreign-lengths", "foreign-models",
        "synapses", "synapse-speed", "beside-others", "whisper", "masked-lm", "allocation",
        "port-speed", "port-memory", "port-large", "demo", "stepped",
    )),
    "architectures": ("Which models can be ported", ("architectures", "generation")),
    "uses": ("What can be done with a port", ("uses",)),
    "steps": ("Steps and dimension", ("steps", "dimension")),
    "machine": ("The sequence machine", (
        "protocols", "long-sequences", "distractors", "text", "prediction", "nab", "logs",
        "killed-watches",
        "context-weight", "machine-speed", "machine-files",
    )),
    "memory": ("The machine's memory and spiking layers", (
        "pairs", "sets", "noisy-address", "spike-time-rules", "spiking-memory", "spiking-machine",
        "wheel-threshold", "burst-chain",
    )),
    "neurons": ("Neurons and spike products", (
        "lif", "spike-linear", "spike-attention", "spikformer",
        "spikformer-training", "neuron-start",
    )),
    "deploy": ("Off this machine", (
        "nir-attention", "nir-families", "nir-files", "onnx", "neurobench", "mackey-glass",
    )),
    "training": ("Training", (
        "cifar-integers", "cifar-floats", "cifar-families", "sequential-mnist", "event-digits",
        "trained-port", "sst2", "sst2-turns", "timesteps",
    )),
    "gpu": ("On a GPU", ("gpu-parity", "gpu-ports", "gpu-neurons", "gpu-models")),
    "positions": ("Positional encodings", (
        "encodings", "published-table", "spike-timing", "frequency-compression", "learned-rank",
        "extrapolation", "online", "geometry", "lemma-1", "overlap-kernel", "training-speed",
    )),
    "theory": ("Laws and circuits", (
        "code-errors", "projection", "softmax", "coincidence", "few-spike", "circuits",
        "approximation",
    )),
    "files": ("Files and commands", (
        "damaged-files", "killed-saves", "loads-beside-saves", "command-lines",
    )),
    "causal": ("Causal order", (
        "causal-linear", "causal-extraction", "causal-fit", "causal-curved", "causal-dagma",
        "causal-large", "causal-scores", "causal-bnlearn", "causal-edges", "causal-gap",
        "causal-guards", "causal-sachs", "causal-rules", "causal-checks",
        "causal-pairs", "causal-two-columns", "causal-forms",
    )),
    "ranks": ("Ranks of a transformer", (
        "rank-architectures", "rank-cost", "rank-tolerance", "rank-noise", "rank-heads",
        "rank-spikes", "gated-output",
    )),
}  # fmt: skip
"""Title and studies of each page, by its name; a name without a result is a note alone."""

LONG = {"encodings": 2}
"""Studies of which a page shows only the first tables; all are on a page of their own."""

SECTIONS = {
    "codes and machine": "Codes, neurons and the sequence machine",
    "positions": "Positions and the equivalence of the two machines",
    "steps": "How many steps",
    "causal order": "Causal order",
    "ranks": "Ranks of a transformer",
}
REPOSITORY = "https://github.com/isospike/isospike/blob/main/"
WIDTH = 6  # columns of a table
VERDICTS = (HOLDS, CORRECTED, FAILS, "depends")
MADE = "<!-- Made by `make docs` from results/; edit that. -->"


def best_result(name: str) -> StudyReport | None:
    """The stored result with the largest preset; none if there is none."""
    for preset in reversed(PRESETS):
        path = RESULTS / f"{name}-{preset}.json"
        if path.exists():
            return stored(path)
    return None


def note(name: str) -> str:
    """What a person wrote about a result."""
    path = RESULTS / "notes" / f"{name}.md"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def origin(report: StudyReport) -> str:
    """Command, date and machine of a result."""
    made = report.provenance
    again = f"`{made.command}`" if made.command else "No command makes this again"
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    when = report.date or ("date unknown, before results were stored" if report.transcribed else "")
    tiny = " A tiny run, which shows the form and no more." if report.preset == "tiny" else ""
    return f"{again} ({when}; {made.machine}; {versions}).{tiny}"


def goals_of(report: StudyReport) -> Table | None:
    """The goals as a table."""
    if not report.goals:
        return None
    rows = tuple(
        (name, f"{g.value:.5g}", f"{'at least' if g.at_least else 'at most'} {g.limit:g}",
         "met" if g.met else "missed")
        for name, g in report.goals.items()
    )  # fmt: skip
    return Table("Goals", ("goal", "measured", "asked", "verdict"), rows)


def narrow(table: Table) -> str:
    """A table of at most six columns; a wider one in parts, each with its first column."""
    parts, columns = [], len(table.head) - 1
    each = math.ceil(columns / math.ceil(columns / (WIDTH - 1))) if columns else 1
    for start in range(1, columns + 1, each) if columns else (1,):
        kept = (0, *range(start, min(start + each, columns + 1)))
        rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
        formats = tuple(table.formats[i] for i in kept) if table.formats else ()
        strong = tuple((r, kept.index(c)) for r, c in table.strong if c in kept)
        head = tuple(table.head[i] for i in kept)
        parts.append(Table(table.title, head, rows, formats=formats, strong=strong).markdown())
    return "\n\n".join(parts)


def section(name: str, tables: int | None = None) -> list[str]:
    """The part of a page about one study."""
    report = best_result(name)
    if report is None:
        return [note(name)]
    parts = [f"## {report.question}", origin(report)]
    if report.statement:
        parts.append(f"The claim: {report.statement} **{report.decision.capitalize()}.**")
    for table in report.results[:tables]:
        parts += [f"**{table.title}.** {table.meaning}", narrow(table)]
    if tables is not None and len(report.results) > tables:
        parts.append(f"All {len(report.results)} tables: [{name}.md]({name}.md).")
    goals = goals_of(report)
    if goals:
        parts += ["**Goals.** What was asked for, and what was reached.", goals.markdown()]
    return [*parts, note(name)] if note(name) else parts


def write_page(title: str, parts: list[str]) -> str:
    """A page of its parts."""
    return "\n\n".join([f"# {title}", MADE, *(p for p in parts if p)]) + "\n"


def measurement_pages() -> dict[str, str]:
    """The pages of docs/measurements, by path in docs/."""
    pages, listed = {}, []
    for page, (title, names) in PAGES.items():
        parts = [note(f"page-{page}")]
        for name in names:
            parts += section(name, LONG.get(name))
            if name in LONG:
                pages[f"measurements/{name}.md"] = write_page(
                    f"{title}: every table", section(name)
                )
        pages[f"measurements/{page}.md"] = write_page(title, parts)
        reports = [report for name in names if (report := best_result(name))]
        listed.append((title, page, reports))
    parts = [note("page-index")]
    for title, page, reports in listed:
        items = "\n".join(f"- {report.question} {in_short(report)}".rstrip() for report in reports)
        parts += [f"## [{title}]({page}.md)", items]
    pages["measurements/README.md"] = write_page("Measurements", parts)
    return pages


def in_short(report: StudyReport) -> str:
    """The verdict of a claim or the count of goals, for the index."""
    if report.statement:
        return f"**{report.decision}**"
    return report.verdict() if report.goals else ""


def read_claims() -> list[dict]:
    """Every claim; those with a study have the registry's words and the stored verdict."""
    claims = tomllib.loads((RESULTS / "claims.toml").read_text(encoding="utf-8"))["claim"]
    known = find_studies()
    for claim in claims:
        if "study" in claim:
            study = known[claim["study"]]
            report = best_result(study.name)
            claim |= {"statement": study.statement, "source": study.source,
                      "verdict": report.decision if report else "not run"}  # fmt: skip
    return claims


def command_of(match: re.Match) -> str:
    """The command that runs a study, for ``study `name```."""
    name = match[1]
    return (
        f"`isospike reproduce {name}`"
        if name in find_studies()
        else f"`python -m benchmarks {name}`"
    )


def card(claim: dict) -> str:
    """One claim."""
    code = ", ".join(f"`isospike.{name}`" for name in claim["code"])
    found = f" {claim['found'].rstrip('.')}." if claim["found"] else ""
    facts = [f"- **{claim['verdict'].capitalize()}.**{found}",
             f"- Source: {claim['source']}"]  # fmt: skip
    if code:
        facts.append(f"- Code: {code}")
    if claim["test"]:
        said = re.sub("study `([a-z0-9-]+)`", command_of, claim["test"])
        facts.append("- Test: " + re.sub(r"`(tests/[\w/.]+)`", rf"[`\1`]({REPOSITORY}\1)", said))
        files = sorted(set(re.findall(r"`(tests/[\w/.]+)`", claim["test"])))
        if files:
            facts.append(f"- Again: `pytest {' '.join(files)}`")
    return f"### {claim['statement'].rstrip('.')}\n\n" + "\n".join(facts)


def claim_pages() -> dict[str, str]:
    """The pages of docs/claims, by path in docs/."""
    claims, pages, rows = read_claims(), {}, []
    for key, title in SECTIONS.items():
        here = [claim for claim in claims if claim["section"] == key]
        page = key.replace(" ", "-")
        parts = [note(f"claims-{page}")]
        for verdict in VERDICTS:
            cards = [card(claim) for claim in here if claim["verdict"] == verdict]
            if cards:
                parts += [f"## {verdict.capitalize()}", *cards]
        pages[f"claims/{page}.md"] = write_page(f"Claims: {title}", parts)
        counts = Counter(claim["verdict"] for claim in here)
        rows.append((f"[{title}]({page}.md)", *(str(counts[v]) for v in VERDICTS)))
    table = Table("Claims", ("subject", *VERDICTS), tuple(rows))
    pages["claims/README.md"] = write_page("Claims, tested", [note("claims"), table.markdown()])
    return pages


def pages() -> dict[str, str]:
    """Every page that is made, by path in docs/."""
    made = measurement_pages() | claim_pages() | reference_pages() | example_pages()
    return made | front.filled()


def main() -> int:
    """Write the pages that differ, and say which."""
    for name, text in pages().items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path.resolve().relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
