"""Results for people: reports, pages, tables, figures, files. Knows no subject.

>>> from isospike.report import Table
>>> print(Table("Codes", ("code", "error"), (("phase", 0.0123), ("rate", 0.25))).markdown())
| code | error |
|---|--:|
| phase | 0.0123 |
| rate | 0.25 |
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isospike.report.figures import Figure
    from isospike.report.page import Section
    from isospike.report.result import Provenance, Report
    from isospike.report.table import Table

__all__ = ["Figure", "Provenance", "Report", "Section", "Table"]
_PLACES = {
    "Figure": "figures", "Provenance": "result", "Report": "result", "Section": "page",
    "Table": "table",
}  # fmt: skip


def __getattr__(name: str) -> object:
    """A public name, imported at its first use: a command that only shows its help needs none."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return value
