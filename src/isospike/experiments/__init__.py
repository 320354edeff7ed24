"""One file, one claim: ``CLAIM``, ``run(size, folder, workers, progress) -> Result``,
``holds(result) -> verdict``.

``isospike reproduce NAME`` runs one. Those that train share their cells (:mod:`.cells`), so what
one has trained another finds.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from isospike.errors import RangeError

HOLDS, CORRECTED, FAILS = "holds", "holds corrected", "fails"

EXPERIMENTS = {
    "published-table": "published_table",
    "spike-timing": "spike_timing",
    "frequency-compression": "frequency_compression",
    "learned-rank": "learned_rank",
    "extrapolation": "extrapolation",
    "geometry": "geometry",
    "lemma-1": "lemma",
    "overlap-kernel": "overlap_kernel",
    "online": "online",
    "gated-output": "gated_output",
}
"""Every experiment by name, with its file."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Table:
    """A table of the docs: text, row by row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table as Markdown."""
        line = "|---" + "|--:" * (len(self.head) - 1) + "|"
        rows = ["| " + " | ".join(row) + " |" for row in (self.head, *self.rows)]
        return "\n".join([f"{self.title}\n", rows[0], line, *rows[1:]])


@dataclass(frozen=True)
class Result:
    """What an experiment measured.

    Attributes:
        name: Of the experiment.
        numbers: On which :func:`holds` decides.
        tables: For people.
        settings: Sizes and seeds.
        versions: Of the packages that computed.
    """

    name: str
    numbers: dict[str, float]
    tables: tuple[Table, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def json(self, claim: str, verdict: str) -> dict[str, Any]:
        """All of it, and what it says of the claim."""
        return {"claim": claim, "verdict": verdict, **asdict(self)}


@runtime_checkable
class Experiment(Protocol):
    """What a file of this folder is."""

    CLAIM: str

    def run(self, size: Any, folder: Path, workers: int, progress: Progress) -> Result:
        """Measure."""

    def holds(self, result: Result) -> str:
        """The verdict: :data:`HOLDS`, :data:`CORRECTED` or :data:`FAILS`."""


def find_experiment(name: str) -> Experiment:
    """The experiment called ``name``.

    Raises:
        RangeError: No such experiment; the message lists those known.
    """
    if name not in EXPERIMENTS:
        raise RangeError(
            f"reproduce needs an experiment of {', '.join(EXPERIMENTS)}, got {name!r}."
        )
    module: Any = import_module(f"isospike.experiments.{EXPERIMENTS[name]}")
    return module  # type: ignore[no-any-return]
