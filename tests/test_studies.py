"""Studies run at the size of a test; what is stored is whole; the pages show what is stored."""

import importlib
import re
import sys
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from isospike.errors import InputError, MissingExtraError, RangeError
from isospike.experiments import study as studies
from isospike.experiments.study import (
    CORRECTED,
    FAILS,
    HOLDS,
    STUDIES,
    Context,
    Findings,
    Goal,
    StudyReport,
    find_studies,
    find_study,
    reproduce,
    store,
    stored,
    study,
)
from isospike.report.table import Table

ROOT = Path(__file__).parents[1]
HERE = (ROOT / "benchmarks").exists()
needs_repository = pytest.mark.skipif(not HERE, reason="the package is tested alone")
if HERE:
    sys.path.insert(0, str(ROOT))
BENCHMARKS = list(find_studies("benchmarks")) if HERE else []
CLAIMS = list(find_studies())
# Many processes, ports or timed runs; what they do is tested case by case in test_port_loading.py,
# test_machine_files.py, test_report_files.py, test_cli*.py, test_gains.py, test_neurons.py (engine
# gpu), test_products.py, test_spikformer.py, test_uses.py and gpu-neurons.
SLOW = {
    "damaged-files", "killed-saves", "loads-beside-saves", "command-lines", "foreign-captions",
    "foreign-lengths", "foreign-models", "port-speed", "gpu-ports", "gpu-models",
    "gpu-parity", "uses",
}  # fmt: skip
# These are run, in other shapes, by test_experiments.py and test_gated_output.py.
ELSEWHERE = {"gated-output", "published-table", "spike-timing", "geometry"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Claims share their training runs."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture
def made():
    """Remove what a test registers."""
    before = dict(STUDIES)
    yield
    STUDIES.clear()
    STUDIES.update(before)


def run_tiny(name, package, folder):
    with warnings.catch_warnings():
        # Transformers announces renamed arguments of its own methods.
        warnings.filterwarnings("ignore", category=FutureWarning)
        return reproduce(name, "tiny", package=package, folder=folder)


@pytest.mark.parametrize("name", [name for name in CLAIMS if name not in ELSEWHERE])
def test_a_claim_runs_at_the_size_of_a_test(name, kept, tmp_path):
    report = run_tiny(name, studies.CLAIMS, kept)
    assert report.results
    assert report.decision in ((HOLDS, CORRECTED, FAILS) if report.statement else ("",))
    assert stored(store(report, tmp_path)) == report
    assert report.provenance.command == f"isospike reproduce {name} --preset tiny"


@needs_repository
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in BENCHMARKS],
)
def test_a_benchmark_runs_at_the_size_of_a_test(name, kept, tmp_path, monkeypatch):
    monkeypatch.delenv("ISOSPIKE_DATA", raising=False)
    report = run_tiny(name, "benchmarks", kept)
    assert stored(store(report, tmp_path)) == report
    assert all(table.meaning.endswith(".") for table in report.results)
    assert all(len(table.head) <= 6 for table in report.results)


@needs_repository
def test_every_study_has_presets_and_asks_a_question():
    for one in (*find_studies("benchmarks").values(), *find_studies().values()):
        assert one.question.endswith("?")
        assert set(one.presets) == {"tiny", "small", "full"}


# The registry and the store.


def add(name="halves", **more):
    presets = {"tiny": SimpleNamespace(start=4), "small": SimpleNamespace(start=64)}

    @study(name, question="How many?", package="benchmarks", **{"presets": presets, **more})
    def function(p, ctx):
        table = Table("Halvings", ("start", "steps"), ((p.start, 3),), "As many as bits.")
        return Findings({"steps": 3}, [table, table], {"steps": Goal(3, 2)})

    return function


def test_a_study_says_what_was_run_and_whether_its_goals_are_met(made, tmp_path):
    add()
    report = find_study("halves", "benchmarks").run("small")
    assert report.provenance.parameters == {"start": 64}
    assert report.provenance.command == "python -m benchmarks halves --preset small"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", report.date)
    assert report.verdict() == "0 of 1 goals are met. Missed: steps."
    assert report.headline() == {"steps": "3 (at most 2: missed)"}
    assert list(report.tables()) == ["halvings", "halvings-2"]
    path = store(report, tmp_path)
    assert path.name == "halves-small.json"
    assert '["start", "steps"]' in path.read_text()
    assert str(Path.home()) not in path.read_text()


def test_a_goal_may_be_a_least_or_a_largest_value():
    assert Goal(1, 1).met
    assert Goal(1, 1, at_least=True).met
    assert not Goal(2, 1).met
    assert not Goal(0, 1, at_least=True).met
    assert not Goal(float("nan"), 1).met


def test_parts_of_long_work_are_kept(tmp_path):
    calls = []
    context = Context(tmp_path)
    for _ in range(2):
        value = context.cached("part", lambda: calls.append(1) or [len(calls)])
    assert value == [1]
    (tmp_path / "part.json").write_text("[1")
    with pytest.raises(InputError, match=r"whole result files, got .*part\.json .*Remove it"):
        context.cached("part", list)


def test_runs_that_are_timed_alternate():
    order = []
    times = Context().timing({n: lambda n=n: order.append(n) for n in "ab"}, 3, warm_up=1)
    assert "".join(order) == "ab" * 4
    assert len(times.wall["a"]) == len(times.cpu["b"]) == 3
    assert times.ratio("a", "a") == 1
    assert times.seconds("a") >= 0


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: add("stsb"), InputError, "the name 'stsb', which is taken. Rename it"),
        (lambda: add(presets={"huge": None}), InputError, r"presets of tiny, small, full.*'huge'"),
        (lambda: find_study("nothing"), InputError, "a study of .*, got 'nothing'. Choose one"),
        (lambda: find_studies("nothing"), InputError, "a package of studies, got 'nothing'"),
        (lambda: find_studies("."), InputError, "a package of studies, got '.'"),
        (lambda: find_studies(""), InputError, "a package of studies, got ''"),
        (lambda: reproduce("geometry", "huge"), InputError, "a preset of tiny, .*'huge'. Choose"),
        (lambda: reproduce("geometry", workers=0), RangeError, "workers of at least 1, got 0"),
        (lambda: Context().timing({}, 0), RangeError, "rounds of at least 1, got 0"),
        (lambda: Context().file("x"), InputError, "x, got no folder of data. Set ISOSPIKE_DATA"),
        (lambda: Context(data=ROOT).file("x", "y"), InputError, "x/y, got .* without it"),
        (lambda: stored("missing.json"), InputError, "got missing.json .*Run the study"),
    ],
)
@needs_repository
def test_mistakes_are_named(call, error, text, made):
    with pytest.raises(error, match=text):
        call()


def test_a_missing_package_is_named_with_its_extra(made):
    @study("peer", question="?", extra="peers", package="benchmarks",
           presets={"tiny": SimpleNamespace()})  # fmt: skip
    def peer(p, ctx):
        importlib.import_module("no_such_peer")

    with pytest.raises(
        MissingExtraError, match=r"no_such_peer for peer, got none. Install isospike\[peers\]"
    ):
        STUDIES["peer"].run("tiny")


# What is stored, and the pages.

FILES = sorted((ROOT / "results").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_stored_result_is_whole_and_its_missed_goals_are_explained(path):
    report = stored(path)
    assert f"{report.name}-{report.preset}" == path.stem
    assert report.transcribed or report.date
    missed = [name for name, goal in report.goals.items() if not goal.met]
    note = path.parent / "notes" / f"{report.name}.md"
    text = " ".join(note.read_text(encoding="utf-8").split()) if missed else ""
    assert [name for name in missed if f"`{name}`" not in text] == []
    known = {**find_studies("benchmarks"), **find_studies()}
    if report.name in known:
        assert report.provenance.command == known[report.name].command(report.preset)
        assert report.question == known[report.name].question


@needs_repository
def test_every_page_is_as_it_is_stored():
    from benchmarks import documents

    stale = [name for name, text in documents.pages().items()
             if not (ROOT / "docs" / name).exists()
             or (ROOT / "docs" / name).read_text(encoding="utf-8") != text]  # fmt: skip
    assert stale == [], "run make docs"


@needs_repository
def test_readme_says_from_which_studies_the_rows_of_two_studies_come():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("A row is one port, with")[2]
    for name in ("synapses", "beside-others"):
        given = stored(ROOT / f"results/{name}-full.json").provenance.parameters
        assert f"[`{name}`](docs/measurements/port.md#" in text
        assert given["steps"] == 8
        assert given["bits"] == [16, 8, 4]
        assert re.search(rf"\b{given['sentences']}\b", text)


@needs_repository
def test_every_study_is_on_a_page_and_every_note_belongs_to_something():
    from benchmarks import documents

    shown = {name for _, names in documents.PAGES.values() for name in names}
    assert {*find_studies("benchmarks"), *find_studies()} <= shown
    notes = {path.stem for path in (ROOT / "results/notes").glob("*.md")}
    sections = {f"claims-{key.replace(' ', '-')}" for key in documents.SECTIONS}
    pages = {f"page-{page}" for page in (*documents.PAGES, "index")}
    assert notes <= shown | pages | sections | {"claims"}


@needs_repository
def test_a_page_names_only_commands_that_exist():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
    ours, claims = find_studies("benchmarks"), find_studies()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"python -m benchmarks ([a-z][\w-]*)", text)) - {"documents"}
        assert named <= set(ours), page.name
        named = set(re.findall(r"isospike reproduce ([a-z][\w-]*)", text))
        assert named <= {*claims, *ours}, page.name


@needs_repository
def test_a_claim_names_code_and_tests_that_exist():
    text = (ROOT / "results/claims.toml").read_text(encoding="utf-8")
    listed = tomllib.loads(text)["claim"]
    for claim in listed:
        for name in claim["code"]:
            assert find(f"isospike.{name}") is not None, name
        for path in re.findall(r"`(tests/[\w/.]+)`", claim["test"]):
            assert (ROOT / path).exists(), path
        for name in re.findall(r"study `([\w-]+)`", claim["test"]):
            assert name in STUDIES, name
    tested = {claim["study"] for claim in listed if "study" in claim}
    assert tested == {name for name, one in find_studies().items() if one.statement}


def find(name):
    """The module or attribute of this name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    return None


def test_a_report_survives_a_file_of_another_version(tmp_path):
    path = tmp_path / "old-tiny.json"
    path.write_text('{"title": "old"}')
    with pytest.raises(InputError, match=r"from_json needs 'provenance', got none"):
        stored(path)
    assert issubclass(StudyReport, object)


@needs_repository
def test_tunes_are_read_by_collection_without_what_is_damaged(tmp_path):
    folk_tunes = importlib.import_module("benchmarks.streams").folk_tunes
    for name, tune in (("a/1.abc", "CDE"), ("a/2.abc", "=20"), ("a/3.abc", "F"), ("b/1.abc", "G")):
        (tmp_path / "tunes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tunes" / name).write_text(f"X:1\nL:1/4\nK:C\n{tune}\n")
    found = folk_tunes(tmp_path)
    assert found == {"a, notes": ["60/24", "62/24", "64/24", "65/24"], "b, notes": ["67/24"]}
    assert folk_tunes(None) == {}
