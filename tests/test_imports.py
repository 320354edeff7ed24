"""Importing isospike loads nothing heavy, and shows its public names. (Layers: import-linter.)"""

import itertools
import subprocess
import sys
from importlib.metadata import version

import pytest

import isospike


def test_importing_isospike_loads_no_heavy_package():
    heavy = ["torch", "numpy", "transformers", "plotly", "rich", "typer", "scipy", "sklearn"]
    script = f"import isospike, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout.strip(), done.stderr.strip()) == ("[]", "")


@pytest.mark.parametrize("name", isospike.__all__)
def test_every_public_name_can_be_imported(name):
    value = getattr(isospike, name)
    assert getattr(value, "__doc__", None), f"{name} has no docstring"
    assert name in dir(isospike)


def test_the_version_is_that_of_the_package():
    assert isospike.__version__ == version("isospike")


NAMES = ("LlamaConfig", "BertModel", "AutoConfig", "BertConfig", "AutoModelForImageClassification")
QUICK = {("LlamaConfig", True), ("BertModel", False)}  # each is a process that imports torch


@pytest.mark.parametrize(
    ("name", "before"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK))
        for case in itertools.product(NAMES, (True, False))
    ],
)
def test_whatever_of_transformers_is_imported_first_its_lists_know_our_models(name, before):
    ours = ["import isospike", f"from transformers import {name}"]
    script = [
        *(ours if before else ours[::-1]),
        "from transformers import AutoModelForSequenceClassification as Auto, AutoConfig",
        "config = AutoConfig.for_model('isospike-spiking-bert', hidden_size=12, vocab_size=9)",
        "assert type(Auto.from_config(config)).__name__ == 'SpikingBert'",
        "assert type(AutoConfig.for_model('isospike-qkformer')).__name__ == 'QKFormerConfig'",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_module_of_models_may_be_the_first_that_is_imported(name):
    place = f"transformers.models.{name}.modeling_{name}"
    subprocess.run([sys.executable, "-c", f"import isospike, {place}"], check=True)


def test_an_unknown_name_is_refused_by_name():
    with pytest.raises(AttributeError, match="'isospike' has no attribute 'prot'"):
        _ = isospike.prot
