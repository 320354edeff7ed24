"""torch.compile: run without the jaxtyping hook, which Dynamo cannot trace (see pyproject.toml)."""

import pytest
import torch

import isospike
from isospike.codes import CODES
from isospike.products import spike_linear, spike_matmul

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
