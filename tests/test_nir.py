"""NIR files: what we write is read by us, by an oracle in NumPy and by SpikingJelly."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from isospike.deploy.attention import mask_attention, token_attention
from isospike.deploy.build import Builder, convolution
from isospike.deploy.network import Network, Port, Reshape, Scale, SumPool2d, Threshold
from isospike.deploy.nir import from_nir, read_nir, to_nir, write_nir
from isospike.errors import InputError, MissingExtraError, RangeError, UnsupportedError
from isospike.neurons import IF, LIF, CubaLIF, Delay, Integrator, IntegratorParams, NeuronParams
from isospike.presets import spikingjelly_lif

DT = 1e-4


def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nir", None)
    for call in (lambda: read_nir(tmp_path / "a"), lambda: to_nir(one(LIF(), (2,)))):
        with pytest.raises(
            MissingExtraError, match=r"the package nir, got none\. Install isospike"
        ):
            call()


def one(layer, shape):
    build = Builder()
    build.output("out", build.add("layer", layer, build.input("in", shape)))
    return build.network()


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def nir():
    return pytest.importorskip("nir")


@pytest.fixture
def oracle(nir):  # noqa: ARG001
    from nir_oracle import run_file

    return run_file


HARD = NeuronParams(0.5, gain=0.75, threshold=0.7, reset_to=-0.25)
LAYERS = {
    "linear": (nn.Linear(6, 4, bias=False), (6,)),
    "affine": (nn.Linear(6, 4), (6,)),
    "conv 1": (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (4, 9)),
    "conv 2": (nn.Conv2d(2, 6, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 7, 5)),
    "same": (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 7, 5)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (4, 6, 5)),
    "average": (nn.AvgPool2d(2, padding=1), (3, 6, 4)),
    "sum": (SumPool2d((2, 3), (2, 1), (1, 0)), (3, 6, 5)),
    "flatten": (Reshape((2, 15)), (2, 3, 5)),
    "flatten single pixels": (Reshape((4,)), (4, 1, 1)),
    "scale": (Scale(torch.tensor([0.5, -2.0])), (2,)),
    "threshold": (Threshold(torch.tensor([0.5, 0.25])), (2,)),
    "delay": (Delay(torch.tensor([0, 1, 5])), (3,)),
    "integrator": (Integrator(IntegratorParams(1.0, 0.5)), (3,)),
    "leaky integrator": (Integrator(IntegratorParams(torch.tensor([0.5, 0.75, 0.25]))), (3,)),
    "IF": (IF(NeuronParams(threshold=1.5, reset_to=0.0)), (3, 2)),
    "LIF": (LIF(HARD), (3, 2)),
    "LIF each": (LIF(HARD._replace(threshold=torch.tensor([[0.5], [0.7], [0.9]]))), (3, 2)),
    "LIF by subtraction": (LIF(NeuronParams(0.75)), (3,)),
    "CubaLIF": (CubaLIF(HARD, IntegratorParams(0.75, 0.5)), (3,)),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_every_node_is_read_as_it_was_written_by_us_and_by_the_oracle(
    layer, shape, oracle, tmp_path
):
    network = one(layer, shape)
    write_nir(network, tmp_path / "a.nir")
    x = torch.round(128 * draw(12, 3, *shape)) / 64
    with torch.no_grad():
        y, again = network(x), read_nir(tmp_path / "a.nir")(x)
    torch.testing.assert_close(again, y, rtol=1e-6, atol=1e-6)
    (right,) = oracle(tmp_path / "a.nir", {"in": x.numpy()}, DT).values()
    torch.testing.assert_close(torch.from_numpy(right).float(), y, rtol=1e-5, atol=1e-5)


def recurrent():
    weight = torch.tensor([[0.0, -0.5], [0.75, 0.25]])
    back = nn.Linear(2, 2).requires_grad_(False)
    back.weight.copy_(weight)
    back.bias.copy_(torch.tensor([0.25, 0.125]))
    edges = [("in", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "out")]
    nodes = {"in": Port(), "lif": LIF(HARD), "back": back, "out": Port()}
    return Network(nodes, edges, {"in": (2,)}, ["out"], shapes={"lif": (2,), "back": (2,)})


def test_recurrences_and_sums_are_read_as_they_were_written(oracle, tmp_path):
    network = recurrent()
    write_nir(network, tmp_path / "a.nir")
    x = 2 * draw(50, 20, 2)
    y = network(x)
    assert 0.1 < y.mean() < 0.9
    assert torch.equal(read_nir(tmp_path / "a.nir")(x), y)
    right = oracle(tmp_path / "a.nir", {"in": x.numpy()}, DT)["out"]
    assert np.array_equal(right, y.numpy())


def test_a_graph_inside_a_graph_is_one_network(nir):
    inner = to_nir(recurrent())
    graph = nir.NIRGraph(
        {"in": nir.Input(np.array([2])), "body": inner, "out": nir.Output(np.array([2]))},
        [("in", "body"), ("body", "out")],
        type_check=False,
    )
    network = from_nir(graph)
    assert set(network.places) == {"in", "out", *(f"body.{n}" for n in inner.nodes)}
    x = 2 * draw(20, 3, 2)
    assert torch.equal(network(x), recurrent()(x))


# Attention, read by others.


def attention(kind, shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    channels = shape[0]
    build = Builder()
    x = build.input("in", shape)
    ends = []
    for name in "qkv":
        weight = torch.randn(channels, channels, 1, 1, generator=g) * 6 / channels**0.5
        bias = 0.1 * torch.randn(channels, generator=g)
        current = build.add(f"{name}_conv", convolution(weight, bias), x)
        ends.append(build.add(name, LIF(spikingjelly_lif()), current))
    mask = LIF(spikingjelly_lif(v_threshold=0.5))
    if kind == "token":
        build.edges = [e for e in build.edges if "v" not in e and "v_conv" not in e]
        del build.nodes["v"], build.nodes["v_conv"]
        build.output("out", token_attention(build, "a", *ends[:2], channels, 4, mask))
    else:
        build.output("out", mask_attention(build, "a", *ends, shape, mask))
    return build.network()


@pytest.mark.parametrize("kind", ["token", "mask"])
@pytest.mark.parametrize("shape", [(16, 4, 4), (8, 3, 3)])
def test_attention_gives_the_oracle_the_same_spikes(kind, shape, oracle, tmp_path):
    network = attention(kind, shape)
    write_nir(network, tmp_path / "a.nir", {"code": "binary", "steps": 8})
    x = (draw(8, 4, *shape) < 0.3).float()
    y = network(x)
    assert 0.02 < y.mean() < 0.9
    assert torch.equal(read_nir(tmp_path / "a.nir")(x), y)
    right = oracle(tmp_path / "a.nir", {"in": x.numpy()}, DT)["out"]
    assert np.array_equal(right, y.numpy())


@pytest.mark.parametrize("kind", ["token", "mask"])
@pytest.mark.filterwarnings("ignore")
def test_attention_gives_spikingjelly_the_same_spikes(kind, nir, tmp_path):  # noqa: ARG001
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    network = attention(kind, (16, 4, 4))
    write_nir(network, tmp_path / "a.nir")
    x = (draw(8, 4, 16, 4, 4) < 0.3).float()
    theirs = exchange.import_from_nir(tmp_path / "a.nir", dt=DT)
    state, found = None, []
    for frame in x:
        y, state = theirs(frame, state)
        found.append(y)
    assert torch.equal(torch.stack(found), network(x))


@pytest.mark.parametrize("kind", ["LIF", "IF", "CubaLIF"])
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_spikingjelly_is_its_own_run(kind, nir, tmp_path):  # noqa: ARG001
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    from spikingjelly.activation_based import functional, layer, neuron

    node = {"LIF": neuron.LIFNode, "IF": neuron.IFNode, "CubaLIF": neuron.CUBALIFNode}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = nn.Sequential(layer.Linear(12, 32), node(), layer.Linear(32, 32), node())
    for part in (theirs[0], theirs[2]):
        part.weight.data *= 3
        part.bias.data += 0.3
    x = draw(20, 8, 12)
    exchange.export_to_nir(theirs, x[0], save_path=tmp_path / "a.nir")
    functional.reset_net(theirs)
    with torch.no_grad():
        right = torch.stack([theirs(frame) for frame in x])
    assert 0 < right.mean() < 1
    assert torch.equal(read_nir(tmp_path / "a.nir")(x), right)


# Bad files.


def test_a_file_that_is_no_nir_or_is_cut_short_is_refused(nir, tmp_path):  # noqa: ARG001
    write_nir(one(nn.Linear(200, 100), (200,)), tmp_path / "a.nir")
    whole = (tmp_path / "a.nir").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"no file", whole[::-1]):
        (tmp_path / "b.nir").write_bytes(content)
        with pytest.raises(InputError, match=r"read_nir needs a NIR file, got .*b.nir"):
            read_nir(tmp_path / "b.nir")
    with pytest.raises(InputError, match="read_nir needs an existing file"):
        read_nir(tmp_path / "none.nir")


def test_a_damaged_file_is_refused_or_reads_as_before(nir, tmp_path):  # noqa: ARG001
    network = one(LIF(HARD), (8,))
    write_nir(network, tmp_path / "a.nir")
    whole = (tmp_path / "a.nir").read_bytes()
    places = torch.randint(len(whole), (60,), generator=torch.Generator().manual_seed(0)).tolist()
    for place in places:
        (tmp_path / "b.nir").write_bytes(
            whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]
        )
        said = "it needs nothing"
        try:
            read_nir(tmp_path / "b.nir")
        except (InputError, UnsupportedError, RangeError) as error:
            said = str(error)
        assert "needs" in said


def edited(tmp_path, edit):
    import h5py

    write_nir(one(LIF(HARD), (3,)), tmp_path / "a.nir")
    with h5py.File(tmp_path / "a.nir", "r+") as file:
        edit(file["node/nodes/layer"])
    return tmp_path / "a.nir"


def replaced(name, value):
    def edit(node):
        del node[name]
        if value is not None:
            node.create_dataset(name, data=value)

    return edit


@pytest.mark.parametrize(("edit", "kind", "says"), [
    (replaced("type", "Dendrite"), UnsupportedError, "got 'layer' of kind Dendrite"),
    (replaced("tau", None), InputError, "parameters of a LIF in 'layer', got others: .*tau"),
    (replaced("type", None), InputError, "a type for every node, got none for 'layer'"),
    (replaced("tau", np.full(3, 5e-5)), UnsupportedError, "node 'layer', a LIF: a step needs"),
    (replaced("v_threshold", np.full(3, np.nan)), RangeError, "'layer', a LIF: .*threshold"),
    (replaced("v_threshold", np.full(3, -1.0)), RangeError, "needs threshold above 0, got -1"),
    (replaced("tau", np.full(4, 2e-4)), InputError, "parameters of a LIF in 'layer'"),
])  # fmt: skip
def test_a_node_that_is_wrong_is_refused_by_its_name(edit, kind, says, nir, tmp_path):  # noqa: ARG001
    with pytest.raises(kind, match=says):
        read_nir(edited(tmp_path, edit))


def test_another_step_is_refused(nir, tmp_path):
    write_nir(one(LIF(HARD), (3,)), tmp_path / "a.nir")
    assert read_nir(tmp_path / "a.nir", dt=DT).dt == DT
    with pytest.raises(InputError, match=r"the dt of the file, 0.0001 s, got 0.001 s\. Leave dt"):
        read_nir(tmp_path / "a.nir", dt=1e-3)
    with pytest.raises(RangeError, match="needs dt > 0, in seconds, got -1"):
        read_nir(tmp_path / "a.nir", dt=-1.0)
    nodes = {"i": nir.Input(np.array([1])), "d": nir.Delay(np.array([2.5e-4])),
             "o": nir.Output(np.array([1]))}  # fmt: skip
    with pytest.raises(UnsupportedError, match="a whole number of steps of 0.0001 s, got 2.5"):
        from_nir(nir.NIRGraph(nodes, [("i", "d"), ("d", "o")]))


def test_shapes_that_do_not_fit_and_a_graph_without_ends_are_refused(nir):
    nodes = {"i": nir.Input(np.array([3])), "a": nir.Linear(np.ones((2, 4))),
             "o": nir.Output(np.array([2]))}  # fmt: skip
    with pytest.raises(InputError, match="nodes whose shapes fit together, got others"):
        from_nir(nir.NIRGraph(nodes, [("i", "a"), ("a", "o")], type_check=False))
    with pytest.raises(InputError, match="needs an Input and an Output, got 0 and 1 of them"):
        from_nir(nir.NIRGraph({"o": nodes["o"]}, [], type_check=False))


def test_a_layer_that_nir_does_not_have_is_refused_by_its_name(nir):  # noqa: ARG001
    for layer, shape, says in (
        (nn.Softmax(-1), (3,), "a layer that NIR has in 'layer', got a Softmax"),
        (LIF(HARD._replace(bias=0.5)), (3,), "neurons without a bias in 'layer', got one"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), (1, 4, 4), "zeros as padding"),
        (nn.AvgPool2d(2, ceil_mode=True), (1, 5, 5), "an average of whole windows"),
        (nn.Linear(4, 2), (3, 4), "a linear layer of one axis"),
    ):
        with pytest.raises(UnsupportedError, match=says):
            to_nir(one(layer, shape))


def test_a_tie_fires_whether_the_reader_asks_for_more_or_not(oracle, tmp_path):
    network = one(LIF(NeuronParams(0.5, threshold=1.0, reset_to=0.0)), (1,))
    write_nir(network, tmp_path / "a.nir")
    x = torch.tensor([1.0, 0.5, 0.75, 0.0, 2.0]).view(-1, 1, 1)
    right = network(x).flatten().tolist()
    assert right == [1, 0, 1, 0, 1]
    for strict in (False, True):
        found = oracle(tmp_path / "a.nir", {"in": x.numpy()}, DT, strict=strict)["out"]
        assert found.ravel().tolist() == right


def test_a_strict_reader_does_not_fire_at_the_threshold(nir):
    values = {n: np.full(1, v) for n, v in {"tau": 2e-4, "r": 2.0, "v_leak": 0.0}.items()}
    node = nir.LIF(**values, v_threshold=np.ones(1), v_reset=np.zeros(1))
    graph = nir.NIRGraph.from_list(node)
    x = torch.tensor([1.0, 1.0]).view(-1, 1, 1)
    assert from_nir(graph)(x).flatten().tolist() == [1, 1]
    assert from_nir(graph, strict=True)(x).flatten().tolist() == [0, 1]
