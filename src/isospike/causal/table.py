"""Tables and edge lists from text files whose form is found out, and told."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from isospike.causal.simulate import topological
from isospike.errors import RangeError

# A comma may be a decimal mark and a space be inside a name: the others go first.
_SEPARATORS = {";": "semicolon", "\t": "tab", "|": "bar", ",": "comma", " ": "space"}
_MISSING = {"", "na", "nan", "n/a", "null", "none", "?"}


@dataclass(frozen=True)
class Table:
    """A table and how it was read.

    Attributes:
        names: Of the columns.
        rows: Missing cells are NaN.
        form: What was found out, in words: separator, header, decimal mark.
    """

    names: tuple[str, ...]
    rows: Float[np.ndarray, "n d"]
    form: str


def parse_table(text: str, name: str = "the table") -> Table:
    """A table from text with one row a line.

    The separator is the one of comma, semicolon, tab, bar and space that cuts the first lines into
    the same number of cells, more than one. The first line is a header if one of its cells is not a
    number. A decimal comma is understood where the separator is another.

    Raises:
        RangeError: One column, rows of unequal length, cells of text, or no rows.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    separator = _separator(lines[:50])
    if separator is None:
        raise RangeError(
            f"parse_table needs at least two columns of one length, got {name} without a separator "
            "that gives them (comma, semicolon, tab, bar, space)."
        )
    cells = _cut(lines, separator)
    width = len(cells[0])
    for number, row in enumerate(cells, 1):
        if len(row) != width:
            raise RangeError(
                f"parse_table needs rows of one length, got {len(row)} cells in line {number} of "
                f"{name} and {width} in the first."
            )
    decimal = separator != "," and any(re.fullmatch(r"-?\d*,\d+", c) for r in cells[1:] for c in r)
    header = any(_number(c, decimal) is None for c in cells[0])
    names = cells[0] if header else [f"x{i}" for i in range(width)]
    if len(set(names)) < width:
        twice = next(n for n in names if names.count(n) > 1)
        raise RangeError(
            f"parse_table needs different column names, got {twice!r} twice in {name}."
        )
    body = cells[header:]
    if not body:
        raise RangeError(f"parse_table needs rows, got only a header in {name}.")
    rows = np.empty((len(body), width))
    for i, row in enumerate(body):
        for j, cell in enumerate(row):
            value = _number(cell, decimal)
            if value is None:
                raise RangeError(
                    f"parse_table needs numbers, got {cell!r} in line {i + 1 + header}, column "
                    f"{names[j]} of {name}. Drop or encode columns of text."
                )
            rows[i, j] = value
    form = f"{_SEPARATORS[separator]}-separated, " + ("a header" if header else "no header")
    return Table(tuple(names), rows, form + (", decimal commas" if decimal else ""))


def parse_edges(
    text: str, names: Sequence[str], name: str = "the truth"
) -> Bool[np.ndarray, "d d"]:
    """A graph ``[parent, child]`` from lines of a cause and an effect, after a header or none.

    Raises:
        RangeError: Not two names on a line, a name of no column, or a cycle.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    separator = _separator(lines)
    cells = _cut(lines, separator) if separator else [[line] for line in lines]
    place = {n: i for i, n in enumerate(names)}
    if len(cells) > 1 and not any(c in place for c in cells[0]):
        cells = cells[1:]
    graph = np.zeros((len(names),) * 2, bool)
    for row in cells:
        if len(row) != 2:
            raise RangeError(
                f"parse_edges needs a cause and an effect on each line, got {len(row)} cells in "
                f"{name}: {' '.join(row)[:60]!r}."
            )
        for cell in row:
            if cell not in place:
                raise RangeError(
                    f"parse_edges needs names of columns, got {cell!r} in {name}. The columns are "
                    f"{', '.join(names[:12])}{' ...' if len(names) > 12 else ''}."
                )
        graph[place[row[0]], place[row[1]]] = True
    try:
        topological(graph)
    except RangeError:
        raise RangeError(
            f"parse_edges needs a graph without cycles, got one in {name}. An order cannot be "
            "compared with it; remove an edge of the cycle."
        ) from None
    return graph


def _cut(lines: list[str], separator: str) -> list[list[str]]:
    if separator == " ":
        return [line.split() for line in lines]
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=separator, skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in reader]


def _separator(lines: list[str]) -> str | None:
    found: dict[str, float] = {}
    for separator in _SEPARATORS:
        widths = [len(row) for row in _cut(lines, separator)]
        most = max(set(widths), key=widths.count, default=1)
        if most > 1:
            found[separator] = widths.count(most) / len(widths)
    return max(found, key=lambda s: found[s], default=None)


def _number(cell: str, decimal_comma: bool) -> float | None:
    if cell.lower() in _MISSING:
        return float("nan")
    try:
        return float(cell.replace(",", ".") if decimal_comma else cell)
    except ValueError:
        return None
