"""Ports of whole architectures with all functions on spikes."""

import sys
from pathlib import Path

import models
import pytest
import torch

import isospike

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").exists():
    pytest.skip("the package is tested without its benchmarks", allow_module_level=True)
sys.path.insert(0, str(ROOT))

import benchmarks.zoo.models  # noqa: E402, F401, registers them
from benchmarks.zoo.registry import ENTRIES, draw, make  # noqa: E402

ARCHITECTURES = {
    "GPT-NeoX/Pythia": {"relay"},  # queries, keys and values in one product
    "Phi-3": {"relay", "product"},  # and gate and up
    "GLM4": {"relay", "product"},
    "Falcon (new decoder)": {"relay"},  # linears of its own
    "Nemotron": {"relay", "product"},  # the square of a ReLU
    "Llama4 text": {"relay", "product", "normalisation"},  # complex rotation, L2 norm
    "NanoChat": {"relay", "normalisation"},  # norms without a weight
    "Doge": {"activation"},  # softplus
    "MPNet": {"softmax"},  # attention written out
    "Qwen3-MoE": {"softmax", "product"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_function_of_an_architecture_stays_in_float(name, tmp_path):
    entry = ENTRIES[name]
    model = make(entry)
    calibration, held, batch = (draw(entry.inputs, n, s) for n, s in ((16, 1), (6, 2), (3, 3)))
    result = isospike.port(model, [calibration], evaluation=[held], functions="spiking")
    assert result.report.in_float == {}
    assert result.report.counts.spiking_float_ops == {}
    assert {c.kind for c in result.report.circuits} >= ARCHITECTURES[name]
    collapsed, stepped = (models.run(result.model, batch, how) for how in ("collapsed", "stepped"))
    assert torch.equal(collapsed, stepped)
    result.save(tmp_path / "port")
    assert torch.equal(models.run(isospike.load(tmp_path / "port"), batch), collapsed)
