"""Two ports side by side: error, spikes, the worst sites, and cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isospike.energy import TABLES, estimate_energy
from isospike.errors import InputError
from isospike.porting.report import PortReport
from isospike.report import numbers
from isospike.report.figures import MUTED, Axis, Figure, Series, line, scatter
from isospike.report.page import Details, Section
from isospike.report.result import Provenance, Report
from isospike.report.table import Cell, Table

SHOWN_SITES = 10
_MEASURES = (
    ("error", "percent"),
    ("cosine", ".5f"),
    ("spikes", "si"),
    ("synaptic_ops", "si"),
    ("steps", ""),
)
_LABELS = {"synaptic_ops": "synaptic operations per token", "spikes": "spikes per token"}


@dataclass(frozen=True)
class SitePair:
    """One site in both ports; None where a port does not have it.

    Attributes:
        name: Name of the site.
        a_steps, b_steps: Its time steps.
        a_error, b_error: Its coding error.
        a_spikes, b_spikes: Its spikes per token.
    """

    name: str
    a_steps: int | None
    b_steps: int | None
    a_error: float | None
    b_error: float | None
    a_spikes: float | None
    b_spikes: float | None

    @property
    def worst(self) -> float:
        """The larger error of the two."""
        return max(self.a_error or 0.0, self.b_error or 0.0)


@dataclass(frozen=True)
class CostPair:
    """The energy of both ports by one cost table, in picojoules per token.

    Attributes:
        table: Name of the cost table.
        a_pj, b_pj: Energy of the spiking model.
    """

    table: str
    a_pj: float
    b_pj: float


@dataclass(frozen=True, kw_only=True)
class CompareReport(Report):
    """Two ports side by side.

    Attributes:
        a, b: What the ports are called.
        measures: By name, the value in each port.
        sites: Every site, the largest error first.
        costs: Energy by each cost table.
    """

    a: str
    b: str
    measures: dict[str, tuple[float, float]]
    sites: tuple[SitePair, ...]
    costs: tuple[CostPair, ...]

    def verdict(self) -> str:
        """Which port is nearer to its original, and which one takes less."""
        first, second = self.measures["error"]
        if first == second:
            closeness = f"Both ports differ from the original by {numbers.percent(first)}."
        else:
            better, worse = sorted((first, second))
            times = f", {worse / better:.3g} times as much" if better > 0 else ""
            near, far = (self.a, self.b) if first < second else (self.b, self.a)
            closeness = (
                f"{near} is nearer to the original: it differs by {numbers.percent(better)}, "
                f"{far} by {numbers.percent(worse)}{times}."
            )
        fewer = [sum(c.a_pj < c.b_pj for c in self.costs), sum(c.b_pj < c.a_pj for c in self.costs)]
        if fewer == [0, 0]:
            return f"{closeness} They take the same energy."
        best = self.a if fewer[0] > fewer[1] else self.b
        tables = f"{max(fewer)} of {len(self.costs)} cost tables"
        return f"{closeness} {best} takes less energy by {tables}."

    def headline(self) -> Mapping[str, str]:
        """Error, spikes and synaptic operations of both."""
        shown = {"error": numbers.percent, "spikes": numbers.si, "synaptic_ops": numbers.si}
        return {
            _LABELS.get(name, name): " → ".join(form(v) for v in self.measures[name])
            for name, form in shown.items()
        }

    def tables(self) -> Mapping[str, Table]:
        """The measures, the sites and the costs."""
        return {"measures": self._measures(), "sites": self._sites(), "costs": self._costs()}

    def brief(self) -> Sequence[Table]:
        """The measures, the worst sites and the costs."""
        return [self._measures(), self._sites(SHOWN_SITES), self._costs()]

    def sections(self) -> Sequence[Section]:
        """Both ports, the error of each site in one over the other, and their energy."""
        tables = self.tables()
        both, every, costs = (tables[name] for name in ("measures", "sites", "costs"))
        blocks = [self._points(), Details(f"Show {len(self.sites)} sites", (every,))]
        return [
            Section(both.title, both.meaning, (both,)),
            Section(
                "Error of each site",
                f"A point is a site: its coding error in {self.a} to the right, in {self.b} "
                "upwards. Above the line B errs more.",
                tuple(block for block in blocks if block is not None),
            ),
            Section(costs.title, "The lower one takes less.", (self._energies(), costs)),
        ]

    def _points(self) -> Figure | None:
        """Errors of the sites that both ports have, A's to the right; None if they share none."""
        shared = [s for s in self.sites if s.a_error and s.b_error]
        if not shared:
            return None
        x, y = ([float(getattr(s, f) or 0) for s in shared] for f in ("a_error", "b_error"))
        ends = min(*x, *y) / 1.2, max(*x, *y) * 1.2
        same = Series("equal", ends, ends, colour=MUTED, dash="dot", symbol="", width=1)
        sites = Series("site", x, y, hover=[s.name for s in shared], dash="", mark=8)
        a, b = (Axis(f"error in {n}", log=True, limits=ends) for n in (self.a, self.b))
        return line("errors", "Error of each site in both ports.", [sites, same], a, b)

    def _energies(self) -> Figure:
        """Energy of both ports by each cost table."""
        places = range(len(self.costs))
        series = [
            Series(name, places, [getattr(c, field) for c in self.costs], symbol=symbol)
            for name, field, symbol in ((self.a, "a_pj", "circle"), (self.b, "b_pj", "square"))
        ]
        ticks: dict[numbers.Number, str] = {i: self.costs[i].table for i in places}
        x = Axis(ticks=ticks, limits=(-0.5, len(self.costs) - 0.5), quiet=True)
        y = Axis("pJ per token", log=True)
        return scatter("energies", "Energy of both ports by cost table.", series, x, y, height=320)

    def _measures(self) -> Table:
        forms = dict(_MEASURES)
        rows: list[tuple[Cell, ...]] = []
        for name, (a, b) in self.measures.items():
            form = forms.get(name, "percent")
            texts = (Table("", ("",), ((v,),), formats=(form,)).cell(0, 0) for v in (a, b))
            rows.append((_LABELS.get(name, name), *texts, _times(a, b)))
        return Table("Both ports", ("measure", self.a, self.b, "B / A"), tuple(rows))

    def _sites(self, count: int | None = None) -> Table:
        """All sites; or so many, without their spikes, which a terminal has no room for."""
        shown = self.sites[:count]
        title = "Sites" if len(shown) == len(self.sites) else f"The {len(shown)} worst sites"
        columns: dict[str, str | tuple[str, str]] = {
            "name": "site", "a_steps": "steps A", "b_steps": "steps B",
            "a_error": ("error A", "percent"), "b_error": ("error B", "percent"),
        }  # fmt: skip
        if count is None:
            columns |= {"a_spikes": ("spikes A", "si"), "b_spikes": ("spikes B", "si")}
        return Table.of(
            title, shown, columns, meaning="The sites with the largest coding error come first."
        )

    def _costs(self) -> Table:
        rows = tuple((c.table, c.a_pj, c.b_pj, _times(c.a_pj, c.b_pj)) for c in self.costs)
        head = ("cost table", self.a, self.b, "B / A")
        return Table(
            "Energy per token of the spiking model",
            head,
            rows,
            formats=("", "energy", "energy", ""),
        )


def compare(a: Any, b: Any) -> CompareReport:
    """Compare two ports: error, spikes, the worst sites and the cost of each.

    Args:
        a: A `Port`, its report, or a folder that ``isospike port`` wrote.
        b: The same, of the other port: usually of the same model with another code or other steps.

    Returns:
        Both ports in one table and page.

    Raises:
        InputError: One of them is not a port, or holds no readable report.

    >>> import isospike, torch
    >>> layer, batches = torch.nn.Linear(4, 2), [{"input": torch.rand(8, 4)} for _ in range(4)]
    >>> a, b = (isospike.port(layer, batches, steps=steps) for steps in (4, 8))
    >>> a.report.error > b.report.error, "steps" in compare(a, b).verdict()
    (True, True)
    """
    one, two = _report_of(a), _report_of(b)
    names = _names(one, two)
    sites = {s.name: s for s in one.sites}, {s.name: s for s in two.sites}
    errors = [{f"error, {s.name}": s.error for s in r.streams if s.error is not None}
              for r in (one, two)]  # fmt: skip
    pairs = [_pair(name, *(by.get(name) for by in sites)) for name in {**sites[0], **sites[1]}]
    warnings: tuple[str, ...] = ()
    if one.model != two.model:
        warnings = (f"These are ports of two models, {one.model} and {two.model}.",)
    return CompareReport(
        title=f"{names[0]} beside {names[1]}",
        provenance=Provenance.of({"a": names[0], "b": names[1]}),
        warnings=warnings,
        a=names[0],
        b=names[1],
        measures={
            n: (float(getattr(one, n)), float(getattr(two, n)))
            for n, _ in _MEASURES
            if None not in (getattr(one, n), getattr(two, n))
        }
        | {
            name: (error, errors[1][name]) for name, error in errors[0].items() if name in errors[1]
        },
        sites=tuple(sorted(pairs, key=lambda pair: -pair.worst)),
        costs=tuple(
            CostPair(
                t.name,
                estimate_energy(one.counts, t).spiking_pj,
                estimate_energy(two.counts, t).spiking_pj,
            )
            for t in TABLES
        ),
    )


def _report_of(port: Any) -> PortReport:
    """The report of a port, whatever form it comes in."""
    if isinstance(port, str | Path):
        path = Path(port).expanduser()
        file = path / "report.json" if path.is_dir() else path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise InputError(
                f"compare needs a folder that isospike port wrote, got {str(port)!r}, which holds "
                "no report.json. Port a model first."
            ) from None
        return PortReport.from_json(text)
    report = getattr(port, "report", port)
    if not isinstance(report, PortReport):
        raise InputError(
            f"compare needs a port, its report or its folder, got {type(port).__name__}. Give what "
            "isospike.port returned."
        )
    return report


def _names(one: PortReport, two: PortReport) -> tuple[str, str]:
    """Names that differ where the ports do."""
    fields = ("model", "code", "steps", "functions", "execution", "max_error")
    said = [
        [f"{getattr(r, f)} steps" if f == "steps" else str(getattr(r, f)) for f in fields]
        + [f"weights of {r.counts.weight_bits:.3g} bits"]
        for r in (one, two)
    ]
    parts = [(x, y) for x, y in zip(*said, strict=True) if x != y]
    if not parts:
        return "A", "B"
    a, b = (", ".join(each) for each in zip(*parts, strict=True))
    return f"{a} (A)", f"{b} (B)"


def _pair(name: str, a: Any, b: Any) -> SitePair:
    both = [
        None if site is None else getattr(site, field)
        for field in ("steps", "error", "spikes")
        for site in (a, b)
    ]
    return SitePair(name, *both)


def _times(a: float, b: float) -> float | None:
    return b / a if a and math.isfinite(a) else None
