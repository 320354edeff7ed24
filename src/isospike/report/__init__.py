"""Results for people: reports, pages, tables, figures, files. Knows no subject.

>>> from isospike.report import Table
>>> print(Table("Codes", ("code", "error"), (("phase", 0.0123), ("rate", 0.25))).markdown())
| code | error |
|---|--:|
| phase | 0.0123 |
| rate | 0.25 |
"""

from isospike.report.figures import Figure
from isospike.report.page import Section
from isospike.report.result import Provenance, Report
from isospike.report.table import Table

__all__ = ["Figure", "Provenance", "Report", "Section", "Table"]
