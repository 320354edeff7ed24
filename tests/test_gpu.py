"""What a GPU needs of the library, where there is none: see pretend.py, and benchmarks/gpu.py."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from models import batches, make, run, switch
from pretend import DEVICE, Pretended, Pretending, moved, real

import isospike
from isospike.codes import BernoulliCode
from isospike.kernels.runtime import precision
from isospike.kernels.runtime.precision import _NAME, _NEW, _without_tf32

# The exact kernels of a CPU have another order of rounding.
CLOSE = 1e-5


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bert", {}),
        pytest.param("llama", {"functions": "spiking"}, marks=pytest.mark.slow),
        pytest.param("bert", {"steps": isospike.Target(0.1)}, marks=pytest.mark.slow),
        pytest.param("vit", {}, marks=pytest.mark.slow),
        pytest.param("gpt2", {"steps": 12}, marks=pytest.mark.slow),
    ],
)
def test_a_model_on_another_device_is_ported_there(name, settings):
    model, inputs = make(name), batches(name, rows=8, held=4)
    expected = isospike.port(model, inputs, **settings)
    with Pretending():
        got = isospike.port(moved(model), moved(inputs), **settings)
    assert got.report.error == pytest.approx(expected.report.error, rel=1e-3)
    assert got.report.counts.spikes == pytest.approx(expected.report.counts.spikes, rel=1e-3)


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_a_port_moves_with_all_that_it_reads(name):
    inputs = batches(name, rows=8, held=4)
    model = isospike.port(make(name), inputs).model
    expected = run(model, inputs[1])
    with Pretending():
        model.to(DEVICE)
        for execution in ("collapsed", "stepped"):
            got = run(model, moved(inputs[1]), execution)
            assert isinstance(got, Pretended)
            torch.testing.assert_close(real(got), expected, rtol=CLOSE, atol=CLOSE)


def test_a_fast_port_that_has_run_moves_too():
    inputs = batches("bert", rows=8, held=4)
    model = isospike.port(make("bert"), inputs).model
    switch(model, precision="fast")
    expected = run(model, inputs[1])  # keeps its weights in bfloat16
    with Pretending():
        model.to(DEVICE)
        got = real(run(model, moved(inputs[1])))
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)


def test_a_generator_of_the_cpu_draws_the_spikes_of_another_device():
    x = torch.rand(50, generator=torch.Generator().manual_seed(0))
    code = BernoulliCode(6)
    expected = code.integers(x, generator=torch.Generator().manual_seed(1))
    with Pretending():
        got = code.integers(moved(x), generator=torch.Generator().manual_seed(1))
    assert isinstance(got, Pretended)
    assert torch.equal(real(got), expected)


def switches():
    conv = torch.backends.cudnn.conv if _NEW else torch.backends.cudnn
    return getattr(torch.backends.cuda.matmul, _NAME), getattr(conv, _NAME)


def test_products_of_a_port_are_not_rounded_to_tf32_and_the_users_choice_comes_back():
    before, exact = switches(), (precision._OFF, precision._OFF)
    try:
        torch.set_float32_matmul_precision("high")
        allowed = switches()
        with _without_tf32():
            with _without_tf32():
                assert switches() == exact
            assert switches() == exact
        assert switches() == allowed
    finally:
        precision._switch(before)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("kinds", [(0, 0, 0, 0, 0), (1, 2, 0, 1, 2)])
@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_the_neurons_kernels_compile_for_a_gpu(name, small, kinds):
    # Elsewhere than here, where other tests may have loaded them for the interpreter.
    given = json.dumps({"name": name, "small": small, "kinds": kinds})
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    code = [sys.executable, "-c", COMPILE, given]
    done = subprocess.run(code, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from isospike.kernels.neuron import gpu

given = json.loads(sys.argv[1])
kernel = getattr(gpu, given["name"])
names = kernel.arg_names
constants = {"hard": True, "detach": False, "kind": 0, "given": True, "keep": True, "BLOCK": 64,
             "has_spikes": True, "has_last": True, "learn": True, "small": given["small"],
             **{f"k{i}": kind for i, kind in enumerate(given["kinds"])}}
constants = {n: c for n, c in constants.items() if n in names}
whole = {"stride", "steps", "neurons", *(f"{a}{i}" for a in "ni" for i in range(5))}
signature = {n: "constexpr" if n in constants else "i64" if n in whole else "fp32" if n == "alpha"
             else "*fp32" for n in names}
source = ASTSource(kernel, signature, {(names.index(n),): c for n, c in constants.items()})
assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""
