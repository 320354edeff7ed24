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
    text: str, names: Sequence[str], name: str = "the truth", acyclic: bool = True
) -> Bool[np.ndarray, "d d"]:
    """A graph ``[parent, child]`` from lines of a cause and an effect, after a header or none.

    Raises:
        RangeError: Not two names on a line, a name of no column, or a cycle where none may be.
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
    if not acyclic:
        return graph
    try:
        topological(graph)
    except RangeError:
        raise RangeError(
            f"parse_edges needs a graph without cycles, got one in {name}. An order cannot be "
            "compared with it; remove an edge of the cycle."
        ) from None
    return graph


def parse_tiers(text: str, names: Sequence[str], name: str = "the tiers") -> list[list[str]]:
    """Groups of columns, earlier ones first, from a line of names each.

    Raises:
        RangeError: A name of no column, or one in two tiers.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    readings = [
        [[cell for cell in tier if cell] for tier in _cut(lines, s)] for s in (",", *_SEPARATORS)
    ]
    # The separator that gives names of columns; lines may be of any length.
    known = (t for t in readings if all(cell in names for tier in t for cell in tier))
    tiers = next(known, readings[0])
    every = [cell for tier in tiers for cell in tier]
    for cell in every:
        if cell not in names or every.count(cell) > 1:
            what = "twice" if cell in names else "which is no column,"
            raise RangeError(
                f"parse_tiers needs each column in one tier at most, got {cell!r} {what} in {name}."
            )
    return tiers


def parse_scales(text: str, names: Sequence[str], name: str = "the scales") -> list[float]:
    """A number for each column, from lines of a name and a number, after a header or none.

    Raises:
        RangeError: Not a name and a positive number on a line, or a column without a line.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    separator = _separator(lines)
    cells = _cut(lines, separator) if separator else [[line] for line in lines]
    if cells and cells[0][0] not in names:
        cells = cells[1:]
    found: dict[str, float] = {}
    for row in cells:
        value = _number(row[1], False) if len(row) == 2 else None
        if row[0] not in names or value is None or not value > 0:
            raise RangeError(
                "parse_scales needs a column and a positive number on each line, got "
                f"{' '.join(row)[:60]!r} in {name}."
            )
        found[row[0]] = value
    lacking = [n for n in names if n not in found]
    if lacking:
        raise RangeError(f"parse_scales needs a line for each column, got none of {lacking[0]!r}.")
    return [found[n] for n in names]


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
