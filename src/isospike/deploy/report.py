"""What was exported, what was not, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isospike.deploy.build import Refused
from isospike.report.result import Report
from isospike.report.table import Table


@dataclass(frozen=True, kw_only=True)
class ExportReport(Report):
    """What of a model a format holds.

    Attributes:
        model: Name of the model.
        target: The format.
        nodes: Nodes that it holds, by name and kind.
        refused: Parts that it does not hold.
        written: The file, or an empty string if nothing was written.
    """

    model: str
    target: str
    nodes: tuple[tuple[str, str], ...]
    refused: tuple[Refused, ...]
    written: str

    def verdict(self) -> str:
        """How much of the model is in the file."""
        whole = "all of it" if not self.refused else f"all but {len(self.refused)} parts"
        verb = "is in" if self.written else "fits"
        return f"{self.model} {verb} {self.target}, {whole}."

    def headline(self) -> Mapping[str, str]:
        """Nodes and refused parts."""
        return {"nodes": f"{len(self.nodes)}", "left out": f"{len(self.refused)} parts"}

    def tables(self) -> Mapping[str, Table]:
        """Everything, node by node."""
        columns = {name: name for name in Refused._fields}
        return {
            "refused": Table.of("Left out", self.refused, columns),
            "nodes": Table("Nodes", ("name", "kind"), self.nodes),
        }

    def brief(self) -> Sequence[Table]:
        """What is left out."""
        return [self.tables()["refused"]] if self.refused else []
