import json
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import isospike.report
from isospike.errors import InputError
from isospike.report import codec
from isospike.report.result import Provenance, Report
from isospike.report.table import Table

HOSTILE = "</script><script>alert(1)</script>[bold]&\"'"


class Point(NamedTuple):
    x: int
    y: float | None


@dataclass(frozen=True)
class Part:
    name: str
    values: tuple[float, ...]
    point: Point | None
    pair: tuple[str, int]
    extra: dict[str, Any]
    verdict: Literal["holds", "fails"]
    counts: dict[int, bool]
    either: Point | str


@dataclass(frozen=True, kw_only=True)
class Small(Report):
    parts: tuple[Part, ...] = ()
    error: float = 0.0

    def verdict(self):
        return f"The error is {self.error:g}."

    def headline(self):
        return {"Error": f"{self.error:g}\nrelative", "Parts": str(len(self.parts))}

    def tables(self):
        return {"parts": Table.of("Parts", self.parts, {"name": ("part", "code")}, meaning="All.")}


def part(name="a", **changes):
    made = {
        "values": (1.0, 2.5), "point": Point(1, None), "pair": ("b", 2), "extra": {"k": [1, "x"]},
        "verdict": "holds", "counts": {3: True}, "either": Point(0, 0.5),
    }  # fmt: skip
    return Part(name, **{**made, **changes})


def small(**changes):
    made = {
        "title": "Small", "provenance": Provenance.of({"steps": 8}, seed=0),
        "parts": (part(), part("b", point=None, either="text")), "error": 0.25,
    }  # fmt: skip
    return Small(**{**made, **changes})


def test_json_round_trip_is_exact():
    assert Small.from_json(small().to_json()) == small()


@given(st.floats(), st.text(), st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_any_numbers_and_texts_survive_json(error, title, values):
    report = small(title=title, error=error, parts=(part(values=tuple(values)),))
    read = Small.from_json(report.to_json())
    assert read.title == title
    assert read.parts == report.parts
    assert read.error == error if math.isfinite(error) else math.isnan(read.error)
    assert "NaN" not in report.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("error"), "needs 'error', got none in the report"),
        (lambda d: d.update(colour=1), "needs no field 'colour', got one"),
        (lambda d: d["parts"][1].pop("name"), r"needs 'name', got none in parts\[1\]"),
        (lambda d: d["parts"][0].update(name=3), r"needs str in parts\[0\].name, got 3"),
        (lambda d: d["parts"][0].update(pair=["b"]), r"list of 2 in parts\[0\].pair, got list"),
        (lambda d: d["parts"][0].update(values=None), r"a list in parts\[0\].values, got None"),
        (lambda d: d["parts"][0].update(verdict="maybe"), r"one of .*parts\[0\].verdict"),
        (lambda d: d.update(error=True), "a number in error, got True"),
        (lambda d: d.update(error=10**400), "a number in error, got 1000"),
        (lambda d: d["parts"][0].update(counts={"x": True}), "keys that are int in parts"),
        (lambda d: d.update(parts={}), "a list in parts, got dict"),
        (lambda d: d.update(provenance=[]), "an object in provenance, got list"),
    ],
)
def test_a_report_of_another_shape_is_refused_by_its_path(change, message):
    plain = small().to_dict()
    change(plain)
    with pytest.raises(InputError, match=message):
        Small.from_json(json.dumps(plain))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000])
def test_text_that_is_no_report_is_refused(text):
    with pytest.raises(InputError, match="from_json needs"):
        Small.from_json(text)


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(InputError, match="got set. Store its parts"):
        codec.encode({"a": {1, 2}})


def test_it_prints_itself_in_about_ten_lines():
    lines = repr(small(warnings=("beware",))).splitlines()
    assert lines == [
        "Small: Small", "  The error is 0.25.", "  Error  0.25 (relative)", "  Parts  2",
        "  1 warning", "  tables: parts (2)",
    ]  # fmt: skip


def test_summary_and_notebook_say_verdict_warnings_headline_and_table():
    report = small(title=HOSTILE, warnings=("beware [red]",))
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(report.summary())
    for form in (capture.get(), report._repr_html_()):
        for expected in (
            "The error is 0.25.",
            "beware [red]",
            "0.25 (relative)",
            "[bold]",
            "Parts",
        ):
            assert expected in form
    assert "<script>" not in report._repr_html_()


def test_save_writes_page_json_and_tables(tmp_path):
    folder = small().save(tmp_path / "out")
    names = {p.name for p in folder.iterdir()}
    assert names == {"report.html", "report.json", "parts.csv", "isospike.json"}
    assert Small.from_json((folder / "report.json").read_text()) == small()
    assert (folder / "parts.csv").read_text() == "name\na\nb\n"
    small(error=0.5).save(folder)
    assert Small.from_json((folder / "report.json").read_text()).error == 0.5


def test_a_frame_is_one_of_the_tables():
    pytest.importorskip("pandas")
    assert list(small().to_frame()["name"]) == ["a", "b"]
    with pytest.raises(InputError, match="needs a table of parts, got 'whole'"):
        small().to_frame("whole")


def test_provenance_keeps_versions_command_and_plain_parameters(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/isospike", "port", "my model", "--steps", "8"])
    found = Provenance.of({"steps": (1, 2), "model": object, "at": None}, packages=("torch", "no"))
    assert found.command == "isospike port 'my model' --steps 8"
    assert found.parameters == {"steps": [1, 2], "model": "<class 'object'>", "at": None}
    assert set(found.versions) == {"python", "torch"}
    monkeypatch.setattr("sys.argv", ["train.py"])
    assert Provenance.of().command == ""


def test_public_names_come_from_where_they_are_defined():
    for name in isospike.report.__all__:
        assert getattr(isospike.report, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Tabel'"):
        _ = isospike.report.Tabel
