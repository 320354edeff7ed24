"""Cells of a table in text: numbers as people write them, and what is none."""

import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

import numpy as np
from jaxtyping import Float

from isospike.errors import InputError

MISSING = {"", "na", "nan", "n/a", "#n/a", "null", "none", "?", "-", "--", ".", "<na>"}
_YES = {"true", "yes", "t", "y"}
_NO = {"false", "no", "f", "n"}
_UNITS = "$€£¥%"
_AMERICAN = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")  # 1,234.5
_EUROPEAN = re.compile(r"[-+]?(\d{1,3}([. ']\d{3})+|\d*),\d+([eE][-+]?\d+)?")  # 1.234,5
_SPACED = re.compile(r"[-+]?\d{1,3}([ ']\d{3})+(\.\d*)?")  # 1 234.5
_FORTRAN = re.compile(r"([-+]?(?:\d+(?:\.\d*)?|\.\d+))[dD]([-+]?\d+)")  # 1.5D+03
_DATES = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%Y/%m/%d", "%d-%m-%Y", "%d %b %Y", "%b %d, %Y")


def has_decimal_commas(cells: Sequence[str], separator: str) -> bool:
    """Whether commas in numbers are decimal marks.

    Groups of three digits are thousands where commas separate cells, or where some number has a
    point as well.

    Args:
        cells: Cells without the header.
        separator: The separator of cells.

    Returns:
        True for decimal commas.
    """
    numbers = [c for c in map(clean, cells) if "," in c and re.fullmatch(r"[-+\d.,' eE]+", c)]
    grouped = all(_AMERICAN.fullmatch(c) for c in numbers)
    if grouped and (separator == "," or any("." in c for c in numbers)):
        return False
    return any(_EUROPEAN.fullmatch(c) for c in numbers)


def clean(cell: str) -> str:
    """A cell without units and odd signs: ``−5 %`` is ``-5``."""
    cell = cell.replace("\u2212", "-").replace("\u00a0", " ").replace("\u202f", " ").strip()
    sign = cell[:1] if cell[:1] in "+-" else ""
    return sign + cell[len(sign) :].strip(_UNITS + " ") if cell else cell


def number(cell: str, decimal_comma: bool) -> float | None:
    """The number in a cell; NaN if it is missing, None if it is something else.

    Args:
        cell: The cell.
        decimal_comma: Whether commas are decimal marks.

    Returns:
        The number.
    """
    if cell.strip().lower() in MISSING:
        return float("nan")
    cell = clean(cell)
    if decimal_comma:
        if _EUROPEAN.fullmatch(cell) or re.fullmatch(r"[-+]?\d{1,3}(\.\d{3})+", cell):
            cell = re.sub(r"[. ']", "", cell)
        cell = cell.replace(",", ".")
    elif _AMERICAN.fullmatch(cell):
        cell = cell.replace(",", "")
    if _SPACED.fullmatch(cell):
        cell = re.sub(r"[ ']", "", cell)
    if fortran := _FORTRAN.fullmatch(cell):
        cell = "e".join(fortran.groups())
    try:
        return float(cell)
    except ValueError:
        return None


def numbers(
    rows: Sequence[Sequence[str]],
    names: Sequence[str],
    decimal_comma: bool,
    lines: Sequence[int],
    name: str,
) -> tuple[Float[np.ndarray, "n d"], list[str]]:
    """The values of a table of cells, and what was done to get them.

    Columns of true and false, or yes and no, become 1 and 0.

    Args:
        rows: The cells.
        names: Names of the columns.
        decimal_comma: Whether commas are decimal marks.
        lines: Number of each row's line in the file.
        name: Name of the file, for error messages.

    Returns:
        The values, missing ones as NaN, and notes.

    Raises:
        InputError: Some columns are no numbers; all of them are named.
    """
    values = np.empty((len(rows), len(names)))
    notes, wrong = [], []
    for j, column in enumerate(names):
        cells = [row[j] for row in rows]
        found: list[float | None] = [number(c, decimal_comma) for c in cells]
        words = {c.strip().lower() for c in cells} - MISSING
        if words and words <= _YES | _NO:
            found = [_truth(c) for c in cells]
            notes.append(f"{column}: {' and '.join(sorted(words))} are 1 and 0")
        first = next((i for i, value in enumerate(found) if value is None), None)
        if first is None:
            values[:, j] = np.array(found, np.float64)
        else:
            wrong.append((column, cells[first], lines[first], _kind(cells)))
    if not wrong:
        return values, notes
    column, cell, line, kind = wrong[0]
    more = "".join(f", and {what} in {other}" for other, _, _, what in wrong[1:9])
    more += f" and {len(wrong) - 9} more" if len(wrong) > 9 else ""
    drop = ",".join(w[0] for w in wrong[:9])
    raise InputError(
        f"parse_table needs numbers, got {cell!r} in line {line}, column {column} of {name} "
        f"({kind}){more}. Drop them (--drop {drop}) or encode them as numbers."
    )


def _truth(cell: str) -> float:
    cell = cell.strip().lower()
    return float("nan") if cell in MISSING else float(cell in _YES)


def _kind(cells: Sequence[str]) -> str:
    """What a column that is no numbers seems to be."""
    given = [c.strip() for c in cells if c.strip().lower() not in MISSING][:50]
    if given and all(map(_is_date, given)):
        return "dates"
    return "categories" if len(set(cells)) <= max(2, len(cells) // 5) else "text"


def _is_date(cell: str) -> bool:
    try:
        datetime.fromisoformat(cell)
    except ValueError:
        return any(_parses(cell, form) for form in _DATES)
    return True


def _parses(cell: str, form: str) -> date | None:
    try:
        return datetime.strptime(cell, form)
    except ValueError:
        return None


def plain(value: Any) -> str:
    """A cell of a data frame as text."""
    if value is None or value != value:
        return ""
    return repr(float(value)) if isinstance(value, float | np.floating) else str(value)
