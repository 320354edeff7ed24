import csv
import io
import math
from collections import namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from isospike.errors import InputError, ShapeError
from isospike.report import table
from isospike.report.table import Table

HOSTILE = "</td><script>alert(1)</script>[bold]|&\"'"
PEERS = Table(
    "Peers",
    ("name", "code", "error", "spikes", "share"),
    (("rate", "r", 0.123456, 18_400_000, 0.5), (HOSTILE, "p", None, 1234, 0.25)),
    formats=("code", "", "", "si", "percent"),
    names=("name", "code", "error", "spikes", "share"),
    strong=((1, 3),),
    groups=(1,),
)


def printed(table, width=100):
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(table.rich())
    return capture.get()


def test_a_table_says_the_same_in_every_form():
    forms = (PEERS.text(), printed(PEERS, 200), PEERS.markdown(), PEERS.html())
    for form in forms:
        for expected in ("0.123", "18.4 M", "1.23 k", "50.0%", "–"):
            assert expected in form


def test_text_has_words_at_the_left_and_numbers_at_the_right():
    table = Table("t", ("name", "kind", "count"), (("a", "linear", 5), ("bcd", "conv", 1200)))
    assert table.text().splitlines() == [
        "name  kind    count", "a     linear      5", "bcd   conv    1,200",
    ]  # fmt: skip


def test_html_escapes_texts_and_marks_cells():
    html = PEERS.html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<code>rate</code>" in html
    assert '<td class="best">1.23 k</td>' in html
    assert html.count('<tr class="group">') == 1


def test_brackets_are_printed_as_they_are_and_bars_do_not_divide_markdown():
    assert "[bold]" in printed(PEERS, 200)
    row = PEERS.markdown().splitlines()[3]
    assert row.count(" | ") == 4
    assert "\\|" in row
    assert "**1.23 k**" in row


cells = st.one_of(
    st.none(),
    st.text(st.characters(exclude_characters="\r", codec="utf-8"), max_size=8),
    st.integers(),
    st.floats(allow_nan=False),
)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_csv_holds_numbers_in_full(rows):
    read = list(csv.reader(io.StringIO(Table("t", ("a", "b"), tuple(rows)).csv(), newline="")))
    assert read[0] == ["a", "b"]
    # A text that a spreadsheet would compute is marked as one.
    marked = [[f"'{c}" if table._is_formula(c) else c for c in row] for row in rows]
    assert read[1:] == [["" if c is None else str(c) for c in row] for row in marked]


def test_a_frame_has_the_names_and_the_numbers():
    pytest.importorskip("pandas")
    frame = PEERS.to_frame()
    assert list(frame.columns) == list(PEERS.names)
    assert frame["error"][0] == 0.123456
    assert frame["error"].isna()[1]


def test_records_become_rows():
    Site = namedtuple("Site", "name rank")
    Rank = namedtuple("Rank", "low high")
    table = Table.of(
        "Sites",
        [Site("a", Rank(1, 2)), Site("b", None)],
        {"name": ("site", "code"), "rank.low": "lowest"},
    )
    assert table.head == ("site", "lowest")
    assert table.names == ("name", "rank_low")
    assert table.rows == (("a", 1), ("b", None))
    assert Table.of("Sites", [{"x": 1}, {"y": math.inf}]).csv() == "x,y\n1,\n,inf\n"


def test_a_cell_that_is_a_list_is_refused():
    with pytest.raises(InputError, match="Table needs text or numbers, got tuple in 'x'"):
        Table.of("t", [{"x": (1, 2)}])


def test_rows_of_another_length_are_refused():
    with pytest.raises(ShapeError, match="got 1 in row 0 of 't'"):
        Table("t", ("a", "b"), (("x",),))
    with pytest.raises(ShapeError, match="got 3 in formats of 't'"):
        Table("t", ("a", "b"), (), formats=("", "", ""))


def test_a_table_without_rows_is_still_a_table():
    table = Table("t", ("a", "b"), ())
    assert table.text() == "a  b"
    assert table.csv() == "a,b\n"
    assert "<tbody></tbody>" in table.html()


def test_a_narrow_terminal_leaves_names_readable():
    heads = ("layer", *(f"long heading {i}" for i in range(7)))
    table = Table("t", heads, ((f"encoder.layer.{'x' * 9}", *[0.123456] * 7),))
    lines = printed(table, 80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    (row,) = (line.split() for line in lines if line.startswith("encoder."))
    assert row[1:] == ["0.123"] * 7
