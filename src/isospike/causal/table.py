"""Tables and lists of edges in text files of any common format."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from isospike.causal.simulate import topological_order
from isospike.data import read_text, sachs
from isospike.errors import InputError

# A comma may be a decimal mark and a space may be part of a name: the others are tried first.
_SEPARATORS = {";": "semicolon", "\t": "tab", "|": "bar", ",": "comma", " ": "space"}
_MISSING = {"", "na", "nan", "n/a", "null", "none", "?"}


@dataclass(frozen=True)
class DataTable:
    """A table of numbers with named columns; estimators take it like a data frame.

    Attributes:
        columns: Names of the columns.
        rows: The values; missing cells are NaN.
        file_format: Description of the file: separator, header, decimal mark.
        truth: The true graph ``[parent, child]`` of a data set that has one.
    """

    columns: tuple[str, ...]
    rows: Float[np.ndarray, "n d"]
    file_format: str
    truth: Bool[np.ndarray, "d d"] | None = None

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.rows if dtype is None else self.rows.astype(dtype, copy=False)


def read_table(source: str | Path) -> DataTable:
    """Read a table from a file, or the one that comes with the package.

    >>> table = read_table("sachs")
    >>> table.rows.shape, int(table.truth.sum())
    ((853, 11), 17)

    Args:
        source: Path of a text file, see :func:`parse_table`; or ``sachs``, the 853 unperturbed
            cells of Sachs et al. (2005) with the consensus graph.

    Returns:
        The table.

    Raises:
        InputError: The file cannot be read, or is not such a table.
    """
    if source == "sachs":
        text, edges = sachs()
        table = parse_table(text, "sachs")
        truth = parse_edges("\n".join(f"{a},{b}" for a, b in edges), table.columns)
        return DataTable(table.columns, table.rows, table.file_format, truth)
    return parse_table(read_text(source), str(source))


def parse_table(text: str, name: str = "the table") -> DataTable:
    """Read a table from text with one row on each line.

    The separator is detected: of comma, semicolon, tab, bar and space the one that divides the
    first lines into the same number of cells, more than one. The first line is a header if one of
    its cells is not a number. Decimal commas are accepted where the separator is another.

    >>> table = parse_table("a;b\\n1,5;2\\n3,5;4\\n")
    >>> table.columns, table.rows.tolist()
    (('a', 'b'), [[1.5, 2.0], [3.5, 4.0]])

    Args:
        text: Contents of the file.
        name: Name of the file, for error messages.

    Returns:
        The table.

    Raises:
        InputError: There is only one column, there are no rows, rows differ in length, or a cell is
            not a number.
    """
    lines = _lines(text)
    separator = _separator(lines[:50])
    if separator is None:
        raise InputError(
            f"parse_table needs at least two columns of one length, got {name} without a separator "
            "that gives them. Separate the cells by commas, semicolons, tabs, bars or spaces."
        )
    cells = _cut(lines, separator)
    width = len(cells[0])
    for number, row in enumerate(cells, 1):
        if len(row) != width:
            raise InputError(
                f"parse_table needs rows of one length, got {len(row)} cells in line {number} of "
                f"{name} and {width} in the first. Correct that line."
            )
    decimal = separator != "," and any(re.fullmatch(r"-?\d*,\d+", c) for r in cells[1:] for c in r)
    header = any(_number(c, decimal) is None for c in cells[0])
    names = cells[0] if header else [f"x{i}" for i in range(width)]
    if len(set(names)) < width:
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(
            f"parse_table needs different column names, got {twice!r} twice in {name}. Rename one."
        )
    if len(cells) == header:
        raise InputError(
            f"parse_table needs rows, got only a header in {name}. Add rows of numbers."
        )
    rows = _numbers(cells[header:], names, decimal, 1 + header, name)
    file_format = f"{_SEPARATORS[separator]}-separated, " + ("a header" if header else "no header")
    return DataTable(tuple(names), rows, file_format + (", decimal commas" if decimal else ""))


def parse_edges(
    text: str, columns: Sequence[str], name: str = "the truth", acyclic: bool = True
) -> Bool[np.ndarray, "d d"]:
    """Read a graph from lines of a cause and an effect, with or without a header.

    >>> parse_edges("a,b", ["a", "b"])
    array([[False,  True],
           [False, False]])

    Args:
        text: Contents of the file.
        columns: Names of the variables.
        name: Name of the file, for error messages.
        acyclic: Whether to refuse a graph with a cycle.

    Returns:
        The graph, ``[parent, child]``.

    Raises:
        InputError: A line does not have two names of columns, or the graph has a cycle.
    """
    cells = _cells(text)
    place = {n: i for i, n in enumerate(columns)}
    if len(cells) > 1 and not any(c in place for c in cells[0]):
        cells = cells[1:]
    graph = np.zeros((len(columns),) * 2, bool)
    for row in cells:
        if len(row) != 2:
            raise InputError(
                f"parse_edges needs a cause and an effect on each line, got {len(row)} cells in "
                f"{name}: {' '.join(row)[:60]!r}. Write one edge on each line."
            )
        for cell in row:
            if cell not in place:
                raise InputError(
                    f"parse_edges needs names of columns, got {cell!r} in {name}. The columns are "
                    f"{', '.join(columns[:12])}{' ...' if len(columns) > 12 else ''}."
                )
        graph[place[row[0]], place[row[1]]] = True
    if acyclic:
        try:
            topological_order(graph)
        except InputError:
            raise InputError(
                f"parse_edges needs a graph without cycles, got one in {name}. Remove an edge of "
                "the cycle."
            ) from None
    return graph


def parse_scales(text: str, columns: Sequence[str], name: str = "the scales") -> list[float]:
    """Read a number for each column from lines of a name and a number, with or without a header.

    >>> parse_scales("b,2\\na,1", ["a", "b"])
    [1.0, 2.0]

    Args:
        text: Contents of the file.
        columns: Names of the columns.
        name: Name of the file, for error messages.

    Returns:
        The numbers, in the order of the columns.

    Raises:
        InputError: A line does not have a column and a positive number, or a column has no line.
    """
    cells = _cells(text)
    if cells and cells[0][0] not in columns:
        cells = cells[1:]
    scales: dict[str, float] = {}
    for row in cells:
        value = _number(row[1], False) if len(row) == 2 else None
        if row[0] not in columns or value is None or not value > 0:
            raise InputError(
                "parse_scales needs a column and a positive number on each line, got "
                f"{' '.join(row)[:60]!r} in {name}. Correct that line."
            )
        scales[row[0]] = value
    lacking = [n for n in columns if n not in scales]
    if lacking:
        raise InputError(
            f"parse_scales needs a line for each column, got none for {lacking[0]!r} in {name}. "
            "Add it."
        )
    return [scales[n] for n in columns]


def parse_tiers(text: str, columns: Sequence[str], name: str = "the tiers") -> list[list[str]]:
    """Read groups of columns, earlier ones first, from a line of names for each.

    >>> parse_tiers("a,b\\nc", ["a", "b", "c"])
    [['a', 'b'], ['c']]

    Args:
        text: Contents of the file.
        columns: Names of the columns.
        name: Name of the file, for error messages.

    Returns:
        The names in each group.

    Raises:
        InputError: A name is not that of a column, or is in two groups.
    """
    lines = _lines(text)
    readings = [
        [[cell for cell in tier if cell] for tier in _cut(lines, s)] for s in (",", *_SEPARATORS)
    ]
    # The separator that gives names of columns; lines may be of any length.
    known = (t for t in readings if all(cell in columns for tier in t for cell in tier))
    tiers = next(known, readings[0])
    every = [cell for tier in tiers for cell in tier]
    for cell in every:
        if cell not in columns or every.count(cell) > 1:
            what = " twice" if cell in columns else ", which is not a column,"
            raise InputError(
                f"parse_tiers needs each column in one tier at most, got {cell!r}{what} in "
                f"{name}. Correct that line."
            )
    return tiers


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _cells(text: str) -> list[list[str]]:
    lines = _lines(text)
    separator = _separator(lines)
    return _cut(lines, separator) if separator else [[line] for line in lines]


def _cut(lines: list[str], separator: str) -> list[list[str]]:
    if separator == " ":
        return [line.split() for line in lines]
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=separator, skipinitialspace=True)
    try:
        return [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:  # as of a cell of more than 131,072 characters
        raise InputError(
            f"parse_table needs cells of a table, got an error of csv: {error}. Check quotes and "
            "separators."
        ) from None


def _separator(lines: list[str]) -> str | None:
    """The separator that gives the same number of cells, more than one, on most lines."""
    shares: dict[str, float] = {}
    for separator in _SEPARATORS:
        try:
            widths = [len(row) for row in _cut(lines, separator)]
        except InputError:  # Not its own: whole lines would be cells.
            continue
        most = max(set(widths), key=widths.count, default=1)
        if most > 1:
            shares[separator] = widths.count(most) / len(widths)
    return max(shares, key=lambda s: shares[s], default=None)


def _numbers(
    cells: list[list[str]], names: list[str], decimal_comma: bool, first_line: int, name: str
) -> Float[np.ndarray, "n d"]:
    rows = np.empty((len(cells), len(names)))
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            value = _number(cell, decimal_comma)
            if value is None:
                raise InputError(
                    f"parse_table needs numbers, got {cell!r} in line {i + first_line}, column "
                    f"{names[j]} of {name}. Drop or encode columns of text."
                )
            rows[i, j] = value
    return rows


def _number(cell: str, decimal_comma: bool) -> float | None:
    if cell.lower() in _MISSING:
        return float("nan")
    try:
        return float(cell.replace(",", ".") if decimal_comma else cell)
    except ValueError:
        return None
