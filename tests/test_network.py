"""Graphs of spiking layers: order, sums, cycles, state; attention in nodes of NIR."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isospike.deploy.attention import mask_attention, spike_and, spike_or, token_attention
from isospike.deploy.build import Builder, convolution
from isospike.deploy.network import (
    Chain,
    Network,
    Port,
    Reshape,
    Scale,
    Shift,
    SumPool2d,
    Threshold,
)
from isospike.deploy.nir import spread_resets
from isospike.deploy.sequential import sequential_network
from isospike.errors import InputError, RangeError, ShapeError, UnsupportedError
from isospike.neurons import IF, LIF, PLIF, Delay, Integrator, NeuronParams
from isospike.presets import spikingjelly_lif

ATTENTION = spikingjelly_lif(v_threshold=0.5)


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def linear(rows, bias=None):
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None).requires_grad_(False)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(torch.tensor(bias))
    return layer


def joined(nodes, edges, shapes=None, size=1, outputs=("out",)):
    ends = {"in": Port(), **{name: Port() for name in outputs}}
    return Network({**nodes, **ends}, edges, {"in": (size,)}, list(outputs), shapes=shapes)


def recurrent(weight, bias=None):
    """Neurons that read their own spikes of the step before."""
    return joined(
        {"lif": LIF(NeuronParams(0.5, reset_to=0.0)), "back": linear(weight, bias)},
        [("in", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "out")],
        {"lif": (len(weight),), "back": (len(weight),)},
        len(weight),
    )


def test_edges_into_one_node_are_summed():
    network = joined({"a": Scale(torch.tensor(2.0)), "b": Shift(torch.tensor(1.0))},
                     [("in", "a"), ("in", "b"), ("a", "out"), ("b", "out")])  # fmt: skip
    assert network(torch.full((2, 1, 1), 3.0)).flatten().tolist() == [10, 10]


def test_a_cycle_through_neurons_carries_the_spikes_of_the_step_before():
    # h = 1 (fires), .25 + 1/2 of nothing - 4 of its own spike, ...
    network = recurrent([[-4.0]])
    x = torch.ones(4, 1, 1)
    # step 0: h = 1, fires, v = 0. step 1: 1 - 4 = -3. step 2: -1.5 + 1 = -.5. step 3: .75
    assert network(x).flatten().tolist() == [1, 0, 0, 0]
    _, state = network.run(x)
    assert state.nodes["lif"].v.item() == 0.75


def test_what_a_cycle_adds_is_added_from_the_first_step_on():
    network = recurrent([[0.0]], [1.0])
    assert network(torch.zeros(3, 1, 1)).flatten().tolist() == [1, 1, 1]


def test_a_delay_on_a_cycle_is_that_delay_and_no_more():
    nodes = {"sum": Port(), "wait": Delay(2)}
    edges = [("in", "sum"), ("sum", "wait"), ("wait", "sum"), ("sum", "out")]
    network = joined(nodes, edges, {"sum": (1,)})
    x = torch.zeros(7, 1, 1)
    x[0] = 1
    assert network(x).flatten().tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert nodes["wait"].steps.item() == 2


@pytest.mark.parametrize("layer", [Scale(torch.tensor(0.5)), Delay(0), Port()], ids=["x", "0", "-"])
def test_a_cycle_that_remembers_nothing_is_refused_by_its_names(layer):
    with pytest.raises(UnsupportedError, match="a delay on every cycle, got none on 'sum' -> 'x'"):
        joined({"sum": Port(), "x": layer}, [("in", "sum"), ("sum", "x"), ("x", "sum"),
                                              ("sum", "out")])  # fmt: skip


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_network_may_be_cut_anywhere_in_time(cut):
    network = recurrent([[0.5, -1.0], [0.25, 0.0]], [0.1, 0.2])
    x = 2 * draw(6, 3, 2, seed=cut)
    whole, end = network.run(x)
    head, state = network.run(x[:cut])
    tail, state = network.run(x[cut:], state)
    assert torch.equal(torch.cat([head, tail]), whole)
    assert torch.equal(state.nodes["lif"].v, end.nodes["lif"].v)


def test_a_chain_has_the_state_of_each_of_its_layers():
    chain = Chain([Integrator(), Shift(torch.tensor(0.5)), LIF()])
    x = draw(6, 2, 3)
    whole, _ = chain.run(x)
    head, state = chain.run(x[:2])
    tail, _ = chain.run(x[2:], state)
    assert torch.equal(torch.cat([head, tail]), whole)
    assert torch.equal(whole, LIF()(Integrator()(x) + 0.5))


def test_several_inputs_and_outputs_go_by_name():
    nodes = {"a": Port(), "b": Port(), "sum": Port(), "half": Scale(torch.tensor(0.5))}
    network = Network(nodes, [("a", "sum"), ("b", "sum"), ("sum", "half")],
                      {"a": (2,), "b": (2,)}, ["sum", "half"])  # fmt: skip
    y = network({"a": torch.ones(1, 1, 2), "b": torch.ones(1, 1, 2)})
    assert {name: value.flatten().tolist() for name, value in y.items()} == {
        "sum": [2, 2],
        "half": [1, 1],
    }
    with pytest.raises(InputError, match="needs an input for each of 'a', 'b', got one tensor"):
        network(torch.ones(1, 1, 2))
    with pytest.raises(InputError, match="got 'a'. Pass a dict"):
        network({"a": torch.ones(1, 1, 2)})
    with pytest.raises(ShapeError, match="as many steps and rows of each input"):
        network({"a": torch.ones(1, 1, 2), "b": torch.ones(2, 1, 2)})


def test_a_network_that_does_not_hang_together_is_refused():
    with pytest.raises(InputError, match="got one at 'lost', which there is not"):
        joined({}, [("in", "out"), ("lost", "out")])
    with pytest.raises(InputError, match="an edge into every node, got none into 'alone'"):
        joined({"alone": LIF()}, [("in", "out")])
    with pytest.raises(ShapeError, match=r"needs 'in' of shape \[steps, batch, 1\], got \(3, 1, 2"):
        joined({}, [("in", "out")])(torch.zeros(3, 1, 2))
    with pytest.raises(
        InputError, match="the shape of each node whose edge closes a cycle, got no"
    ):
        joined({"a": LIF(NeuronParams())}, [("in", "a"), ("a", "a"), ("a", "out")])


def test_sums_over_windows_are_sums():
    x = draw(2, 3, 5, 5)
    right = F.avg_pool2d(x, 3, 2, 1) * 9
    torch.testing.assert_close(SumPool2d((3, 3), (2, 2), (1, 1))(x), right)


@pytest.mark.parametrize("params", [
    NeuronParams(0.5), NeuronParams(1.0, threshold=2.0), NeuronParams(0.75, gain=0.5, bias=0.125),
    NeuronParams(0.5, reset_by=0.5), NeuronParams(0.0),
])  # fmt: skip
def test_a_reset_by_subtraction_is_an_integrator_a_threshold_and_a_delay(params):
    build = Builder()
    build.output("out", build.add("n", LIF(params), build.input("in", (8, 2))))
    network = build.network()
    spread = spread_resets(network)
    x = torch.randint(-64, 160, (40, 5, 8, 2), generator=torch.Generator().manual_seed(0)) / 64
    assert {type(layer).__name__ for layer in spread.layers} == {
        "Integrator", "Threshold", "Scale", "Delay", "Port"
    }  # fmt: skip
    assert torch.equal(spread(x), network(x))


# Attention.


@pytest.mark.parametrize("inputs", [2, 5])
def test_neurons_that_forget_are_an_and_and_an_or(inputs):
    spikes = (draw(200, inputs, 50) < 0.5).float()
    found = spikes.sum(1)
    assert torch.equal(spike_or()(found), (found >= 1).float())
    two = spikes[:, :2].sum(1)
    assert torch.equal(spike_and()(two), (two == 2).float())


def spikes_of(rate, *shape, seed):
    return (draw(*shape, seed=seed) < rate).float()


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_token_attention_is_a_mask_of_each_head(heads):
    shape, rate = (8, 3, 5), 0.5 / (8 // heads)
    q, k = spikes_of(rate, 9, 4, *shape, seed=1), spikes_of(0.5, 9, 4, *shape, seed=2)
    build = Builder()
    ends = [build.input(name, shape) for name in "qk"]
    build.output("out", token_attention(build, "a", *ends, 8, heads, LIF(ATTENTION)))
    found = build.network()({"q": q, "k": k})
    mask = LIF(ATTENTION)(q.unflatten(2, (heads, -1)).sum(3))
    right = (mask[:, :, :, None] * k.unflatten(2, (heads, -1))).flatten(2, 3)
    assert 0.05 < mask.mean() < 0.95
    assert torch.equal(found, right)
    with pytest.raises(RangeError, match="channels a multiple of heads, got 8 and 3"):
        token_attention(build, "b", *ends, 8, 3, LIF(ATTENTION))


@pytest.mark.parametrize("shape", [(4, 3, 3), (6, 2, 5), (3, 1, 1)])
def test_mask_attention_is_a_mask_of_each_channel(shape):
    rate = 0.7 / (shape[1] * shape[2]) ** 0.5
    q, k, v = (spikes_of(rate, 9, 4, *shape, seed=n) for n in range(3))
    build = Builder()
    ends = [build.input(name, shape) for name in "qkv"]
    build.output("out", mask_attention(build, "a", *ends, shape, LIF(ATTENTION)))
    found = build.network()(dict(zip("qkv", (q, k, v), strict=True)))
    mask = LIF(ATTENTION)((k * v).sum((-1, -2), keepdim=True))
    assert 0.05 < mask.mean() < 0.95
    assert torch.equal(found, mask * q)


# Layers one after the other.


def layers(seed=0):
    torch.manual_seed(seed)
    found = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), LIF(ATTENTION), nn.Dropout(),
        nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2),
        IF(NeuronParams(threshold=0.5)), nn.Flatten(), nn.Linear(32, 10), nn.BatchNorm1d(10),
        PLIF(NeuronParams(bias=0.25, gain=2.0)),
    )  # fmt: skip
    for norm in (found[1], found[9]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight, 1, 0.2)
    return found.eval().requires_grad_(False)


def stepwise(model, x):
    """The layers one by one, in torch's own shapes."""
    for layer in model:
        if hasattr(layer, "run"):
            x = layer(x)
        else:
            y = layer(x.flatten(0, 1))
            x = y.view(*x.shape[:2], *y.shape[1:])
    return x


def test_layers_one_after_the_other_become_a_network_of_the_same_spikes():
    with torch.random.fork_rng():
        model = layers()
    x = 2 * draw(12, 20, 2, 8, 8)
    network, refused = sequential_network(model, (2, 8, 8))
    right = stepwise(model, x)
    assert refused == []
    assert 0.1 < right.mean() < 0.9
    assert (network(x) != right).float().mean() < 1e-3  # a fold rounds otherwise
    assert not any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in network.modules())


def test_a_layer_without_a_node_is_refused_or_left_out_between_ports():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2), LIF(), nn.Flatten(),
                          nn.Linear(16, 3), nn.Softmax(-1))  # fmt: skip
    with pytest.raises(
        UnsupportedError, match="got 2 others; the first is '1', MaxPool2d: a maximum of currents"
    ):
        sequential_network(model, (2, 4, 4))
    network, refused = sequential_network(model, (2, 4, 4), partial=True)
    assert [(part.name, part.kind) for part in refused] == [("1", "MaxPool2d"), ("5", "Softmax")]
    assert network.inputs == {"input": (2, 4, 4), "1": (4, 2, 2), "5": (3,)}
    assert network.outputs == ["1_input", "5_input", "output"]
    with pytest.raises(InputError, match=r"needs an nn.Sequential, got Linear\. Put the layers in"):
        sequential_network(nn.Linear(2, 2), (2,))


def test_a_flattening_of_the_batch_and_a_product_of_images_are_refused():
    for model, reason in (
        (nn.Sequential(nn.Flatten(0)), "it joins the batch"),
        (nn.Sequential(nn.Linear(4, 2)), "it reads 3 axes"),
    ):
        with pytest.raises(UnsupportedError, match=reason):
            sequential_network(model, (2, 4, 4))


def test_a_threshold_fires_at_its_value_and_a_shape_is_taken():
    x = torch.tensor([[[0.0, 1.0, 2.0, 0.5]]])
    assert Threshold(torch.tensor(1.0))(x).flatten().tolist() == [0, 1, 1, 0]
    assert Reshape((2, 2))(x).shape == (1, 1, 2, 2)
    assert convolution(torch.ones(1, 1, 1, 1), torch.ones(1)).bias.item() == 1
