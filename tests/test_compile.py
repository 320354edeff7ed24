"""torch.compile: run without the jaxtyping hook, which Dynamo cannot trace (see pyproject.toml)."""

import pytest
import torch

import isospike
from isospike.codes import CODES
from isospike.errors import RangeError
from isospike.neurons import NeuronParams
from isospike.products import spike_attention, spike_linear, spike_matmul

# Dynamo itself makes an instance of the autograd functions it traces.
tracing = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.mark.parametrize("name", ["signed-digit", "phase", "latency"])
def test_a_code_compiles_to_one_graph_and_gives_the_same_spikes(name):
    code = CODES[name](6)
    x = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    integers = code.integers(x)
    compiled = torch.compile(code.encode_integers, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(integers), code.encode_integers(integers))


def test_a_ported_model_compiles_and_gives_the_same_output():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config).eval()
    ids = torch.randint(0, 50, (8, 6), generator=torch.Generator().manual_seed(1))
    ported = isospike.port(model, [{"input_ids": ids}], steps=6).model
    with torch.no_grad():
        expected = ported(input_ids=ids).last_hidden_state
        compiled = torch.compile(ported, backend="aot_eager")
        assert torch.equal(compiled(input_ids=ids).last_hidden_state, expected)


def test_a_port_that_computes_products_where_they_are_called_is_not_compiled():
    class Gram(torch.nn.Module):
        def forward(self, x):
            return (x @ x.mT) @ x

    x = torch.randn(24, 6, 8, generator=torch.Generator().manual_seed(0))
    port = isospike.port(Gram(), [{"x": x}]).model
    with pytest.raises(
        isospike.UnsupportedError, match="needs a port whose matrix products are all"
    ):
        torch.compile(port, backend="aot_eager")(x)


@tracing
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_spike_products_compile_to_one_graph_with_their_gradients(precision):
    draw = torch.Generator().manual_seed(0)
    s = (torch.rand(4, 9, generator=draw) < 0.4).float()
    weight = torch.randn(5, 9, generator=draw).requires_grad_()

    def product(s, weight):
        return spike_linear(s, weight, precision=precision), spike_matmul(s, s.t())

    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    for ours, true in zip(compiled(s, weight), product(s, weight), strict=True):
        assert torch.equal(ours, true)
    grads = [
        torch.autograd.grad(f(s, weight)[0].float().sum(), weight) for f in (compiled, product)
    ]
    assert torch.equal(grads[0][0], grads[1][0])


@tracing
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_neuron_compiles_to_one_graph_with_its_gradients(engine):
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer = isospike.PLIF(engine=engine)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    grads = [torch.autograd.grad(f(x).sum(), (x, layer.w)) for f in (compiled, layer)]
    for ours, true in zip(*grads, strict=True):
        assert torch.equal(ours, true)


@tracing
@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize(("name", "outside"), [("decay", 1.3), ("threshold", -0.5)])
def test_a_learned_number_that_leaves_its_range_is_refused_in_a_graph_too(engine, name, outside):
    learned = torch.nn.Parameter(torch.tensor([0.9, 0.5, 0.25]))
    layer = isospike.LIF(NeuronParams(**{name: learned}), engine=engine)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(compiled(x), layer(x))
    grads = [torch.autograd.grad(f(x).sum(), learned)[0] for f in (compiled, layer)]
    assert torch.equal(*grads)
    with torch.no_grad():
        learned[1] = outside
    for f in (layer, compiled):
        with pytest.raises(RangeError, match=f"^LIF needs {name} .*, got "):
            f(x)


@tracing
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_spike_attention_compiles_to_one_graph_under_autocast_too(dtype):
    q = (torch.rand(2, 9, 4, generator=torch.Generator().manual_seed(0)) < 0.4).to(dtype)
    compiled = torch.compile(spike_attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, q, q), spike_attention(q, q, q))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(q, q, q), spike_attention(q, q, q))


@tracing
def test_spikes_that_cannot_be_packed_are_refused_in_a_graph_too():
    compiled = torch.compile(
        lambda s, w: spike_linear(s, w, pack=True), fullgraph=True, backend="aot_eager"
    )
    s, weight = torch.ones(2, 3), torch.ones(2, 3).requires_grad_()
    assert torch.equal(compiled(s, weight), spike_linear(s, weight))
    with pytest.raises(RangeError, match="needs spikes of 0 or 1 to pack them as bits, got 2"):
        compiled(2 * s, weight)


@tracing
def test_a_graph_of_any_length_serves_all():
    layer = isospike.LIF(NeuronParams(decay=torch.tensor([0.25, 0.5, 0.75])))

    def both(x, w):
        s = layer(x)
        return spike_linear(s, w), spike_matmul(s, s.mT), spike_attention(s, s, s[:1])

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    w = torch.ones(2, 3)
    for steps, rows in ((4, 5), (6, 7), (9, 2)):
        x = torch.randn(steps, rows, 3, generator=torch.Generator().manual_seed(rows))
        for ours, true in zip(compiled(x, w), both(x, w), strict=True):
            assert torch.equal(ours, true)
