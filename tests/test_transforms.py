"""``torch.func``: what it maps and differentiates equals what is computed one by one."""

import pytest
import torch
from torch.func import functional_call, grad, jacrev, vmap

from isospike.codes import CODES, RankOrderCode, nof_m
from isospike.errors import RangeError, UnsupportedError
from isospike.neurons import LIF, PLIF, NeuronParams, NeuronState, run, step
from isospike.positions import POSITIONS, position
from isospike.products import spike_attention, spike_linear, spike_matmul
from isospike.surrogate import SURROGATES, spike


def draw(seed):
    return torch.Generator().manual_seed(seed)


X = torch.randn(5, 4, 3, generator=draw(0))  # rows, steps, neurons
SPIKES = torch.rand(5, 4, 6, generator=draw(1)) < 0.4


@pytest.mark.parametrize("kind", SURROGATES.values(), ids=SURROGATES)
def test_a_spike_may_be_mapped_and_differentiated(kind):
    u = X.flatten()
    assert torch.equal(vmap(lambda x: spike(x, kind()))(u), spike(u, kind()))
    slopes = vmap(grad(lambda x: spike(x, kind())))(u)
    torch.testing.assert_close(slopes, kind().derivative(u))
    bends = vmap(grad(grad(lambda x: spike(x, kind()))))(u)
    torch.testing.assert_close(bends, vmap(grad(lambda x: kind().derivative(x)))(u))


@pytest.mark.parametrize("params", [NeuronParams(), NeuronParams(reset_to=0.0, detach_reset=False)])
def test_neurons_may_be_mapped_over_rows_states_and_parameters(params):
    spikes, state = vmap(lambda x: run(x, None, params))(X)
    for row, s, v in zip(X, spikes, state.v, strict=True):
        own, end = run(row, None, params)
        assert torch.equal(s, own)
        assert torch.equal(v, end.v)
    again = vmap(lambda x, v: step(x, NeuronState(v), params)[0])(X[:, 0], state.v)
    assert torch.equal(again[2], step(X[2, 0], NeuronState(state.v[2]), params)[0])
    decays = torch.tensor([0.25, 0.5, 1.0])
    each = vmap(lambda decay: run(X[0], None, params._replace(decay=decay))[0])(decays)
    for decay, s in zip(decays, each, strict=True):
        assert torch.equal(s, run(X[0], None, params._replace(decay=decay))[0])


def test_gradients_of_neurons_row_by_row_are_those_of_each_row():
    weight = torch.randn(4, 3, generator=draw(2))

    def loss(x, decay):
        return (run(x, None, NeuronParams(decay=decay))[0] * weight).sum()

    decay = torch.full((3,), 0.75)
    by_row = vmap(grad(loss, argnums=(0, 1)), (0, None))(X, decay)
    for i, row in enumerate(X):
        x, d = row.clone().requires_grad_(), decay.clone().requires_grad_()
        alone = torch.autograd.grad(loss(x, d), (x, d))
        for ours, true in zip(by_row, alone, strict=True):
            torch.testing.assert_close(ours[i], true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [LIF(), PLIF()], ids=["LIF", "PLIF"])
def test_layers_may_be_called_with_other_parameters(layer):
    held = dict(layer.named_parameters())

    def loss(held, x):
        return functional_call(layer, held, (x,)).sum()

    assert vmap(loss, (None, 0))(held, X).tolist() == [layer(x).sum().item() for x in X]
    assert grad(loss)(held, X[0]).keys() == held.keys()


def test_a_value_out_of_range_is_seen_within_a_map():
    with pytest.raises(RangeError, match="run needs decay in .0, 1., got 0.5 to 1.5"):
        vmap(lambda d: run(X[0], None, NeuronParams(decay=d))[0])(torch.tensor([0.5, 1.5]))
    with pytest.raises(RangeError, match=r"needs values in .*got 1.5 \(1 of 3 outside"):
        vmap(CODES["phase"](4).quantize)(torch.tensor([0.5, 1.5, 0.0]))
    with pytest.raises(RangeError, match=r"whole numbers in \[0, 255\], got 0.5"):
        vmap(lambda s: spike_linear(s, torch.ones(2, 3)))(torch.full((5, 3), 0.5))


def test_a_compiled_engine_is_refused_within_a_map():
    with pytest.raises(UnsupportedError, match="got torch.float32 on cpu within torch.func. Move"):
        vmap(lambda x: run(x, engine="cpu")[0])(X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_linear_product_may_be_mapped(dtype, precision):
    weight, bias = torch.randint(-9, 9, (7, 6), generator=draw(3)).float(), torch.arange(7.0)
    s = SPIKES.to(dtype)
    mapped = vmap(lambda row: spike_linear(row, weight, bias, precision=precision, pack=True))(s)
    assert torch.equal(mapped, spike_linear(s, weight, bias, precision=precision))
    weights = torch.stack([weight, -weight])
    both = vmap(lambda w: spike_linear(s, w, precision=precision))(weights)
    assert torch.equal(both[1], -both[0])


def test_gradients_of_the_linear_product_row_by_row():
    weight = torch.randn(7, 6, generator=draw(3))

    def loss(weight, s):
        return spike_linear(s, weight).square().sum()

    by_row = vmap(grad(loss), (None, 0))(weight, SPIKES)
    for s, ours in zip(SPIKES, by_row, strict=True):
        own = weight.clone().requires_grad_()
        (true,) = torch.autograd.grad(loss(own, s), own)
        torch.testing.assert_close(ours, true)
    assert jacrev(lambda w: spike_linear(SPIKES[0], w))(weight).shape == (4, 7, 7, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_counts_may_be_mapped_and_differentiated(dtype):
    s = SPIKES.to(dtype)
    assert torch.equal(vmap(spike_matmul)(s, s.mT), spike_matmul(s, s.mT))
    assert torch.equal(vmap(spike_attention)(s, s, s), spike_attention(s, s, s))
    if dtype == torch.float32:
        ours = grad(lambda q: spike_attention(q, s, s).square().sum())(s)
        q = s.clone().requires_grad_()
        (true,) = torch.autograd.grad(spike_attention(q, s, s).square().sum(), q)
        torch.testing.assert_close(ours, true)


@pytest.mark.parametrize("name", [name for name in CODES if name != "bernoulli"])
@pytest.mark.parametrize("action", ["encode", "quantize", "count"])
def test_a_code_may_be_mapped(name, action):
    call = getattr(CODES[name](6), action)
    x = torch.rand(5, 3, generator=draw(4))
    assert torch.equal(vmap(call)(x), torch.stack([call(row) for row in x]))
    if action == "quantize":
        assert torch.equal(grad(lambda x: call(x).sum())(x), torch.zeros(5, 3))


def test_orders_may_be_mapped():
    x = X[:, 0]
    assert torch.equal(vmap(lambda row: nof_m(row, 2))(x), nof_m(x, 2))
    code = RankOrderCode(2)
    assert torch.equal(vmap(code.quantize)(x), code.quantize(x))


@pytest.mark.parametrize("name", [name for name in POSITIONS if name != "randomized"])
def test_encodings_may_be_mapped(name):
    encoding = position(name, width=8, heads=2, length=9)
    x = torch.randn(5, 2, 9, 4 if name == "rope" else 8, generator=draw(5))
    torch.testing.assert_close(vmap(encoding.add)(x), encoding.add(x))
    mapped = vmap(encoding.rotate)(x, x)
    for ours, true in zip(mapped, encoding.rotate(x, x), strict=True):
        torch.testing.assert_close(ours, true)
