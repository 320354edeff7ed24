"""The scripts and notebooks of examples. Notebooks are run by tests/test_documents.py as pages."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks
SCRIPTS = sorted(ROOT.glob("examples/*.py"))
NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))
QUICK = ("export_nir.py", "own_model.py")

pytestmark = pytest.mark.skipif(not SCRIPTS, reason="the package is tested without its examples")


def case(path):
    return pytest.param(path, id=path.name, marks=() if path.name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("path", [case(path) for path in SCRIPTS])
def test_an_example_runs_and_prints_what_it_found(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert len(capsys.readouterr().out) > 40


def test_there_are_eight_scripts_of_one_screen_and_four_notebooks():
    assert len(SCRIPTS) == 8
    assert len(NOTEBOOKS) == 4
    for path in SCRIPTS:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert 18 <= len(lines) <= 40, path.name
        assert lines[0].startswith('"""'), path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_with_what_it_printed_and_no_error(path):
    from benchmarks.examples import read_notebook

    code = [cell for cell in read_notebook(path) if cell["cell_type"] == "code"]
    kinds = [one["output_type"] for cell in code for one in cell["outputs"]]
    assert set(kinds) == {"stream"}
    assert all(cell["outputs"] for cell in code if "print(" in "".join(cell["source"]))
    assert all(one["name"] == "stdout" for cell in code for one in cell["outputs"])
