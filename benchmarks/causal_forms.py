"""Tables as people have them, read by ``isospike order``."""

import bz2
import gzip
import importlib.util
import io
import json
import pickle
import re
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace as P

import numpy as np
from typer.testing import CliRunner

from benchmarks.causal import causal
from isospike.cli import app
from isospike.experiments.study import Findings, Goal
from isospike.progress import update
from isospike.report.table import Table

NAMES = ["alpha", "beta", "gamma", "delta"]
COUNT = 300
ERROR = re.compile(r"error: \S+ needs .+, got .+[.?] \S.*\.", re.DOTALL)


def chain(rows=COUNT):
    """Rows of a chain of straight lines whose noises have one variance, four decimals each."""
    x = np.random.default_rng(0).normal(size=(rows, 4))
    for j in range(1, 4):
        x[:, j] += 1.5 * x[:, j - 1]
    return x.round(4)


X = chain()
CELLS = [[f"{v:.4f}" for v in row] for row in X]


def lines(cells=CELLS, head=NAMES, separator=",", end="\n"):
    """Text of a table."""
    body = [*([head] if head else []), *cells]
    return end.join(separator.join(row) for row in body) + end


def each(change, **more):
    """Text of the table with every cell changed."""
    return lines([[change(c) for c in row] for row in CELLS], **more)


def with_column(name, values, first=True, head=NAMES):
    """Text of the table with one more column."""
    cells = [[v, *row] if first else [*row, v] for v, row in zip(values, CELLS, strict=True)]
    return lines(cells, [name, *head] if first else [*head, name])


def with_cell(text, row=7, column=1):
    cells = [row[:] for row in CELLS]
    cells[row][column] = text
    return lines(cells)


def quoted(cells):
    return [[f'"{c}"' for c in row] for row in cells]


def big(style):
    """Values of some thousands with a mark of thousands."""
    return [[style(1000 * float(c) + 50_000) for c in row] for row in CELLS]


def european(v):
    return f"{v:,.1f}".translate({44: 46, 46: 44})


def zipped(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return out.getvalue()


def records():
    return [dict(zip(NAMES, row, strict=True)) for row in X.tolist()]


def spreadsheet():
    """An Excel file if it can be written here, or the part of one by which it is known."""
    if importlib.util.find_spec("openpyxl") is None:
        return zipped(**{"[Content_Types].xml": "<x/>", "xl/workbook.xml": "<x/>"})
    pandas, out = importlib.import_module("pandas"), io.BytesIO()
    pandas.DataFrame(X, columns=NAMES).to_excel(out, index=False)
    return out.getvalue()


def parquet():
    if importlib.util.find_spec("pyarrow") is None:
        return b"PAR1"
    pandas, out = importlib.import_module("pandas"), io.BytesIO()
    pandas.DataFrame(X, columns=NAMES).to_parquet(out)
    return out.getvalue()


def needs(package, words):
    """Read where a package is installed, else refused in these words."""
    return "" if importlib.util.find_spec(package) else words


def npy():
    out = io.BytesIO()
    np.save(out, X)
    return out.getvalue()


def fixed_width():
    rows = [NAMES, *CELLS]
    return "\n".join("".join(f"{c:>12}" for c in row) for row in rows) + "\n"


def walks():
    return lines([[f"{v:.4f}" for v in row] for row in np.cumsum(X, 0)])


def shares():
    x = np.exp(X / 3)
    return lines([[f"{v:.17g}" for v in row] for row in x / x.sum(1, keepdims=True)])


NUMBERS = [str(i) for i in range(COUNT)]
DAYS = [str(np.datetime64("2020-01-01") + i) for i in range(COUNT)]
FLAGS = ["yes" if v > 0 else "no" for v in X[:, 3]]
MESSAGE = "Warning: "  # a form that is read, and must be warned of in these words
# Name: (content, words of the refusal or warning and "" for a table that is read, options).
FORMS = {
    "commas": (lines(), ""),
    "semicolons, decimal commas": (each(lambda c: c.replace(".", ","), separator=";"), ""),
    "tabs, decimal commas": (each(lambda c: c.replace(".", ","), separator="\t"), ""),
    "tabs": (lines(separator="\t"), ""),
    "bars": (lines(separator="|"), ""),
    "bars on both sides": (
        "\n".join(f"| {' | '.join(r)} |" for r in [NAMES, ["---"] * 4, *CELLS]) + "\n", ""),
    "commas and spaces": (lines(separator=", "), ""),
    "one space": (lines(separator=" "), ""),
    "columns of one width": (fixed_width(), ""),
    "line ends of Windows": (lines(end="\r\n"), ""),
    "line ends of old Macs": (lines(end="\r"), ""),
    "empty lines between": (lines(end="\n\n"), ""),
    "a byte order mark": (b"\xef\xbb\xbf" + lines().encode(), ""),
    "every cell in quotes": (lines(quoted(CELLS), quoted([NAMES])[0]), ""),
    "single quotes": (each(lambda c: f"'{c}'", head=[f"'{n}'" for n in NAMES]), ""),
    "a comma in a quoted name": (lines(head=['"alpha, mm"', *NAMES[1:]]), ""),
    "a line end in a quoted name": (lines(head=['"alpha\n(mm)"', *NAMES[1:]]), ""),
    "exponents": (each(lambda c: f"{float(c):.6e}"), ""),
    "exponents of Fortran": (each(lambda c: f"{float(c):.6e}".replace("e", "D")), ""),
    "no header": (lines(head=None), ""),
    "no header and no separator": ("\n".join(c[0] for c in CELLS), "at least two columns"),
    "a header of years": (lines(head=["2019", "2020", "2021", "2022"]), ""),
    "a header 1, 2, 3, 4": (lines(head=["1", "2", "3", "4"]), ""),
    "names in Greek": (lines(head=["α", "β", "γ", "δ"]), ""),
    "an unnamed index": (with_column("", NUMBERS), ""),
    "row names without a header, as R has them": (
        lines([[f'"{i + 1}"', *row] for i, row in enumerate(CELLS)], NAMES, " "), ""),
    "a column of row numbers": (with_column("id", NUMBERS), MESSAGE + "id numbers the rows"),
    "a trailing separator": (lines().replace("\n", ",\n"), ""),
    "an empty column": (with_column("", [""] * COUNT, first=False), ""),
    "decimal commas in quotes": (each(lambda c: f'"{c.replace(".", ",")}"'), ""),
    "1.234,5": (lines(big(european), separator=";"), ""),
    '"1,234.5"': (lines(quoted(big(lambda v: f"{v:,.1f}"))), ""),
    "1 234,5": (lines(big(lambda v: european(v).replace(".", " ")), separator=";"), ""),
    "1'234.5": (lines(big(lambda v: f"{v:,.1f}".replace(",", "'")), separator=";"), ""),
    "1_234.5": (lines(big(lambda v: f"{v:_.1f}")), ""),
    "$0.49": (each(lambda c: f"${c}"), ""),
    "0.49 %": (each(lambda c: f"{c} %"), ""),
    "a minus of typesetters": (each(lambda c: c.replace("-", "\u2212")), ""),
    "a minus for a missing cell": (with_cell("-"), "missing in row 8, column beta"),
    "an empty cell": (with_cell(""), "missing in row 8, column beta"),
    "an empty cell, --missing drop": (with_cell(""), "", "--missing", "drop"),
    "an empty cell, --missing impute": (with_cell("NA"), "", "--missing", "impute"),
    "an infinite cell": (with_cell("inf"), "infinite in row 8, column beta"),
    "one cell -9999": (with_cell("-9999"), MESSAGE + "beta has 1 cell of -9999"),
    "a line sep=;": ("sep=;\n" + lines(separator=";"), ""),
    "comments": ("# station 7\n# May\n" + lines(), ""),
    "a title": ("Results of May\n" + lines(), ""),
    "a line of units": (lines([["mm", "s", "kg", "K"], *CELLS]), "'mm' in line 2, column alpha"),
    "totals": (lines() + "Total,1,2,3\n", ""),
    "an Excel file": (spreadsheet(), needs("openpyxl", "needs pandas and its reader for excel")),
    "a parquet file": (parquet(), needs("pyarrow", "needs pandas and its reader for parquet")),
    "gzip": (gzip.compress(lines().encode()), ""),
    "zip": (zipped(table=lines()), ""),
    "zip of two": (zipped(a=lines(), b=lines()), "one table in an archive, got 2 files"),
    "bzip2": (bz2.compress(lines().encode()), "packed by bzip2"),
    "a pickle": (pickle.dumps(X), "got a pickle"),
    "an old Excel file": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "old Excel file"),
    "an array of NumPy": (npy(), "NumPy"),
    "a web page": ("<!DOCTYPE html><table><tr><td>1</td><td>2</td></tr></table>", "HTML"),
    "UTF-16": (lines().encode("utf-16"), ""),
    "Latin-1": (lines(head=["größe", *NAMES[1:]]).encode("latin-1"), ""),
    "JSON records": (json.dumps(records()), ""),
    "JSON lines": ("\n".join(map(json.dumps, records())), ""),
    "JSON columns": (json.dumps(dict(zip(NAMES, X.T.tolist(), strict=True))), ""),
    "yes and no": (with_column("flag", FLAGS, first=False), MESSAGE + "flag takes 10 values"),
    "dates": (with_column("day", DAYS), r"column day .*dates.*--drop day"),
    "dates, --drop": (with_column("day", DAYS), "", "--drop", "day"),
    "text": (with_column("site", ["north", "south"] * 150), r"'north' in line 2, column site"),
    "text, --columns": (
        with_column("site", ["north", "south"] * 150), "", "--columns", ",".join(NAMES)),
    "one name twice": (lines(head=["a", "b", "a", "c"]), "different column names, got 'a' twice"),
    "a constant column": (with_column("one", ["1"] * COUNT), "the constant column one"),
    "a column in other units": (
        with_column("inch", [f"{float(r[0]) / 25.4:.17g}" for r in CELLS], first=False),
        "inch, which is a multiple of alpha"),
    "a row that is too short": (lines() + "1,2\n", "got 2 cells in line 302"),
    "a header alone": (lines([]), "got only a header"),
    "an empty file": ("", "the empty file"),
    "three rows": (lines(CELLS[:3]), "more rows than columns, got 3 rows"),
    "eight rows": (lines(CELLS[:8]), MESSAGE + "only 8 rows for 4 columns"),
    "rows three times": (lines(CELLS[:100] * 3), MESSAGE + "200 of 300 rows repeat"),
    "random walks": (walks(), MESSAGE + "Neighbouring rows are alike"),
    "shares of a sum": (shares(), MESSAGE + "are shares of a constant sum"),
}  # fmt: skip


def outcome(name, folder):
    """What the command does with a form: how it is judged, and the words of it."""
    content, words, *options = FORMS[name]
    path = Path(folder) / "table"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    given = ["order", str(path), "--json", "--resamples", "0", "--out", f"{folder}/out", *options]
    result = CliRunner().invoke(app, given)
    if result.exit_code:
        said = result.stderr.strip().splitlines()[-1]
        clear = ERROR.fullmatch(said) and words and re.search(words, said, re.DOTALL)
        return ("refused" if clear and not words.startswith(MESSAGE) else "misled"), said
    report = json.loads(result.stdout)
    if words.startswith(MESSAGE):
        found = [w for w in report["warnings"] if words.removeprefix(MESSAGE) in w]
        return ("warned" if found else "silent"), " ".join(found)
    right = not words and report["order"] == expected(name) and report["rows"] >= COUNT - 1
    return ("read" if right else "silent"), ", ".join(report["order"])


def expected(name):
    """Names of the columns, causes first."""
    if name in ("no header", "an array of NumPy"):
        return ["x0", "x1", "x2", "x3"]
    special = {
        "a comma in a quoted name": ["alpha, mm", *NAMES[1:]],
        "a line end in a quoted name": ["alpha (mm)", *NAMES[1:]],
        "a header of years": ["2019", "2020", "2021", "2022"],
        "a header 1, 2, 3, 4": ["1", "2", "3", "4"],
        "names in Greek": ["α", "β", "γ", "δ"],
        "Latin-1": ["größe", *NAMES[1:]],
    }
    return special.get(name, NAMES)


@causal(
    "forms",
    question="Are tables read right, or refused clearly, in whatever form they come?",
    presets={"tiny": P(most=4), "small": P(most=200), "full": P(most=200)},
)
def forms(p, ctx):
    """One table of 300 rows in many forms, each read by the command."""
    rows, count = [], {}
    with TemporaryDirectory() as folder:
        for number, name in enumerate(list(FORMS)[: p.most]):
            update("forms", number, len(FORMS))
            kind, said = outcome(name, folder)
            count[kind] = count.get(kind, 0) + 1
            rows.append((name, kind))
    good = sum(count.get(kind, 0) for kind in ("read", "refused", "warned"))
    goals = (
        {}
        if len(rows) < len(FORMS)
        else {
            "forms that are handled rightly": Goal(float(good), len(FORMS) - 2, at_least=True),
            "wrong without a word": Goal(float(count.get("silent", 0)), 0),
        }
    )
    meaning = (
        "Read: the order is right. Warned: it is read, and the report names what is wrong with it. "
        "Refused: one line names the fault and what to do."
    )
    return Findings(count, [Table("Forms", ("form", "result"), tuple(rows), meaning)], goals)
