"""What was measured, frozen, with where it came from; shown in every form from one description."""

import json
import os
import platform
import shlex
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from markupsafe import Markup

from isospike.errors import InputError
from isospike.report import codec
from isospike.report.files import Content, write_folder
from isospike.report.page import Section, render
from isospike.report.table import Table

if TYPE_CHECKING:
    import rich.console

R = TypeVar("R", bound="Report")
PACKAGES = ("isospike", "torch", "transformers")


@dataclass(frozen=True)
class Provenance:
    """Where numbers come from.

    Attributes:
        versions: Of Python and of the packages that computed, by name.
        parameters: Arguments that decided the result, by name.
        seed: Of the random numbers; None where there were none.
        command: Command line that makes the result again; empty if it was made in Python.
        machine: System, processor and number of its cores.

    >>> Provenance.of({"steps": 8}, seed=0).parameters
    {'steps': 8}
    """

    versions: dict[str, str]
    parameters: dict[str, Any]
    seed: int | None
    command: str
    machine: str

    @classmethod
    def of(
        cls,
        parameters: Mapping[str, Any] | None = None,
        seed: int | None = None,
        packages: Sequence[str] = PACKAGES,
    ) -> "Provenance":
        """The provenance of what is computed now, here.

        Args:
            parameters: Arguments that decide the result; what JSON cannot hold is kept as text.
            seed: Of the random numbers.
            packages: Whose versions are recorded, where they are installed.

        Returns:
            The provenance.

        >>> Provenance.of({"steps": 8}, seed=0).parameters
        {'steps': 8}
        """
        versions = {"python": platform.python_version()}
        for package in packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                continue
        program = Path(sys.argv[0]) if sys.argv else Path()
        ours = program.stem == "isospike" or program.parts[-2:] == ("isospike", "__main__.py")
        return cls(
            versions=versions,
            parameters={name: _plain(value) for name, value in (parameters or {}).items()},
            seed=seed,
            command=shlex.join(["isospike", *sys.argv[1:]]) if ours else "",
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        )

    def lines(self) -> list[str]:
        """What a page says at its end."""
        named = [f"{name} {number}" for name, number in self.versions.items()]
        lines = [f"Made by: {self.command}"] if self.command else []
        if self.parameters:
            lines.append(", ".join(f"{k}={v!r}" for k, v in self.parameters.items()))
        end = [self.machine] if self.seed is None else [f"seed {self.seed}", self.machine]
        return [*lines, "; ".join([", ".join(named), *end])]


@dataclass(frozen=True, kw_only=True)
class Report(ABC):
    """What was measured, whatever it is.

    A subclass is a frozen dataclass with its own fields and says what they mean: the verdict, the
    headline and the tables. All forms follow from that.

    Attributes:
        title: Of the report and its page.
        provenance: Where the numbers come from.
        warnings: What to beware of, a sentence each.

    >>> import isospike, torch
    >>> report = isospike.check(torch.nn.Linear(2, 2), {"input": torch.ones(1, 2)})
    >>> isinstance(report, Report), type(report).from_json(report.to_json()) == report
    (True, True)
    """

    title: str
    provenance: Provenance
    warnings: tuple[str, ...] = ()

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.__repr__ = Report.__repr__  # type: ignore[method-assign]  # not that of a dataclass

    @abstractmethod
    def verdict(self) -> str:
        """What was found, in one or two sentences that a newcomer understands."""

    @abstractmethod
    def headline(self) -> Mapping[str, str]:
        """The main numbers as text, by name; further lines of a text are small print."""

    @abstractmethod
    def tables(self) -> Mapping[str, Table]:
        """All that was measured, by the names of the CSV files."""

    def sections(self) -> Sequence[Section]:
        """The parts of the page; one for each table by default."""
        return [Section(t.title, t.meaning, (t,)) for t in self.tables().values()]

    def brief(self) -> Sequence[Table]:
        """The tables that :meth:`summary` shows; the first one by default."""
        return list(self.tables().values())[:1]

    def summary(self) -> "rich.console.Group":
        """Verdict, warnings, headline and the main tables, for a Rich console."""
        from rich.console import Group
        from rich.table import Table as Columns
        from rich.text import Text

        # Text: a name like [bold] is not markup.
        head = Columns.grid(padding=(0, 2))
        for name, value in _in_lines(self.headline()):
            head.add_row(Text(name, "dim"), Text(value))
        return Group(
            Text(self.title, "bold"),
            Text(self.verdict()),
            *(Text(f"! {warning}", "yellow") for warning in self.warnings),
            Text(),
            head,
            *(part for table in self.brief() for part in (Text(), table.rich())),
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values of JSON; what is not finite becomes None."""
        plain: dict[str, Any] = codec.encode(self)
        return plain

    def to_json(self) -> str:
        """The report as JSON text, which :meth:`from_json` reads."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls: type[R], text: str) -> R:
        """The report that :meth:`to_json` wrote.

        Args:
            text: JSON text.

        Returns:
            The report, equal to the first but for numbers that were not finite, now NaN or None.

        Raises:
            InputError: It is not JSON, or not a report of this class; the message names the field.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"from_json needs JSON, got {text[:40]!r} ({error}). Give the text of a "
                "report.json."
            ) from error
        report: R = codec.decode(cls, value)
        return report

    def to_frame(self, table: str | None = None) -> Any:
        """A table as a pandas ``DataFrame``.

        Args:
            table: A name in :meth:`tables`; the first one by default.

        Returns:
            The data frame.

        Raises:
            InputError: No such table.
            MissingExtraError: pandas is not installed.
        """
        tables = self.tables()
        name = next(iter(tables)) if table is None else table
        if name not in tables:
            raise InputError(
                f"to_frame needs a table of {', '.join(tables)}, got {name!r}. Choose one of them."
            )
        return tables[name].to_frame()

    def html(self) -> str:
        """The report as one page that makes no request; every text in it is escaped."""
        return render(
            self.title,
            verdict=self.verdict(),
            warnings=self.warnings,
            cards=self.headline(),
            sections=self.sections(),
            footer=self.provenance.lines(),
        )

    def files(self) -> dict[str, Content]:
        """What :meth:`save` writes: ``report.html``, ``report.json``, and each table as CSV."""
        tables = {f"{name}.csv": table.csv() for name, table in self.tables().items()}
        return {"report.html": self.html(), "report.json": self.to_json(), **tables}

    def save(self, folder: str | Path) -> Path:
        """Write the page, the JSON and the tables to a folder, all or nothing.

        Args:
            folder: A new or empty folder, or one that was saved before, which is replaced.

        Returns:
            The folder.

        Raises:
            InputError: The folder holds something else, cannot be written to, or the disk is full.
        """
        write_folder(Path(folder), self.files())
        return Path(folder)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}: {self.title}"]
        lines += textwrap.wrap(self.verdict(), 98, initial_indent="  ", subsequent_indent="  ")
        pairs = _in_lines(self.headline())
        wide = max((len(name) for name, _ in pairs), default=0)
        lines += [f"  {name.ljust(wide)}  {value}" for name, value in pairs]
        if self.warnings:
            lines.append(f"  {len(self.warnings)} warning{'s' * (len(self.warnings) > 1)}")
        sizes = [f"{name} ({len(table.rows)})" for name, table in self.tables().items()]
        return "\n".join([*lines, f"  tables: {', '.join(sizes)}"])

    def _repr_html_(self) -> str:
        """A few lines for a notebook; :meth:`save` writes the page."""
        head = Table(self.title, ("", ""), tuple(_in_lines(self.headline())))
        parts = [Markup("<h3>{}</h3><p>{}</p>").format(self.title, self.verdict())]
        parts += [Markup("<p>⚠ {}</p>").format(warning) for warning in self.warnings]
        return str(Markup("").join([*parts, head.html(), *(t.html() for t in self.brief())]))


def _in_lines(headline: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each value in one line, its small print in brackets."""
    pairs = []
    for name, value in headline.items():
        first, *fine = value.split("\n")
        pairs.append((name, f"{first} ({'; '.join(fine)})" if fine else first))
    return pairs


def _plain(value: Any) -> Any:
    """A parameter as JSON holds it."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value)
