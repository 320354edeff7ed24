"""How many directions the activations of a model use, site by site: what a port would code."""

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isospike import progress
from isospike.dimension import Dimension, EffectiveDimension, Estimate
from isospike.errors import RangeError, UnsupportedError
from isospike.hf.batches import Batch, token_masks
from isospike.hf.modules import layer_name
from isospike.porting.discover import discover
from isospike.porting.inputs import sample_of
from isospike.porting.measure import site_rows
from isospike.porting.page import KIND_MARKS, Marks, Points, sites_figure
from isospike.porting.run import Run, Watcher
from isospike.porting.sites import Readings, Site
from isospike.report.figures import MUTED, Axis, Series, line
from isospike.report.numbers import extent, number
from isospike.report.page import Details, Section
from isospike.report.result import Provenance, Report
from isospike.report.table import Cell, Table

REPLICATES = 20  # enough for a standard error; each one takes an eigendecomposition
MEASURES = {
    "pca": "PCA",
    "participation": "particip.",
    "entropy": "entropy",
    "stable_rank": "stable",
    "two_nn": "TwoNN",
    "mle": "MLE",
}
"""Heading of each measure by its name in :class:`isospike.dimension.Dimension`."""

_MARKS: Marks = {
    "PCA": ("#33658a", "circle"),
    "PCA, at least": ("#33658a", "circle-open"),
    "participation ratio": ("#c99a2e", "diamond"),
    "stable rank": ("#d1622b", "triangle-down"),
    "TwoNN": ("#7b5ea7", "cross"),
}
_LIMITED = "limited by the number of rows, not by the model"


@dataclass(frozen=True)
class SiteDimension:
    """The effective dimension of the values at one site.

    Attributes:
        name: Name of the site, as in :class:`isospike.porting.records.SiteReport`.
        layer: Its block.
        kind: See :class:`isospike.porting.records.SiteReport`.
        dimension: Six measures of its values, a row for each token.
    """

    name: str
    layer: str
    kind: str
    dimension: Dimension


@dataclass(frozen=True, kw_only=True)
class DimensionReport(Report):
    """The effective dimension at every site of a float model.

    Attributes:
        model: Its name or class.
        share: Share of the variance that the counted principal components hold.
        sites: One entry per site, in order of execution.
        constant: Sites left out: each token has the same values there, as a learned query has.

    >>> import isospike, torch
    >>> report = isospike.measure_dimension(torch.nn.Linear(4, 2), [{"input": torch.randn(200, 4)}])
    >>> [site.name for site in report.sites]
    [':weight']
    """

    model: str
    share: float
    sites: tuple[SiteDimension, ...]
    constant: tuple[str, ...] = ()

    def verdict(self) -> str:
        """How much of the width is used, and whether there were enough rows to see it."""
        counts = [s.dimension.pca.value for s in self.sites]
        used = statistics.median(s.dimension.pca.value / s.dimension.width for s in self.sites)
        limited = sum(s.dimension.pca.capped for s in self.sites)
        text = (
            f"At the {len(self.sites)} sites of {self.model}, {extent(counts)} directions hold "
            f"{100 * self.share:g} % of the variance; that is {used:.0%} of the width at the "
            "median site."
        )
        if limited:
            text += f" At {limited} of them the number is {_LIMITED}: give more text."
        if self.constant:
            names = ", ".join(self.constant)
            text += f" Left out, as every token has the same values there: {names}."
        return text

    def headline(self) -> dict[str, str]:
        """Sites, rows, and three measures, median over the sites."""
        d = [s.dimension for s in self.sites]
        measures = {
            f"PCA {100 * self.share:g} %": [x.pca.value for x in d],
            "Participation ratio": [x.participation.value for x in d],
            "Stable rank": [x.stable_rank.value for x in d],
        }
        return {
            "Sites": f"{len(d)}\n{extent([x.width for x in d])} channels",
            "Rows": f"{extent([x.rows for x in d])}\none for each token",
            **{
                name: f"{statistics.median(values):.3g}\nmedian over sites\n"
                f"{number(min(values))} to {number(max(values))}"
                for name, values in measures.items()
            },
        }

    def tables(self) -> dict[str, Table]:
        """The measures of every site with their intervals, and of smaller samples."""
        samples = [
            {"name": s.name, **point._asdict()} for s in self.sites for point in s.dimension.curve
        ]
        return {
            "sites": Table.of("Every site", [_record(s) for s in self.sites]),
            "samples": Table.of("Measures of smaller samples", samples),
        }

    def brief(self) -> Sequence[Table]:
        """The measures of every site."""
        return [self._site_table()]

    def sections(self) -> Sequence[Section]:
        """The measures by layer, against the number of rows, and at every site."""
        sizes = [len(s.dimension.curve) for s in self.sites]
        return [
            self._layers_section(),
            *([self._rows_section()] if max(sizes, default=0) > 1 else []),
            Section(
                "Every site",
                f"A row for each site, in order of execution. A number after ≥ is {_LIMITED}. "
                "Intervals and smaller samples are in the tables that are saved.",
                (Details(f"Show {len(self.sites)} sites", (self._site_table(),)),),
            ),
        ]

    def _layers_section(self) -> Section:
        groups: dict[str, Points] = {name: [] for name in _MARKS}
        for i, site in enumerate(self.sites, 1):
            d = site.dimension
            hover = f"{site.name}\n{d.rows} rows of {d.width} channels"
            groups["PCA, at least" if d.pca.capped else "PCA"].append((i, d.pca.value, hover))
            groups["participation ratio"].append((i, d.participation.value, hover))
            groups["stable rank"].append((i, d.stable_rank.value, hover))
            if d.two_nn is not None:
                groups["TwoNN"].append((i, d.two_nn.value, hover))
        layers = [s.layer for s in self.sites]
        axis = Axis("dimensions", log=True)
        return Section(
            "Dimensions by layer",
            f"Principal components that hold {100 * self.share:g} % of the variance, and measures "
            "that weigh every component; TwoNN is the intrinsic dimension, along a curved surface "
            f"too. Hollow marks are {_LIMITED}.",
            (sites_figure(layers, "plot-dimension", axis, groups, _MARKS),),
        )

    def _rows_section(self) -> Section:
        series, seen = [], set()
        for site in self.sites:
            curve = site.dimension.curve
            colour = KIND_MARKS.get(site.kind, (MUTED, ""))[0]
            rows, counts = [p.rows for p in curve], [p.pca for p in curve]
            hover = [f"{site.name}\n{p.rows} rows" for p in curve]
            first = site.kind not in seen
            seen.add(site.kind)
            series.append(
                Series(site.kind, rows, counts, colour, width=1, mark=4, hover=hover, legend=first)
            )
        figure = line(
            "plot-rows",
            "Principal components against the number of rows, a line for each site",
            series,
            Axis("rows", log=True),
            Axis("components", from_zero=True),
        )
        meaning = (
            "The same count from a part of the rows. A line that still rises at its right end has "
            "not seen enough rows: its number is a lower bound."
        )
        return Section("Are there enough rows?", meaning, (figure,))

    def _site_table(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for site in self.sites:
            d = site.dimension
            estimates = (_short(getattr(d, name)) for name in MEASURES)
            rows.append((site.name, d.width, d.rows, *estimates))
        measures = (f"PCA {100 * self.share:g} %", *list(MEASURES.values())[1:])
        return Table(
            "Effective dimension of every site",
            ("site", "width", "rows", *measures),
            tuple(rows),
            formats=("code", *[""] * (len(measures) + 2)),
            small=True,
        )


def measure_dimension(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    share: float = 0.95,
    replicates: int = REPLICATES,
    generator: torch.Generator | None = None,
    name: str | None = None,
) -> DimensionReport:
    """Measure how many directions the values at every site of a float model use.

    A site is the input of a matrix product: what a port would code. A row is one unpadded token.

    Args:
        model: A PyTorch transformer, usually from Hugging Face; it is not changed.
        batches: Keyword arguments of the model.
        share: Share of the variance that the counted principal components hold, in (0, 1].
        replicates: Bootstrap samples for the intervals, at least 2.
        generator: Source of randomness, of the rows that are kept and of the bootstrap.
        name: Name of the model in the report.

    Returns:
        The report: ``report.sites[i].dimension`` has the measures of a site.

    Raises:
        RangeError: A number out of range; NaN or infinity at a site, which is named; no site whose
            values differ.
        UnsupportedError: The model has no matrix product, or one that cannot be ported.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.linspace(-1, 1, 64).reshape(16, 4) ** torch.arange(1, 5)
    >>> report = measure_dimension(model, [{"input": x}], replicates=2)
    >>> [site.name for site in report.sites], report.sites[0].dimension.pca.value
    (['0', '2'], 2.0)
    """
    source = torch.Generator().manual_seed(0) if generator is None else generator
    seed = source.initial_seed()
    measured, constant = site_dimensions(
        model,
        batches,
        lambda: EffectiveDimension(share, replicates=replicates, generator=source),
    )
    known_as = name or type(model).__name__
    return DimensionReport(
        title=f"Effective dimension of {known_as}",
        provenance=Provenance.of({"share": share, "replicates": replicates}, seed),
        model=known_as,
        share=share,
        sites=tuple(
            SiteDimension(site, layer_name(site), kind, dimension)
            for site, (kind, dimension) in measured.items()
        ),
        constant=constant,
    )


def site_dimensions(
    model: nn.Module,
    batches: Sequence[Batch],
    make: Callable[[], EffectiveDimension],
) -> tuple[dict[str, tuple[str, Dimension]], tuple[str, ...]]:
    """Kind and effective dimension of every site of a float model: nothing is coded.

    Args:
        model: The float model.
        batches: Its inputs; only unpadded tokens count.
        make: An estimator for each site.

    Returns:
        By name of the site, in order of execution; and the names of those where no two rows
        differ.

    Raises:
        UnsupportedError: The model has no site, or cannot be ported.
        RangeError: NaN or infinity at a site, which is named; no site whose values differ.
    """
    sample = sample_of(model, batches[0])
    opened = discover(model, sample, further=batches).template
    rows = _Rows(opened.run, make)
    for done, batch in enumerate(batches, 1):
        with torch.no_grad(), opened.run.watching(rows, token_masks(batch)):
            opened.model(**batch)
        progress.update("run the model", done, len(batches))
    found = rows.estimators
    if not found:
        raise UnsupportedError(
            f"dimension needs a model with matrix products, got a {type(model).__name__} without. "
            "Give a transformer."
        )
    varied = {name: each for name, each in found.items() if each[1].varies_} or found
    measured = {}
    for done, (name, (kind, estimator)) in enumerate(varied.items(), 1):
        with _at_site(name):
            measured[name] = kind, estimator.dimension_
        progress.update("measure", done, len(varied))
    return measured, tuple(name for name in found if name not in varied)


class _Rows(Watcher):
    """Gives an estimator of each site the values that reach it, whoever reads them."""

    def __init__(self, run: Run, make: Callable[[], EffectiveDimension]) -> None:
        self.run, self.make = run, make
        self.estimators: dict[str, tuple[str, EffectiveDimension]] = {}
        self.readings = Readings()

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        if self.readings.is_new(site, x):
            _, estimator = self.estimators.setdefault(site.name, (site.kind, self.make()))
            last = x.movedim(1, -1) if site.kind == "conv" else x
            with _at_site(site.name):
                estimator.partial_fit(site_rows(self.run, site, last))
        return x


@contextlib.contextmanager
def _at_site(name: str) -> Iterator[None]:
    try:
        yield
    except RangeError as error:
        raise RangeError(f"at {name}: {error}") from None


def _record(site: SiteDimension) -> Mapping[str, Any]:
    """All numbers of a site, flat: ``pca``, ``pca_low``, ``pca_high``, ``pca_capped``, ..."""
    d = site.dimension
    flat: dict[str, Any] = {
        "name": site.name, "layer": site.layer, "kind": site.kind, "width": d.width,
        "rows": d.rows, "kept": d.kept, "constant": d.constant,
    }  # fmt: skip
    for name in MEASURES:
        estimate: Estimate | None = getattr(d, name)
        parts = (None,) * 4 if estimate is None else (*estimate[:3], estimate.capped)
        keys = (name, f"{name}_low", f"{name}_high", f"{name}_capped")
        flat |= dict(zip(keys, parts, strict=True))
    return flat


def _short(estimate: Estimate | None) -> str | None:
    if estimate is None:
        return None
    return f"{'≥ ' if estimate.capped else ''}{number(estimate.value)}"
