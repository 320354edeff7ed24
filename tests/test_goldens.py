"""Nothing that was frozen before the restructuring has changed, but for what renamed.json lists.

The files are those of goldens/make.py. goldens/renamed.json has, under ``renamed``, old paths and
what they became, null for what is gone; under ``added``, paths that are new. A path is a run of
names with ``/`` between them, from a file's name down to a field, and fits wherever it occurs;
``*`` is any one name: ``"sites/*/error": "sites/*/residual"``. A single name renames every field
of that name. Text that changes on purpose is frozen again.

Floats may differ by rounding, unless ISOSPIKE_GOLDEN_EXACT=1. On a machine that rounds the float
models otherwise than where they were frozen (rounding.json), a spike here and there is another one:
what rests on them is then compared by a half, numbers in texts and whole numbers not at all.
Functions on spikes round more than those models show, by the number of threads as well: one spike
of thousands may be another one anywhere.
"""

import json
import math
import os
import re
from functools import cache

import pytest
from goldens import make

RENAMED = json.loads((make.HERE / "renamed.json").read_text(encoding="utf-8"))
CASES = [(file, case) for file in make.CASES for case in make.CASES[file]]
MEASURED = ("reports", "pages", "cli_errors")  # rest on matrix products
ALIKE = {"rel_tol": 1e-5, "abs_tol": 1e-6}
ONE_SPIKE = {"rel_tol": 0.01, "abs_tol": 1e-6}
OTHERWISE = {"rel_tol": 0.5, "abs_tol": 1e-3}
MOST = 1e5  # more is a ratio to rounding, such as a gap of a spectrum
NUMBER = re.compile(r"\b[0-9a-f]{16}\b|[\d.]+(e[-+]\d+)?")


def flat(value, path=()):
    """``value`` leaf by leaf, each under its path."""
    if not value or not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {p: leaf for k, v in items for p, leaf in flat(v, (*path, str(k))).items()}


def place(path, entry):
    """Where the names of an entry of renamed.json begin in a path; None if they do not occur."""
    names = entry.split("/")
    runs = (path[i : i + len(names)] for i in range(len(path) - len(names) + 1))
    fits = (all(n in ("*", p) for n, p in zip(names, run, strict=True)) for run in runs)
    return next((i for i, fit in enumerate(fits) if fit), None)


def moved(path, renamed):
    """What a path is called now; None if it is gone."""
    for old, new in renamed.items():
        at, names = place(path, old), old.split("/")
        if at is None:
            continue
        if new is None:
            return None
        stars = (p for p, n in zip(path[at:], names, strict=False) if n == "*")
        now = [next(stars) if n == "*" else n for n in new.split("/")]
        path = (*path[:at], *now, *path[at + len(names) :])
    return path


def same(was, now, alike=True, near=ALIKE):
    """Equal, or floats that are near; ``alike`` if this machine rounds as the one before."""
    if type(was) is not type(now) or os.environ.get("ISOSPIKE_GOLDEN_EXACT") == "1":
        return type(was) is type(now) and was == now
    if type(was) is float:
        if alike:
            return math.isclose(was, now, **near)
        return math.isclose(min(was, MOST), min(now, MOST), **OTHERWISE)
    return was == now or (not alike and NUMBER.sub("", str(was)) == NUMBER.sub("", str(now)))


def differences(was, now, added, alike=True, near=ALIKE):
    """One line for each leaf that is not as it was."""
    if not alike:  # only those sites are listed there that differ from the largest
        was, now = ({p: v for p, v in d.items() if "steps_by_site" not in p} for d in (was, now))
    lines = [f"{'/'.join(p)}: was {was[p]!r}, is gone" for p in was if p not in now]
    for path, leaf in now.items():
        if path in was:
            if not same(was[path], leaf, alike, near):
                lines.append(f"{'/'.join(path)}: was {was[path]!r}, is {leaf!r}")
        elif all(place(path, entry) is None for entry in added):
            lines.append(f"{'/'.join(path)}: is new, {leaf!r}")
    return lines


@cache
def rounds_alike():
    return json.loads((make.HERE / "rounding.json").read_text(encoding="utf-8")) == make.rounding()


@cache
def frozen(file):
    """The leaves of a file by the paths they have now."""
    stored = json.loads((make.HERE / f"{file}.json").read_text(encoding="utf-8"))
    leaves = ((moved(p, RENAMED["renamed"]), v) for p, v in flat(stored, (file,)).items())
    return {path: leaf for path, leaf in leaves if path is not None}


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("goldens")
    make.prepare(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "case"),
    [
        pytest.param(*case, id=" ".join(case), marks=[pytest.mark.slow] * (case[1] in make.SLOW))
        for case in CASES
    ],
)
def test_nothing_has_changed_but_what_is_listed(file, case, home):
    was = {path: leaf for path, leaf in frozen(file).items() if path[:2] == (file, case)}
    now = json.loads(json.dumps(make.CASES[file][case](home)))
    alike = file not in MEASURED or rounds_alike()
    near = ONE_SPIKE if case.endswith(" spiking") else ALIKE
    found = differences(was, flat(now, (file, case)), RENAMED["added"], alike, near)
    assert not found, "\n".join(found[:20])


def test_every_frozen_case_is_still_computed():
    assert {path[:2] for file in make.CASES for path in frozen(file)} == set(CASES)


def test_a_renamed_field_is_compared_under_its_new_name():
    path = ("reports", "port", "sites", "3", "error")
    assert moved(path, {"sites/*/error": "places/*/rms"}) == (*path[:2], "places", "3", "rms")
    assert moved(path, {"error": "rms", "port": "porting"}) == (
        "reports", "porting", "sites", "3", "rms"
    )  # fmt: skip
    assert moved(path, {"sites/*/error": None}) is None
    assert moved(path, {"curve/*/error": None}) == path


def test_a_new_field_is_ignored_only_where_it_is_listed():
    was, now = flat({"a": [1, {}]}), flat({"a": [1, {}], "b": {"c": 2}})
    assert differences(was, now, ["b/*"]) == []
    assert differences(was, now, ["a/c"]) == ["b/c: is new, 2"]
    assert differences(now, was, ["b/*"]) == ["b/c: was 2, is gone"]


def test_only_floats_may_differ_and_not_where_exactness_is_asked_for(monkeypatch):
    monkeypatch.delenv("ISOSPIKE_GOLDEN_EXACT", raising=False)
    assert same(1.0, 1.000001)
    assert not same(1.0, 1.0001)
    assert not same(1, 1.0)
    assert not same(1, True)
    assert same("2 of 0123456789abcdef", "3 of f123456789abcdef", alike=False)
    assert not same("2 of these", "2 of those", alike=False)
    monkeypatch.setenv("ISOSPIKE_GOLDEN_EXACT", "1")
    assert not same(1.0, 1.000001)
