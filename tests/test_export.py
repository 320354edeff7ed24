"""Ports as files of other programs: ONNX and NIR."""

import sys

import numpy as np
import pytest
import torch
from folders import call, quiet_transformers, said  # noqa: F401 - the last but one is a fixture
from ports import default, quick
from torch import nn

import isospike
from isospike.codes import PhaseCode, RateCode, SignedDigitCode
from isospike.deploy.onnx import write_onnx
from isospike.deploy.ports import port_network
from isospike.errors import MissingExtraError, RangeError, UnsupportedError
from isospike.porting.product import SpikingProduct
from isospike.porting.run import ATTRIBUTE, run_of
from isospike.porting.sites import Site


@pytest.fixture(scope="module")
def port(request):
    return isospike.load(request.getfixturevalue("ported"))


def batch(rows, length, seed=0):
    ids = torch.randint(4, 20, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def integers_of(port, inputs, monkeypatch):
    """The integers of every site, and the output."""
    found, read = {}, Site.read

    def kept(site, x, dtype=torch.float32, *, into=None):
        reading = read(site, x, dtype, into=into)
        found[site.name] = reading.value.float().numpy().copy()
        return reading

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(Site, "read", kept)
        return found, port(**inputs)


def test_a_runtime_computes_the_integers_of_a_collapsed_port(port, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    write_onnx(port, tmp_path / "a.onnx", integers=True)
    session = runtime.InferenceSession(tmp_path / "a.onnx")
    names = [end.name for end in session.get_outputs()]
    differ = total = 0
    for rows, length in ((3, 7), (1, 1), (5, 12)):
        inputs = batch(rows, length) if length > 3 else batch(rows, 8, 1)
        right, output = integers_of(port, inputs, monkeypatch)
        made = session.run(None, {n: x.numpy() for n, x in inputs.items()})
        got = dict(zip(names, made, strict=True))
        assert set(right) <= set(got)
        differ += sum(int((got[n] != right[n]).sum()) for n in right)
        total += sum(value.size for value in right.values())
        np.testing.assert_allclose(got["last_hidden_state"], output[0].numpy(), atol=2e-2)
    # A function's last bit may move a value that stands between two whole numbers, no more.
    assert differ <= 5e-4 * total


def test_functions_on_spikes_are_the_same_bits_in_a_runtime(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    port = quick(functions="spiking").model
    write_onnx(port, tmp_path / "a.onnx", strict=True, integers=True)
    assert_same_bits(port, runtime.InferenceSession(tmp_path / "a.onnx"), monkeypatch)


def assert_same_bits(port, session, monkeypatch):
    """Every integer and every output of a runtime is that of the port."""
    names = [end.name for end in session.get_outputs()]
    for rows, length, seed in ((3, 7, 0), (1, 1, 1), (5, 12, 2)):
        inputs = batch(rows, length, seed)
        inputs["attention_mask"][:, 0] = 1
        right, output = integers_of(port, inputs, monkeypatch)
        made = session.run(None, {n: x.numpy() for n, x in inputs.items()})
        got = dict(zip(names, made, strict=True))
        assert all(np.array_equal(got[n], right[n]) for n in right)
        assert np.array_equal(got["last_hidden_state"], output[0].numpy())
        assert np.array_equal(got["pooler_output"], output[1].numpy())


def test_weights_of_eight_bits_are_bytes_in_a_file_and_the_same_integers(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    port = quick(functions="spiking", weight_bits=8).model
    write_onnx(port, tmp_path / "a.onnx", strict=True, integers=True)
    assert_same_bits(port, runtime.InferenceSession(tmp_path / "a.onnx"), monkeypatch)
    graph = onnx.load(tmp_path / "a.onnx").graph
    kinds = {tuple(c.dims): c.data_type for c in graph.initializer}
    held = [m.weight for m in port.modules() if isinstance(m, SpikingProduct)]
    assert all(kinds[tuple(w.T.shape)] == onnx.TensorProto.INT8 for w in held)
    table = port.get_input_embeddings().weight
    assert kinds[tuple(table.shape)] == onnx.TensorProto.INT8


@pytest.mark.parametrize("rows", [1, 3])
def test_a_decoder_writes_the_same_text_with_its_cache(rows, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    port = default("llama").model
    write_onnx(port, tmp_path / "a.onnx")
    session, config = runtime.InferenceSession(tmp_path / "a.onnx"), port.config
    names = [end.name for end in session.get_outputs()]
    ids = torch.randint(4, 20, (rows, 6), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(ids)
    mask[0, : rows - 1] = 0  # padding, on the left
    rest = np.zeros((rows, config.num_key_value_heads, 0, config.head_dim), np.float32)
    past = {end.name: rest for end in session.get_inputs() if end.name.startswith("past")}
    assert len(past) == 2 * config.num_hidden_layers
    seen, new, found = mask.numpy(), ids.numpy(), ids.numpy()
    for _ in range(12):
        made = session.run(None, {"input_ids": new, "attention_mask": seen, **past})
        got = dict(zip(names, made, strict=True))
        past = {name: got[name.replace("past", "present")] for name in past}
        new = got["logits"][:, -1:].argmax(-1)
        found, seen = (np.concatenate([a, b], 1) for a, b in ((found, new), (seen, new >= 0)))
    with torch.no_grad():
        right = port.generate(
            ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None
        )
    assert np.array_equal(found, right.numpy())


def test_what_onnx_cannot_hold_is_refused(port, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    place = tmp_path / "a.onnx"
    with pytest.raises(RangeError, match="an opset from 18, got 9"):
        write_onnx(port, place, opset=9)
    with pytest.raises(UnsupportedError, match="no functions in float for strict, got softmax"):
        write_onnx(port, place, strict=True)
    with pytest.raises(
        UnsupportedError, match="a BertModel or LlamaForCausalLM, got a Linear that"
    ):
        write_onnx(nn.Linear(2, 2), place)
    site = port.encoder.layer[0].intermediate.dense.site
    with monkeypatch.context() as patch:
        patch.setattr(site, "code", SignedDigitCode(9))
        with pytest.raises(RangeError, match="at most 255 levels, got 511 at 'encoder.layer.0.int"):
            write_onnx(port, place)
    llama = default("llama").model
    with run_of(llama).switched(functions="spiking"):
        with pytest.raises(UnsupportedError, match="functions='float' of a LlamaForCausalLM, got"):
            write_onnx(llama, place)
    other = nn.Linear(2, 2)
    setattr(other, ATTRIBUTE, run_of(port))
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM, got a port of Linear. Port one"):
        write_onnx(other, place)
    assert not place.exists()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"the package onnx, got none\. Install isospike"):
        write_onnx(port, place)


@pytest.mark.parametrize("code", [SignedDigitCode(6), PhaseCode(5), RateCode(7)], ids=str)
def test_the_products_of_a_port_add_up_step_by_step(code, port, monkeypatch):
    product = port.encoder.layer[0].output.dense
    with monkeypatch.context() as patch:
        for module in port.modules():
            if isinstance(module, Site):
                patch.setattr(module, "code", code)
        network, refused = port_network(port, partial=True)
        network.eval()
    levels = code.levels
    low = -levels if code.neurons == 2 else 0
    n = torch.randint(low, levels + 1, (4, product.weight.shape[1]),
                      generator=torch.Generator().manual_seed(0)).float()  # fmt: skip
    spikes = code.encode_integers(n)
    x = spikes[:, 0] - spikes[:, 1] if code.neurons == 2 else spikes
    name = "encoder.layer.0.output.dense"
    zeros = {k: torch.zeros(code.steps, 4, *shape) for k, shape in network.inputs.items()}
    y = network({**zeros, f"{name}_spikes": x.float()})[name][-1]
    assert torch.equal(y, n @ product.weight.T)
    assert {part.kind for part in refused} >= {"SpikingAttention", "LayerNorm", "Embedding", "gain"}


def test_a_port_without_partial_is_refused_by_its_first_part(port):
    with pytest.raises(UnsupportedError, match="parts that NIR has, got .* others; the first is"):
        port_network(port)
    with pytest.raises(UnsupportedError, match="port_network needs a port, got a Linear"):
        port_network(nn.Linear(2, 2))


def test_the_command_writes_what_it_says(ported, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("nir")
    from isospike.deploy.nir import read_nir

    done = call("export", ported, "--to", "onnx", "--out", tmp_path / "a.onnx")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a.onnx").stat().st_size > 1000
    done = call("export", ported, "--to", "nir", "--partial", "--out", tmp_path / "a.nir")
    assert done.exit_code == 0, done.output
    assert "SpikingAttention" in done.output
    network = read_nir(tmp_path / "a.nir")
    assert "encoder.layer.0.output.dense" in network.outputs


@pytest.mark.parametrize(("arguments", "line"), [
    (("--to", "c"), "export needs a trained spiking transformer for c, got the port"),
    (("--to", "csv"), "export needs --to nir, onnx or c, got 'csv'"),
    (("--to", "nir", "--out", "."), "export needs a file for --out, got the folder"),
])  # fmt: skip
def test_a_mistake_in_the_command_is_one_line(arguments, line, ported):
    assert line in said(call("export", ported, *arguments))


def test_a_folder_that_is_no_port_is_refused(tmp_path):
    assert "export needs" in said(call("export", tmp_path, "--to", "nir"))


# Chips.


def test_a_product_needs_the_cores_that_its_limits_say(port):
    from isospike.deploy.chips import Chip, _fit

    product = SpikingProduct("a", getattr(port, ATTRIBUTE), torch.zeros(30, 10), None)
    product.site.code = SignedDigitCode(8)
    chip = Chip("x", 4, 16, 8, 100, 8, "")
    # 20 lines on 8 axons: 3 parts; 30 neurons on 16: 2; 600 synapses on 100: 6
    fit = _fit("a", product, chip)
    assert (fit.axons, fit.neurons, fit.synapses, fit.cores) == (20, 30, 600, 6)
    assert fit.limit == "synapses, 6.0 times"
    assert _fit("a", product, chip._replace(synapses=None, axons=None)).cores == 2
    roomy = chip._replace(neurons=None, axons=100, synapses=1000)
    assert (_fit("a", product, roomy).cores, _fit("a", product, roomy).limit) == (1, "")


def test_a_port_is_compared_with_a_chip_product_by_product(port):
    from isospike.deploy.chips import CHIPS, check_chip

    report = check_chip(port, "loihi2")
    products = [n for n, m in port.named_modules() if hasattr(m, "twins")]
    assert [layer.name for layer in report.layers] == products
    assert report.needed == len(products)  # of a tiny model, each fits on a core
    assert any("--weight-bits 8" in change for change in report.change)
    assert any(why.startswith("a product of two") for _, why in report.refused)
    assert "cores" in report.verdict()
    assert all(chip.source for chip in CHIPS.values())
    with pytest.raises(UnsupportedError, match="check needs a port for a target, got a Linear"):
        check_chip(nn.Linear(2, 2), "loihi2")


def test_the_command_names_the_chips_it_knows(ported):
    done = call("check", ported, "--target", "truenorth")
    assert done.exit_code == 0, done.output
    assert "TrueNorth" in done.stdout
    line = said(call("check", ported, "--target", "abacus"))
    assert "a chip that is described, got 'abacus'. Choose one of loihi2, spinnaker2" in line
    line = said(call("check", ported, "--target", "akida"))
    assert "got 'akida', of which it is not known: BrainChip names neither neurons" in line
