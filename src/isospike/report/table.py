"""A table, and its forms: text, Rich, Markdown, HTML, CSV and a data frame."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from markupsafe import Markup

from isospike.errors import InputError, MissingExtraError, ShapeError
from isospike.report.numbers import ABSENT, energy, memory, number, percent, si

if TYPE_CHECKING:
    import rich.table

Cell = str | int | float | None
Columns = Mapping[str, str | tuple[str, str]]
"""Heading, or heading and format, of each field by its name."""

MIN_WIDTH = 8  # of a column of words on a narrow terminal

FORMATS: dict[str, Callable[[Any], str]] = {
    "si": si, "bytes": memory, "energy": energy, "percent": percent, "code": str,
}  # fmt: skip
"""Formats of a column by name; any other is a format specification of Python, such as ``.2f``."""


def _is_formula(cell: Cell) -> bool:
    """Whether a spreadsheet would compute a text; a negative number in a text is none."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under headings.

    Attributes:
        title: What the table shows.
        head: Heading of each column.
        rows: Cells row by row; None is shown as a dash.
        meaning: A sentence or two on how to read it.
        formats: How the numbers of each column are shown: a name in :data:`FORMATS`, a format
            specification, or empty for three digits (whole numbers in full). ``code`` shows text
            in a typewriter face.
        names: Names of the columns in CSV files and data frames; the headings by default.
        strong: ``(row, column)`` of the cells to be shown in bold.
        groups: Rows above which a line is drawn.
        small: Whether the page shows it in small type, for wide tables.

    >>> print(Table("Peers", ("name", "error"), (("rate", 0.1234), ("phase", None))).text())
    name   error
    rate   0.123
    phase      –
    """

    kind: ClassVar[str] = "table"

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    meaning: str = ""
    formats: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    strong: tuple[tuple[int, int], ...] = ()
    groups: tuple[int, ...] = ()
    small: bool = False

    def __post_init__(self) -> None:
        given = (("formats", self.formats), ("names", self.names), *enumerate(self.rows))
        for what, cells in given:
            if len(cells) != len(self.head) and (cells or isinstance(what, int)):
                where = what if isinstance(what, str) else f"row {what}"
                raise ShapeError(
                    f"Table needs {len(self.head)} cells, as many as headings, got {len(cells)} "
                    f"in {where} of {self.title!r}. Fill the missing cells with None."
                )

    @classmethod
    def of(
        cls,
        title: str,
        records: Iterable[Any],
        columns: Columns | None = None,
        **more: Any,
    ) -> "Table":
        """A table of dataclasses, named tuples or dictionaries.

        Args:
            title: What the table shows.
            records: One for each row.
            columns: Heading of each field, or heading and format, by the field's name;
                ``rank.low`` is a field of a field. All fields of the first record by default.
            more: Other attributes of the table.

        Returns:
            The table; its ``names`` are the names of the fields.
        """
        rows = list(records)
        if columns is None:
            columns = {name: name for name in dict.fromkeys(n for r in rows for n in _names(r))}
        pairs = [(c, "") if isinstance(c, str) else c for c in columns.values()]
        cells = tuple(tuple(_get(row, name) for name in columns) for row in rows)
        more.setdefault("formats", tuple(form for _, form in pairs))
        names = tuple(name.replace(".", "_") for name in columns)
        return cls(title, tuple(head for head, _ in pairs), cells, names=names, **more)

    def cell(self, row: int, column: int) -> str:
        """The text of a cell, as it is shown.

        Args:
            row: Number of the row.
            column: Number of the column.

        Returns:
            The text.
        """
        value = self.rows[row][column]
        form = self.formats[column] if self.formats else ""
        if value is None:
            return ABSENT
        if isinstance(value, str):
            return value
        if form in FORMATS:
            return FORMATS[form](value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float) and not math.isfinite(value):
            return number(value)
        if form:
            return format(value, form)
        return f"{value:,}" if isinstance(value, int) else number(value)

    def text(self) -> str:
        """Columns of plain text under their headings."""
        lines = self._lines()
        width = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        sides = self._left()
        return "\n".join(
            "  ".join(
                cell.ljust(w) if left else cell.rjust(w)
                for cell, w, left in zip(line, width, sides, strict=True)
            ).rstrip()
            for line in lines
        )

    def rich(self) -> "rich.table.Table":
        """The table for a Rich console."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            box=box.SIMPLE_HEAD, title=Text(self.title, "bold"), title_justify="left",
            padding=(0, 1, 0, 0), show_edge=False, pad_edge=False,
        )  # fmt: skip
        _, *body = lines = self._lines()
        for j, (heading, left) in enumerate(zip(self.head, self._left(), strict=True)):
            wide = max((len(line[j]) for line in body), default=0)
            # A long heading takes two lines.
            text = Text(heading.replace(" ", "\n") if len(heading) > wide else heading)
            least = min(MIN_WIDTH, max(len(line[j]) for line in lines)) if left else None
            side: Literal["left", "right"] = "left" if left else "right"
            table.add_column(text, justify=side, no_wrap=not left, overflow="fold", min_width=least)
        for i, line in enumerate(body):
            # Text: a name like [bold] is not markup.
            table.add_row(
                *(Text(c, "bold" if (i, j) in self.strong else "") for j, c in enumerate(line))
            )
        return table

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        lines = [[cell.replace("|", "\\|") for cell in line] for line in self._lines()]
        for i, j in self.strong:
            lines[i + 1][j] = f"**{lines[i + 1][j]}**"
        rule = "".join("|---" if left else "|--:" for left in self._left()) + "|"
        rows = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join([rows[0], rule, *rows[1:]])

    def html(self) -> Markup:
        """The table as an HTML element; every text is escaped."""
        sides = ["left" if left else "" for left in self._left()]
        head, *body = self._lines()
        return Markup(
            '<div class="scroll"><table{}><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
        ).format(
            Markup(' class="small"') if self.small else "",
            _join(_element("th", cell, side) for cell, side in zip(head, sides, strict=True)),
            _join(
                _element("tr", self._html_row(i, line, sides), "group" if i in self.groups else "")
                for i, line in enumerate(body)
            ),
        )

    def csv(self) -> str:
        """Comma-separated values: names of the columns, numbers in full, nothing where unknown.

        A text that a spreadsheet would run as a formula gets an apostrophe in front.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in (self.names or self.head, *self.rows):
            writer.writerow([f"'{c}" if _is_formula(c) else c for c in row])
        return text.getvalue()

    def to_frame(self) -> Any:
        """The table as a pandas ``DataFrame``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtraError(
                "to_frame needs the package pandas, got none. Install isospike[frame]."
            ) from None
        return pandas.DataFrame(self.rows, columns=list(self.names or self.head))

    def _lines(self) -> list[list[str]]:
        """Headings, then rows, as they are shown."""
        columns = range(len(self.head))
        body = [[self.cell(i, j) for j in columns] for i in range(len(self.rows))]
        return [list(self.head), *body]

    def _left(self) -> list[bool]:
        """Whether each column holds words, which begin at the left; the first one always does."""
        return [j == 0 or self._is_words(j) for j in range(len(self.head))]

    def _is_words(self, column: int) -> bool:
        cells = [row[column] for row in self.rows if row[column] is not None]
        words = [c for c in cells if isinstance(c, str) and c[:1].isalpha()]
        return bool(cells) and 2 * len(words) > len(cells)

    def _html_row(self, i: int, line: Sequence[str], sides: Sequence[str]) -> Markup:
        code = [form == "code" for form in self.formats or [""] * len(line)]
        cells = []
        for j, (cell, side) in enumerate(zip(line, sides, strict=True)):
            inner = _element("code", cell) if code[j] and self.rows[i][j] is not None else cell
            cells.append(_element("td", inner, f"{side} best".strip() if (i, j) in self.strong
                                  else side))  # fmt: skip
        return _join(cells)


def _element(tag: str, content: str, kind: str = "") -> Markup:
    start = Markup('{} class="{}"').format(tag, kind) if kind else tag
    return Markup("<{}>{}</{}>").format(start, content, tag)


def _join(parts: Iterable[str]) -> Markup:
    return Markup("").join(parts)


def _names(record: Any) -> Sequence[str]:
    if is_dataclass(record):
        return [field.name for field in fields(record)]
    if isinstance(record, Mapping):
        return list(record)
    return tuple(record._fields)


def _get(record: Any, name: str) -> Cell:
    """A field of a record as a cell; tuples, lists and dictionaries are no cells."""
    value = record
    for part in name.split("."):
        if value is not None:
            value = value.get(part) if isinstance(value, Mapping) else getattr(value, part)
    value = value.item() if hasattr(value, "item") else value
    if value is not None and not isinstance(value, str | int | float):
        raise InputError(
            f"Table needs text or numbers, got {type(value).__name__} in {name!r}. Give columns "
            "without it, or one of its fields."
        )
    return value
