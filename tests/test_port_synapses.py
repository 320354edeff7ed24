"""Ports whose weights are whole numbers of 8 or 4 bits."""

import json

import pytest
import torch
from torch import nn

import isospike
from isospike.energy import INT8_45NM, Counts, estimate_energy, memory_moved_bytes
from isospike.errors import InputError, RangeError
from isospike.kernels.product import int8
from isospike.porting import product
from isospike.porting.equal_bits import EqualBits
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import run_of
from isospike.porting.sites import Site
from isospike.porting.tables import round_tables, tables_of


class Reader(nn.Module):
    """Tokens, an MLP with one channel that is much larger than the others, and a head."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = nn.Embedding(50, 24)
            self.up, self.down, self.head = nn.Linear(24, 96), nn.Linear(96, 24), nn.Linear(24, 50)
        with torch.no_grad():
            self.up.weight[:, 5] *= 20

    def forward(self, x):
        h = self.table(x)
        return self.head(torch.tanh(h + self.down(torch.relu(self.up(h)))))


def batches(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [{"x": torch.randint(50, (8, 12), generator=draw)} for _ in range(count)]


@pytest.fixture(scope="module")
def model():
    return Reader().eval()


@pytest.fixture(scope="module", params=[8, 4])
def port(request, model):
    return isospike.port(model, batches(4), evaluation=batches(1, 9), weight_bits=request.param)


def products(port):
    found = Ported.of(port.model).products
    return [p for p in found if isinstance(p, SpikingProduct)]


def test_stepped_and_collapsed_are_equal_bit_for_bit(port):
    (batch,) = batches(1, 7)
    with torch.no_grad():
        collapsed = port.model(**batch)
        with run_of(port.model).switched(execution="stepped"):
            assert torch.equal(port.model(**batch), collapsed)


@pytest.mark.parametrize("code", ["signed-digit", "phase"])
@pytest.mark.parametrize("passes", [1, 2])
def test_eight_bits_in_products_of_bytes_give_the_bits_of_float32(model, code, passes, monkeypatch):
    # One site gets a step more: its bytes still are small enough for every machine.
    port = isospike.port(model, batches(2), steps=5, weight_bits=8, code=code).model
    (batch,) = batches(1, 7)
    reads = []

    def read(site, x, dtype=torch.float32, **options):
        reads.append(dtype)
        return site_read(site, x, dtype, **options)

    site_read = Site.read
    monkeypatch.setattr(Site, "read", read)
    with torch.no_grad():
        monkeypatch.setattr(product, "byte_passes", lambda span: 0)
        wanted = port(**batch)
        assert set(reads) == {torch.float32}
        reads.clear()
        monkeypatch.setattr(int8, "largest_spike", lambda: int8.MAX_PAIRED_SPIKE)
        monkeypatch.setattr(product, "byte_passes", lambda span: passes)
        assert torch.equal(port(**batch), wanted)
        assert set(reads) == {torch.uint8 if passes == 1 else torch.int16}


def test_every_weight_is_a_whole_number_of_its_bits(port):
    for each in products(port):
        q = each.weight / each.quantum
        assert torch.equal(q, q.round())
        assert -(2 ** (each.weight_bits - 1)) <= q.min()
        assert q.max() < 2 ** (each.weight_bits - 1)


def test_a_large_channel_has_several_synapses(port):
    first = products(port)[0]
    assert set(first.twins.tolist()) == {5}
    assert first.weight.shape == (96, 24 + len(first.twins))


def test_fewer_bits_err_more_and_less_than_the_quantised_network(model, port):
    sixteen = isospike.port(model, batches(4), evaluation=batches(1, 9)).report
    report, bits = port.report, port.report.counts.weight_bits
    assert bits in (8, 4)
    assert sixteen.error < report.error < report.error_quantised
    assert report.error < {8: 3, 4: 30}[bits] * sixteen.error


def test_a_saved_port_holds_whole_numbers_and_answers_as_before(port, model, tmp_path):
    from safetensors import safe_open

    port.save(tmp_path / "port")
    loaded = isospike.load(tmp_path / "port", Reader())
    (batch,) = batches(1, 3)
    with torch.no_grad():
        assert torch.equal(loaded(**batch), port.model(**batch))
    bits = int(port.report.counts.weight_bits)
    with safe_open(tmp_path / "port" / "isospike.safetensors", "pt") as file:
        weight, table = file.get_tensor("up.weight"), file.get_tensor("table.weight")
    assert weight.dtype == {8: torch.int8, 4: torch.uint8}[bits]
    numbers = products(port)[0].weight.numel()
    if bits == 8:
        assert (weight.nbytes, table.nbytes) == (numbers, 50 * 4 + 50 * 24)
    else:  # a prefix code; of a few numbers its table is a share
        assert weight.nbytes <= 4.2 / 8 * numbers
        assert table.nbytes <= 50 * 4 + 6.2 / 8 * 50 * 24


@pytest.mark.parametrize("bits", [8, 4])
def test_products_that_share_further_synapses_are_saved_each(bits, tmp_path):
    class Three(Reader):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                self.second, self.third = nn.Linear(24, 96), nn.Linear(24, 96)

        def forward(self, x):
            h = self.table(x)
            return self.up(h) + self.second(h) - self.third(h)

    model = Three().eval()
    port = isospike.port(model, batches(2), weight_bits=bits)
    assert all(set(p.twins.tolist()) == {5} for p in products(port))
    port.save(tmp_path / "port")
    loaded = isospike.load(tmp_path / "port", model=Three())
    (batch,) = batches(1, 3)
    with torch.no_grad():
        assert torch.equal(loaded(**batch), port.model(**batch))


def test_kept_products_have_sixteen_bits(model, tmp_path):
    port = isospike.port(model, batches(2), weight_bits=8, keep=["h*d"])
    assert {p.name: p.weight_bits for p in products(port)} == {"up": 8, "down": 8, "head": 16}
    port.save(tmp_path / "port")
    described = json.loads((tmp_path / "port" / "config.json").read_text())["isospike"]
    assert described["synapses"]["head"] == [16, 0]
    assert 8 < port.report.counts.weight_bits < 16


def test_bits_and_names_that_there_are_not_are_refused(model):
    with pytest.raises(RangeError, match=r"port needs weight_bits among 16, 8, 4, got 5\."):
        isospike.port(model, batches(1), weight_bits=5)
    with pytest.raises(InputError, match=r"got 'lm_head' which matches none of 3 such as down\."):
        isospike.port(model, batches(1), weight_bits=8, keep=["lm_head"])
    with pytest.raises(InputError, match=r"list of names to keep, got 'head'. Give \['head'\]"):
        isospike.port(model, batches(1), weight_bits=8, keep="head")
    with pytest.raises(RangeError, match="weight_bits among 16, 8, 4, got True"):
        isospike.port(model, batches(1), weight_bits=True)


def test_a_table_that_is_multiplied_keeps_its_numbers():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mix = nn.Embedding(30, 16), nn.Linear(16, 16)

        def forward(self, x):
            return torch.tanh(self.mix(self.table(x))) @ self.table.weight.T

    tied = Tied().eval()
    inputs = [{"x": b["x"] % 30} for b in batches(2)]
    port = isospike.port(tied, inputs, weight_bits=8)
    assert tables_of(port.model) == {}
    assert torch.equal(port.model.table.weight, tied.table.weight)


def test_a_rounded_table_by_hand():
    table = nn.Embedding.from_pretrained(torch.tensor([[31.0, -15.4, 0.2], [0.0, 0.0, 0.0]]))
    shared = nn.ModuleList([table])
    before = table.weight
    round_tables(shared, 4)
    assert table.weight.tolist() == [[31.0, -15.0, 0.0], [0.0, 0.0, 0.0]]
    assert tables_of(shared) == {"0.weight": 6}
    assert before[0, 1] == torch.tensor(-15.4)  # of another model, perhaps


def test_equal_bits_round_each_token_to_its_own_grid():
    site = Site("a", "linear", isospike.codes.PhaseCode(2), (3,))
    x = torch.tensor([[0.0, 1.2, 3.0], [-1.0, 5.0, 2.4]])
    rounded = EqualBits({"a": 2}).on_input(site, x)
    torch.testing.assert_close(rounded, torch.tensor([[0.0, 1.0, 3.0], [-1.0, 5.0, 3.0]]))


def test_costs_are_in_proportion_to_the_bits_of_a_weight():
    known = {"macs": 1e6, "synaptic_ops": 5e5, "spikes": 500.0, "neuron_updates": 0.0,
             "neurons": 1e3, "bits": 8, "float_ops": {}, "weights": 1000, "activations": 0.0,
             "steps": 8, "tokens_per_input": 10.0}  # fmt: skip
    eight, four = Counts(**known), Counts(**known, weight_bits=4.0)
    assert memory_moved_bytes(four).spiking.weight_bytes == 2.5e5
    assert memory_moved_bytes(four).quantised.weight_bytes == 50
    assert memory_moved_bytes(four).float32 == memory_moved_bytes(eight).float32
    # 0.1 pJ an addition and 0.2 pJ a product of 8 x 8 bits, so 0.1 pJ of 8 x 4.
    assert estimate_energy(eight, INT8_45NM).quantised_pj == pytest.approx(0.3e6)
    assert estimate_energy(four, INT8_45NM).quantised_pj == pytest.approx(0.2e6)
    assert estimate_energy(four, INT8_45NM).spiking_pj == pytest.approx(0.05e6)
