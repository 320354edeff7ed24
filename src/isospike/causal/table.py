"""Tables and lists of edges in files of any common format."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from isospike.causal.cells import MISSING, has_decimal_commas, number, numbers
from isospike.causal.files import open_table
from isospike.causal.simulate import topological_order
from isospike.data import sachs
from isospike.errors import InputError

# A comma may be a decimal mark and a space may be part of a name: the others are tried first.
_SEPARATORS = {";": "semicolon", "\t": "tab", "|": "bar", ",": "comma", " ": "space"}
MISSING_OPTIONS = ("refuse", "drop", "impute")


@dataclass(frozen=True)
class DataTable:
    """A table of numbers with named columns; estimators take it like a data frame.

    Attributes:
        columns: Names of the columns.
        rows: The values; missing cells are NaN.
        file_format: Description of the file: separator, header, decimal mark.
        truth: The true graph ``[parent, child]`` of a data set that has one.
        notes: What was left out or changed in reading.

    >>> table = parse_table("a,b\\n1,2\\n3,4")
    >>> table.columns, table.rows.shape
    (('a', 'b'), (2, 2))
    """

    columns: tuple[str, ...]
    rows: Float[np.ndarray, "n d"]
    file_format: str
    truth: Bool[np.ndarray, "d d"] | None = None
    notes: tuple[str, ...] = ()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.rows if dtype is None else self.rows.astype(dtype, copy=False)


def read_table(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    missing: str = "refuse",
) -> DataTable:
    """Read a table from a file, or the one that comes with the package.

    Text in UTF-8, UTF-16 or Latin-1, packed by gzip or zip; JSON records; with pandas also Excel
    and parquet.

    >>> table = read_table("sachs")
    >>> table.rows.shape, int(table.truth.sum())
    ((853, 11), 17)

    Args:
        source: Path of the file, see :func:`parse_table`; or ``sachs``, the 853 unperturbed
            cells of Sachs et al. (2005) with the consensus graph.
        columns: Columns to keep, in this order; all by default.
        drop: Columns to leave out.
        missing: Rows with missing cells: ``refuse`` keeps them as NaN, which a fit refuses;
            ``drop`` leaves the rows out; ``impute`` puts the column's median in.

    Returns:
        The table.

    Raises:
        InputError: The file cannot be read, is not such a table, or lacks a named column.
        MissingExtraError: The file needs pandas, or a package that pandas needs.
    """
    if missing not in MISSING_OPTIONS:
        raise InputError(
            f"read_table needs a known way with missing cells, got {missing!r}. Choose one of "
            f"{', '.join(MISSING_OPTIONS)}."
        )
    if source == "sachs":
        text, edges = sachs()
        table = parse_table(text, "sachs")
        truth = parse_edges("\n".join(f"{a},{b}" for a, b in edges), table.columns)
        table = replace(table, truth=truth)
        places = _chosen(table.columns, columns, drop, "sachs")
        return replace(
            table,
            columns=tuple(table.columns[i] for i in places),
            rows=table.rows[:, places],
            truth=truth[np.ix_(places, places)],
        )
    opened = open_table(source)
    if isinstance(opened.content, str):
        table = parse_table(opened.content, str(source), columns=columns, drop=drop)
    else:
        names, cells = opened.content
        table = _select(
            names, cells, list(range(2, len(cells) + 2)), False, str(source), columns, drop
        )
    form = ", ".join(part for part in (opened.file_format, table.file_format) if part)
    return _fill(replace(table, file_format=form), missing, str(source))


def parse_table(
    text: str,
    name: str = "the table",
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
) -> DataTable:
    """Read a table from text with one row on each line.

    The separator is detected: of comma, semicolon, tab, bar and space the one that divides the
    first lines into the same number of cells, more than one. The first line is a header if one of
    its cells is not a number, or if its cells count up by one, as years do, and other lines do
    not. Decimal commas, thousands marks, units and signs of a spreadsheet are accepted. Lines
    before and after the table, an unnamed column of row numbers and empty columns are left out and
    noted.

    >>> table = parse_table("a;b\\n1,5;2\\n3,5;4\\n")
    >>> table.columns, table.rows.tolist()
    (('a', 'b'), [[1.5, 2.0], [3.5, 4.0]])

    Args:
        text: Contents of the file.
        name: Name of the file, for error messages.
        columns: Columns to keep, in this order; all by default.
        drop: Columns to leave out.

    Returns:
        The table.

    Raises:
        InputError: There is only one column, there are no rows, rows differ in length, or columns
            hold something else than numbers.
    """
    lines, numbered, notes = _body(text)
    separator = _separator(lines[:50])
    if separator is None:
        raise InputError(
            f"parse_table needs at least two columns of one length, got {name} without a separator "
            "that gives them. Separate the cells by commas, semicolons, tabs, bars or spaces."
        )
    cells = _cut(lines, separator)
    numbered = numbered if len(cells) == len(numbered) else list(range(1, len(cells) + 1))
    cells, numbered = _without_titles(cells, numbered, notes)
    cells = _without_row_names(cells, notes)
    width = len(cells[0])
    for line, row in zip(numbered, cells, strict=True):
        if len(row) != width:
            raise InputError(
                f"parse_table needs rows of one length, got {len(row)} cells in line {line} of "
                f"{name} and {width} in the first. Correct that line."
            )
    body = [c for row in cells[1:] for c in row]
    decimal = has_decimal_commas(body, separator)
    header = _has_header(cells, decimal)
    names = (
        [c or f"unnamed {j}" for j, c in enumerate(cells[0])]
        if header
        else [f"x{i}" for i in range(width)]
    )
    if len(cells) == header:
        raise InputError(
            f"parse_table needs rows, got only a header in {name}. Add rows of numbers."
        )
    cells, numbered = cells[header:], numbered[header:]
    if header and len(cells) > 3 and cells[-1][0].strip().lower() in ("total", "sum", "totals"):
        notes.append("a last line of totals was left out")
        cells, numbered = cells[:-1], numbered[:-1]
    names, cells = _without_empty(names, cells, notes)
    table = _select(names, cells, numbered, decimal, name, columns, drop)
    form = f"{_SEPARATORS[separator]}-separated, " + ("a header" if header else "no header")
    form += ", decimal commas" if decimal else ""
    return replace(table, file_format=form, notes=(*notes, *table.notes))


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
        value = number(row[1], False) if len(row) == 2 else None
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
        return [[_bare(cell.strip()) for cell in row] for row in reader]
    except csv.Error as error:  # as of a cell of more than 131,072 characters
        raise InputError(
            f"parse_table needs cells of a table, got some that cannot be split ({error}). Check "
            "quotes and separators."
        ) from None


def _bare(cell: str) -> str:
    """A cell without single quotes around it; a line end in a name is a space."""
    if len(cell) > 1 and cell[0] == cell[-1] == "'":
        cell = cell[1:-1].strip()
    return " ".join(cell.split("\n")) if "\n" in cell else cell


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


def _body(text: str) -> tuple[list[str], list[int], list[str]]:
    """The lines of a table and their numbers, without comments and marks of a spreadsheet."""
    lines: list[str] = []
    numbered: list[int] = []
    notes: list[str] = []
    for line_number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if not lines and re.fullmatch(r"sep=.", line.strip()):
            notes.append("the line sep= was left out")
        elif re.fullmatch(r"[\s|:+-]*---[\s|:+-]*", line) and "|" in line:
            notes.append("a line of dashes was left out")
        elif line.lstrip().startswith("#") and not re.search(r"^\s*#\s*[,;|\t]", line):
            notes.append("lines that begin with # were left out")
        else:
            lines.append(line)
            numbered.append(line_number)
    return lines, numbered, list(dict.fromkeys(notes))


def _without_titles(
    cells: list[list[str]], numbered: list[int], notes: list[str]
) -> tuple[list[list[str]], list[int]]:
    """The table without lines of one cell before it."""
    widths = [len([c for c in row if c]) for row in cells[:50]]
    usual = max(set(widths), key=widths.count)
    first = 0
    while first < len(cells) - 2 and usual > 1 and widths[first] == 1 and first < 5:
        first += 1
    if first:
        notes.append(f"a title of {first} line{'s' * (first > 1)} was left out")
    return cells[first:], numbered[first:]


def _without_row_names(cells: list[list[str]], notes: list[str]) -> list[list[str]]:
    """The table without a first column that has no cell in the header, as R writes row names."""
    width = len(cells[0])
    if len(cells) < 2 or width < 2 or any(len(row) != width + 1 for row in cells[1:]):
        return cells
    if any(number(cell, False) is not None for cell in cells[0]):
        return cells
    notes.append("a column of row names was left out")
    return [cells[0], *(row[1:] for row in cells[1:])]


def _has_header(cells: list[list[str]], decimal: bool) -> bool:
    """Whether the first line names the columns."""
    first = [number(c, decimal) for c in cells[0]]
    if any(value is None or value != value for value in first):
        return True
    if len(first) < 2 or any(not float(v or 0).is_integer() for v in first):
        return False
    if not all(b - a == 1 for a, b in zip(first, first[1:], strict=False)):  # type: ignore[operator]
        return False
    others = [[number(c, decimal) for c in row] for row in cells[1:20]]
    return bool(others) and not any(
        all(b is not None and a is not None and b - a == 1 for a, b in zip(o, o[1:], strict=False))
        for o in others
    )


def _without_empty(
    names: list[str], cells: list[list[str]], notes: list[str]
) -> tuple[list[str], list[list[str]]]:
    """The table without unnamed columns that are empty or count the rows."""
    kept = []
    for j, name in enumerate(names):
        values = [row[j] for row in cells]
        unnamed = name.startswith("unnamed ")
        if unnamed and all(c.lower() in MISSING for c in values):
            notes.append("an empty column was left out")
        elif unnamed and j == 0 and _counts(values):
            notes.append("an unnamed column of row numbers was left out")
        else:
            kept.append(j)
    return [names[j] for j in kept], [[row[j] for j in kept] for row in cells]


def _counts(values: list[str]) -> bool:
    found = [number(c, False) for c in values]
    return len(found) > 1 and all(
        a is not None and b is not None and b - a == 1
        for a, b in zip(found, found[1:], strict=False)
    )


def _select(
    names: Sequence[str],
    cells: list[list[str]],
    numbered: list[int],
    decimal: bool,
    name: str,
    columns: Sequence[str] | None,
    drop: Sequence[str],
) -> DataTable:
    """The chosen columns as numbers."""
    if len(set(names)) < len(names):
        twice = next(n for n in names if list(names).count(n) > 1)
        raise InputError(
            f"parse_table needs different column names, got {twice!r} twice in {name}. Rename one."
        )
    places = _chosen(names, columns, drop, name)
    chosen = [names[j] for j in places]
    rows, notes = numbers([[r[j] for j in places] for r in cells], chosen, decimal, numbered, name)
    return DataTable(tuple(chosen), rows, "", notes=tuple(notes))


def _chosen(
    names: Sequence[str], columns: Sequence[str] | None, drop: Sequence[str], name: str
) -> list[int]:
    for wanted in (*(columns or ()), *drop):
        if wanted not in names:
            raise InputError(
                f"read_table needs names of columns, got {wanted!r}, which is not in {name}. The "
                f"columns are {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}."
            )
    kept = list(dict.fromkeys(columns)) if columns is not None else list(names)
    places = {n: j for j, n in enumerate(names)}
    return [places[n] for n in kept if n not in drop]


def _fill(table: DataTable, missing: str, name: str) -> DataTable:
    """The table without missing cells, if that was asked for."""
    gone = np.isnan(table.rows)
    if missing == "refuse" or not gone.any():
        return table
    if missing == "drop":
        kept = table.rows[~gone.any(1)]
        note = (
            f"{len(table.rows) - len(kept)} of {len(table.rows)} rows with missing cells left out"
        )
        if not len(kept):
            raise InputError(
                f"read_table needs rows without missing cells, got none in {name}. Drop the "
                "columns that are mostly empty, or use missing='impute'."
            )
        return replace(table, rows=kept, notes=(*table.notes, note))
    empty = gone.all(0)
    if empty.any():
        column = table.columns[int(np.flatnonzero(empty)[0])]
        raise InputError(
            f"read_table needs values to impute from, got none in column {column} of {name}. Drop "
            "that column."
        )
    rows = np.where(gone, np.nanmedian(table.rows, axis=0), table.rows)
    note = f"{int(gone.sum())} missing cells are the medians of their columns"
    return replace(table, rows=rows, notes=(*table.notes, note))
