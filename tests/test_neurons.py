"""Neurons: one recurrence in three engines, its gradients, its contracts."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves, tree_map_only

from isospike.errors import MissingExtraError, RangeError, ShapeError, UnsupportedError
from isospike.neurons import (
    IF,
    LIF,
    PLIF,
    NeuronParams,
    NeuronState,
    compile_neuron,
    fold_norm,
    run,
    spiking,
    step,
)
from isospike.presets import spikingjelly_lif
from isospike.surrogate import SURROGATES

compiled = pytest.mark.parametrize("engine", ["cpu", "gpu"])
every = pytest.mark.parametrize("engine", ["reference", "cpu", "gpu"])
MODELS = {
    "IF": NeuronParams(decay=1.0, threshold=1.5),
    "LIF": NeuronParams(decay=0.5),
    "LIF to a value": NeuronParams(decay=0.75, gain=0.5, bias=0.125, reset_to=-0.25),
    "LIF by another amount": NeuronParams(decay=0.5, reset_by=0.5, detach_reset=False),
}
models = pytest.mark.parametrize("params", MODELS.values(), ids=MODELS)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch, request):
    """The Triton engine runs in Triton's interpreter; see tests/SKIPS.md."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if params.get("engine") == "gpu":
        if importlib.util.find_spec("triton") is None:
            pytest.skip("triton is not installed")
        if torch.cuda.is_available():
            send_to_gpu(monkeypatch)
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def send_to_gpu(monkeypatch):
    """Where there is a GPU, the compiled engine computes there what tests ask of it on a CPU."""
    gpu = importlib.import_module("isospike.kernels.neuron.gpu")  # before it would be interpreted

    def sent(compute):
        def run(*given):
            there = tree_map_only(torch.Tensor, torch.Tensor.cuda, given)
            compute(*there)
            for here, result in zip(tree_leaves(given[1:]), tree_leaves(there[1:]), strict=True):
                if here is not None:
                    here.copy_(result)

        return run

    for name in ("forward", "backward"):
        monkeypatch.setattr(gpu, name, sent(getattr(gpu, name)))


def draw(seed):
    return torch.Generator().manual_seed(seed)


def grid(*shape, seed=0):
    """Multiples of 1/64, many of which meet thresholds exactly."""
    return torch.randint(-64, 160, shape, generator=draw(seed)) / 64


def random_params(shape, hard, seed):
    """One of every kind: per channel, per row, shared."""
    g = draw(seed)
    params = {
        "decay": torch.rand(shape[-1], generator=g),
        "gain": torch.rand(shape[0], *[1] * (len(shape) - 1), generator=g) + 0.5,
        "bias": torch.rand((), generator=g) / 4,
        "threshold": torch.rand(shape[-1], generator=g) + 0.5,
    }
    params["reset_to" if hard else "reset_by"] = torch.rand(shape, generator=g)
    return params


@every
def test_lif_hand_trace(engine):
    # decay 1/2, threshold 1, input 3/4: binary fractions, so the floats are exact.
    # h = 0.75  1.125  0.8125  1.15625    s = 0 1 0 1    v = 0.75  0.125  0.8125  0.15625
    spikes, state = run(torch.full((4, 1), 0.75), engine=engine)
    assert spikes[:, 0].tolist() == [0, 1, 0, 1]
    assert state.v.item() == 0.15625


@every
def test_reset_to_a_value_by_hand(engine):
    # decay 1/2, gain 2, bias 1/4, threshold 1, reset to -1/2, from v = 1/2; input 1/4.
    # h = 1  0.5  1  0.5    s = 1 0 1 0    v = -0.5  0.5  -0.5  0.5
    params = NeuronParams(gain=2.0, bias=0.25, reset_to=-0.5)
    x, state = torch.full((4, 1), 0.25), NeuronState(torch.tensor([0.5]))
    spikes, state = run(x, state, params, engine=engine)
    assert spikes[:, 0].tolist() == [1, 0, 1, 0]
    assert state.v.item() == 0.5


@every
def test_integrate_and_fire_counts_to_its_threshold(engine):
    # 3/8 a step and a threshold of 1: 8 spikes in 64/3 steps. At the threshold it fires.
    spikes, _ = run(torch.full((64, 1), 0.375), None, NeuronParams(decay=1.0), engine=engine)
    assert spikes.sum() == 24
    assert run(torch.ones(3, 1), None, NeuronParams(decay=1.0), engine=engine)[0].sum() == 3


@compiled
@models
def test_engines_give_the_same_spikes_at_the_threshold_too(engine, params):
    x, v = grid(7, 5, 6), grid(5, 6, seed=1)
    spikes, state = run(x, NeuronState(v), params, engine="reference")
    assert 0.1 < spikes.mean() < 0.9
    ours, end = run(x, NeuronState(v), params, engine=engine)
    assert torch.equal(ours, spikes)
    assert torch.equal(end.v, state.v)


@given(
    seed=st.integers(0, 2**31),
    steps=st.integers(1, 9),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    hard=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_cpu_engine_equals_the_reference_bit_for_bit(seed, steps, shape, hard, dtype):
    x = torch.randn(steps, *shape, generator=draw(seed)).to(dtype)
    params = NeuronParams(**random_params(shape, hard, seed))
    state = NeuronState(torch.randn(shape, generator=draw(seed + 1)))
    spikes, end = run(x, state, params, engine="reference")
    ours, last = run(x, state, params, engine="cpu")
    assert ours.dtype == dtype
    assert torch.equal(ours, spikes)
    assert torch.equal(last.v, end.v)


def test_many_neurons_and_threads_change_nothing():
    x = torch.randn(3, 5, 7001, generator=draw(0))
    params = NeuronParams(**random_params((5, 7001), False, 1))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(x, None, params, engine="cpu"))
    finally:
        torch.set_num_threads(threads)
    spikes, end = run(x, None, params, engine="reference")
    for ours, last in results:
        assert torch.equal(ours, spikes)
        assert torch.equal(last.v, end.v)


@compiled
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES)
def test_gradients_equal_those_of_the_reference(engine, hard, detach, surrogate):
    shape, found = (3, 4), {}
    for name in ("reference", engine):
        x = grid(5, *shape).requires_grad_()
        v = grid(*shape, seed=1).requires_grad_()
        params = {k: p.requires_grad_() for k, p in random_params(shape, hard, 2).items()}
        spikes, state = run(
            x,
            NeuronState(v),
            NeuronParams(**params, detach_reset=detach, surrogate=surrogate()),
            engine=name,
        )
        up = torch.randn(spikes.shape, generator=draw(3))
        loss = (spikes * up).sum() + (state.v * up[0]).sum()
        found[name] = torch.autograd.grad(loss, [x, v, *params.values()])
    for true, ours in zip(found["reference"], found[engine], strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-6, atol=1e-6 * true.abs().max().item())


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES)
def test_gradients_of_neurons_that_share_their_numbers(surrogate, hard):
    numbers = NeuronParams(0.5, 0.75, 0.1, 0.8, 0.6, 0.2 if hard else None, surrogate=surrogate())
    if hard:
        numbers = numbers._replace(reset_by=None)
    found = []
    for engine in ("reference", "cpu"):
        x = (3 * torch.randn(6, 2, 700, generator=draw(0))).requires_grad_()
        spikes, state = run(x, None, numbers, engine=engine)
        up = torch.randn(spikes.shape, generator=draw(1))
        found.append(torch.autograd.grad((spikes * up).sum() + state.v.sum(), x)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("surrogate", "dtype"),
    [*((s, torch.float32) for s in SURROGATES.values()), (SURROGATES["Sigmoid"], torch.bfloat16)],
)
def test_a_gradient_of_a_single_step_is_the_documented_derivative(surrogate, dtype):
    x = torch.linspace(-3, 5, 400).to(dtype).requires_grad_()
    params = NeuronParams(gain=0.5, surrogate=surrogate())
    spikes, _ = run(x[None], None, params, engine="cpu")
    (ours,) = torch.autograd.grad(spikes.sum(), x)
    true = 0.5 * surrogate().derivative(0.5 * x.detach().double() - 1)
    torch.testing.assert_close(ours, true.to(dtype), rtol=1e-6, atol=1e-6)


def test_gradients_reach_only_what_asks_for_them():
    x = torch.randn(3, 4, generator=draw(0))
    decay = torch.full((4,), 0.5, requires_grad=True)
    spikes, state = run(x, None, NeuronParams(decay=decay))
    (spikes.sum() + state.v.sum()).backward()
    assert decay.grad is not None
    last = run(x.requires_grad_(), None, NeuronParams())[1]
    (only,) = torch.autograd.grad(last.v.sum(), x)
    assert only.isfinite().all()


def test_what_is_kept_for_the_gradient_is_the_input():
    x = torch.randn(4, 100, generator=draw(0)).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        LIF()(x)
    assert sum(t.numel() for t in kept if t.numel() > 1) == x.numel()
    assert any(t.data_ptr() == x.data_ptr() for t in kept), "the tensor itself, not a copy"


def test_the_reference_may_be_differentiated_twice():
    x = torch.randn(3, 2, generator=draw(0), dtype=torch.float64).requires_grad_()
    spikes, _ = run(x, None, NeuronParams(), engine="reference")
    (first,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.abs().sum() > 0


# Contracts, of every neuron and engine.


@every
@models
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_run_may_be_cut_anywhere_in_time(engine, params, cut):
    x = grid(6, 3, seed=cut)
    whole, end = run(x, None, params, engine=engine)
    head, state = run(x[:cut], None, params, engine=engine)
    tail, state = run(x[cut:], state, params, engine=engine)
    assert torch.equal(torch.cat([head, tail]), whole)
    assert torch.equal(state.v, end.v)


@every
@models
def test_batches_are_independent_and_inputs_unwritten(engine, params):
    x, v = grid(5, 4, 3), grid(4, 3, seed=1)
    before, order = (x.clone(), v.clone()), torch.tensor([2, 0, 3, 1])
    whole, end = run(x, NeuronState(v), params, engine=engine)
    moved, _ = run(x[:, order], NeuronState(v[order]), params, engine=engine)
    assert torch.equal(moved, whole[:, order])
    two = [run(x[:, i : i + 2], NeuronState(v[i : i + 2]), params, engine=engine) for i in (0, 2)]
    assert torch.equal(torch.cat([s for s, _ in two], 1), whole)
    assert torch.equal(torch.cat([state.v for _, state in two]), end.v)
    assert torch.equal(x, before[0])
    assert torch.equal(v, before[1])


@every
@models
def test_a_step_is_a_run_of_one_step(engine, params):
    x = grid(4, 3)
    state, spikes = None, []
    for current in x:
        s, state = step(current, state, params, engine=engine)
        spikes.append(s)
    whole, end = run(x, None, params, engine=engine)
    assert torch.equal(torch.stack(spikes), whole)
    assert torch.equal(state.v, end.v)


@every
@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [
        (torch.float32, torch.uint8),
        (torch.float32, torch.bool),
        (torch.bfloat16, torch.uint8),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_spikes_come_in_the_type_that_is_asked_for(engine, dtype, given_dtype):
    x = grid(4, 9).to(given_dtype)
    spikes, state = run(x, dtype=dtype, engine=engine)
    assert spikes.dtype == dtype
    assert state.v.dtype == torch.float32
    assert torch.equal(spikes.float(), run(x, engine="reference")[0].float())


def test_a_repeated_image_is_not_copied_and_strides_do_not_matter():
    image = grid(3, 8)
    repeated, _ = run(image.expand(5, 3, 8))
    assert torch.equal(repeated, run(image.repeat(5, 1, 1))[0])
    x = grid(8, 3, 5)
    assert torch.equal(run(x.transpose(0, 2))[0], run(x.transpose(0, 2).contiguous())[0])


def test_an_empty_batch_stays_empty():
    spikes, state = run(torch.zeros(4, 0, 3))
    assert spikes.shape == (4, 0, 3)
    assert state.v.shape == (0, 3)


# Modules.


@pytest.mark.parametrize("layer", [IF(), LIF(), PLIF()], ids=["IF", "LIF", "PLIF"])
def test_layers_remember_nothing(layer):
    x = grid(5, 4)
    first, state = layer.run(x)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer.run(x, state)[0], run(x, state, layer.params)[0])
    assert not [n for n in layer.state_dict() if n != "w"]


def test_a_layer_holds_tensors_and_learns_parameters():
    decay = torch.nn.Parameter(torch.tensor([0.25, 0.75]))
    layer = LIF(NeuronParams(decay=decay, threshold=torch.tensor([1.0, 0.5])))
    assert sorted(layer.state_dict()) == ["decay", "threshold"]
    layer(grid(5, 2)).sum().backward()
    assert decay.grad.abs().sum() > 0
    other = LIF(NeuronParams(decay=torch.zeros(2), threshold=torch.ones(2)))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(grid(5, 2)), layer(grid(5, 2)))


def test_plif_is_built_without_memory_as_transformers_builds_a_model_it_loads():
    with torch.device("meta"):
        assert PLIF().w.is_meta


def test_plif_starts_at_its_decay_and_learns_it():
    layer = PLIF(NeuronParams(decay=0.75))
    assert layer.params.decay.item() == pytest.approx(0.75)
    assert layer.params.gain.item() == pytest.approx(0.25)
    assert PLIF(input_decays=False).params.gain == 1.0
    x = 4 * grid(5, 3)
    (grad,) = torch.autograd.grad(layer(x).sum(), layer.w)
    layer.engine = "reference"
    (true,) = torch.autograd.grad(layer(x).sum(), layer.w)
    torch.testing.assert_close(grad, true)


def test_integrate_and_fire_has_no_leak():
    assert IF(NeuronParams(decay=0.3)).params.decay == 1.0


def test_a_normalisation_folds_into_the_neuron():
    norm = torch.nn.BatchNorm2d(3).eval()
    g = draw(0)
    with torch.no_grad():
        for p in (norm.weight, norm.bias, norm.running_mean):
            p.copy_(torch.randn(3, generator=g))
        norm.running_var.copy_(torch.rand(3, generator=g) + 0.1)
    x = torch.randn(4, 2, 3, 5, 5, generator=g)
    apart, _ = run(norm(x.flatten(0, 1)).view(x.shape), None, spikingjelly_lif())
    folded, _ = run(x, None, fold_norm(spikingjelly_lif(), norm, axes=2))
    assert apart.mean() > 0.03
    assert (apart != folded).sum() == 0
    with pytest.raises(UnsupportedError, match="^fold_norm needs a batch normalisation with"):
        fold_norm(NeuronParams(), torch.nn.LayerNorm(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
@pytest.mark.parametrize("params", [spikingjelly_lif(), NeuronParams(reset_by=0.5)])
def test_compiled_neurons_give_the_same_spikes(params, dtype):
    params = params._replace(bias=torch.randn(6, generator=draw(0)))
    neuron = compile_neuron(params, 6)
    for x in (torch.randn(3, 5, 4, 6, generator=draw(1)), torch.randn(1, 5, 6).expand(4, 5, 6)):
        spikes, _ = run(x, None, params, dtype=dtype)
        assert torch.equal(neuron(x, dtype), spikes)
        assert spikes.dtype == dtype
    with pytest.raises(ShapeError, match="needs bias broadcastable to one step"):
        compile_neuron(params, 7)


# Bad input.


@every
def test_no_steps_are_refused(engine):
    with pytest.raises(ShapeError, match=r"at least one step along axis 0, got shape \(0, 3\)"):
        run(torch.zeros(0, 3), engine=engine)


@every
def test_a_state_of_another_batch_is_refused_even_where_it_would_broadcast(engine):
    with pytest.raises(ShapeError, match=r"got state.v \(1,\) and x \(2, 3\)"):
        run(torch.zeros(2, 3), NeuronState(torch.zeros(1)), engine=engine)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_a_state_of_another_type_is_refused(engine, dtype):
    with pytest.raises(RangeError, match="needs state.v as a torch.float32 tensor on cpu, got"):
        run(torch.zeros(2, 3), NeuronState(torch.zeros(3, dtype=dtype)), engine=engine)


def test_a_state_of_another_device_is_refused():
    with pytest.raises(RangeError, match="tensor on cpu, got torch.float32 on meta"):
        run(torch.zeros(2, 3), NeuronState(torch.zeros(3, device="meta")))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.complex64])
def test_input_that_is_not_one_of_these_types_is_refused(dtype):
    with pytest.raises(RangeError, match=f"float64 input, or whole numbers, got {dtype}"):
        run(torch.zeros(2, 3, dtype=dtype))


@pytest.mark.parametrize("decay", [-0.1, 1.0001, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay):
    for value in (decay, torch.tensor([0.5, decay])):
        with pytest.raises(RangeError, match="^run needs decay (in|to be finite)"):
            run(torch.zeros(2, 2), None, NeuronParams(decay=value))


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("inf")])
def test_a_threshold_that_is_not_above_zero_is_refused(threshold):
    for value in (threshold, torch.tensor([1.0, threshold])):
        with pytest.raises(RangeError, match="^run needs threshold (above|to be finite)"):
            run(torch.zeros(2, 2), None, NeuronParams(threshold=value))


def test_a_layer_refuses_its_parameters_when_it_is_made_and_in_its_own_name():
    with pytest.raises(RangeError) as error:
        LIF(NeuronParams(decay=2.0))
    assert str(error.value) == (
        "LIF needs decay in [0, 1], got 2. Use 0.5, or 1 for no leak; PLIF keeps a learned one "
        "inside."
    )
    with pytest.raises(RangeError, match="^IF needs threshold above 0, got -1 to 1. Use 1"):
        IF(NeuronParams(threshold=torch.tensor([1.0, -1.0])))
    with pytest.raises(ShapeError, match="^PLIF needs at least one step"):
        PLIF()(torch.zeros(0, 3))


def test_two_kinds_of_reset_are_refused():
    with pytest.raises(RangeError, match="one kind of reset, got reset_by=1.0 and reset_to=0.0"):
        run(torch.zeros(2, 2), None, NeuronParams(reset_by=1.0, reset_to=0.0))


@pytest.mark.parametrize("shape", [(2,), (3, 1, 1), (1, 1, 3)])
def test_a_parameter_must_broadcast_to_one_step(shape):
    with pytest.raises(ShapeError, match=r"needs gain broadcastable to one step \(4, 3\), got"):
        run(torch.zeros(2, 4, 3), None, NeuronParams(gain=torch.ones(shape)))


def test_a_parameter_of_another_type_is_refused():
    with pytest.raises(RangeError, match="needs bias as a torch.float32 tensor on cpu"):
        run(torch.zeros(2, 3), None, NeuronParams(bias=torch.zeros(3, dtype=torch.float64)))


def test_an_unknown_engine_and_one_for_another_device_are_refused(monkeypatch):
    with pytest.raises(UnsupportedError, match="a known engine, got 'cuda'. Use one of auto, ref"):
        run(torch.zeros(2, 3), engine="cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        UnsupportedError, match="on the device of engine='gpu', got torch.float32 on cpu"
    ):
        run(torch.zeros(2, 3), engine="gpu")
    with pytest.raises(
        UnsupportedError, match="on the device of engine='cpu', got torch.float32 on meta"
    ):
        run(torch.zeros(2, 3, device="meta"), engine="cpu")


def test_float64_runs_step_by_step():
    x = grid(4, 3).double()
    assert torch.equal(run(x)[0], run(x.float())[0].double())
    assert run(x)[1].v.dtype == torch.float64
    with pytest.raises(UnsupportedError, match="engine='cpu', got torch.float64 on cpu"):
        run(x, engine="cpu")


def test_byte_spikes_have_no_gradient():
    x = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(
        UnsupportedError, match="floating-point spikes where gradients are recorded"
    ):
        run(x, dtype=torch.uint8)
    with torch.no_grad():
        assert run(x, dtype=torch.uint8)[0].dtype == torch.uint8
    with pytest.raises(RangeError, match=r"torch.uint8 or torch.bool, got torch.int64"):
        run(x, dtype=torch.int64)


def test_a_decay_that_cannot_be_learned_from_is_refused():
    with pytest.raises(RangeError, match="strictly between 0 and 1 to start from, got 1.0"):
        PLIF(NeuronParams(decay=1.0))


def test_a_missing_triton_names_its_extra(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "isospike.kernels.neuron.gpu", raising=False)
    with pytest.raises(
        MissingExtraError, match=r"needs the package triton, got none. Install isospike\[gpu\]"
    ):
        run(torch.zeros(2, 3), engine="gpu")


def test_a_compiled_engine_refuses_a_second_derivative():
    x = torch.randn(3, 4, generator=draw(0)).requires_grad_()
    (first,) = torch.autograd.grad(LIF()(x).sum(), x, create_graph=True)
    with pytest.raises(
        UnsupportedError, match="needs engine='reference' to be differentiated twice"
    ):
        torch.autograd.grad(first.sum(), x)


COLD = """
import sys, torch, isospike
layer = isospike.LIF()
first = layer(torch.full((4, 2), 0.75))
assert "numba" not in sys.modules, "small runs wait for no compiler"
isospike.neurons.spiking._waits.spent = 1.0
assert torch.equal(layer(torch.full((4, 2), 0.75)), first)
assert "numba" in sys.modules, "later runs are compiled"
"""


def test_the_first_neuron_of_a_process_waits_for_no_compiler():
    subprocess.run([sys.executable, "-c", COLD], check=True)


def test_training_uses_one_engine_from_the_first_step_on(monkeypatch):
    waits = spiking._waits
    monkeypatch.setattr(waits, "spent", 0.0)
    x = torch.rand(4, 3, requires_grad=True)
    LIF()(x).sum().backward()
    assert waits.spent == 0
    LIF()(x.detach())
    assert 0 < waits.spent < 0.5
