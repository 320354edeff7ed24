"""Every form in which people have a table is read right by the command, or refused clearly."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks").exists():
    pytest.skip("the package is tested without its benchmarks", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.causal_forms import FORMS, MESSAGE, X, outcome  # noqa: E402
from isospike.causal.cells import number  # noqa: E402
from isospike.causal.table import parse_table  # noqa: E402


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_read_or_refused_as_its_list_says(name, tmp_path):
    kind, said = outcome(name, tmp_path)
    words = FORMS[name][1]
    asked = "read" if not words else "warned" if words.startswith(MESSAGE) else "refused"
    assert (kind, said) == (asked, said)
    assert (tmp_path / "out" / "report.html").exists() == (kind != "refused")  # nothing half done


def test_what_was_left_out_of_a_table_is_noted():
    dashes, rows = (
        FORMS["bars on both sides"][0],
        FORMS["row names without a header, as R has them"][0],
    )
    assert "a line of dashes was left out" in parse_table(dashes).notes
    assert parse_table(rows).notes == ("a column of row names was left out",)
    assert parse_table(rows).rows.tolist() == X.tolist()


def test_rows_without_a_header_are_no_row_names():
    with pytest.raises(Exception, match="rows of one length, got 3 cells in line 2"):
        parse_table("1,2\n3,4,5\n6,7,8\n")


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1.5D+03", 1500), ("-.5d-1", -0.05), ("2D0", 2), ("D3", None), ("1dd2", None)],
)
def test_exponents_of_fortran_are_numbers(cell, value):
    assert number(cell, False) == value
