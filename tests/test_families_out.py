"""Spiking transformers as NIR graphs and as C, spike for spike."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import call, quiet_transformers, said  # noqa: F401 - the middle one is a fixture
from torch import nn

from isospike.deploy.c import round_network, write_c
from isospike.deploy.families import family_network
from isospike.deploy.network import Threshold
from isospike.deploy.nir import read_nir, write_nir
from isospike.deploy.sequential import sequential_network
from isospike.errors import RangeError, ShapeError, UnsupportedError
from isospike.models import (
    MaxFormer,
    MaxFormerConfig,
    QKFormer,
    QKFormerConfig,
    SpikeDrivenConfig,
    SpikeDrivenTransformer,
    Spikformer,
    SpikformerConfig,
)
from isospike.neurons import LIF, NeuronParams

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks

from benchmarks.models import lively  # noqa: E402

DT = 1e-4


def spike_driven(pools=(False, True, False, False)):
    config = SpikeDrivenConfig(channels=16, blocks=1, pools=pools, num_labels=5)
    return lively(SpikeDrivenTransformer(config))


def images(rows=3, side=8, seed=1):
    draw = torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return (256 * draw).floor() / 256


def frames(x, steps):
    return x.expand(steps, *x.shape)


def test_a_family_is_the_same_scores_as_a_graph_and_in_other_readers(tmp_path):
    pytest.importorskip("nir")
    from nir_oracle import run_file

    model, x = spike_driven(), images()
    network, refused = family_network(model, (8, 8))
    assert not refused
    with torch.no_grad():
        y, right = network(frames(x, 4)), model(x, steps=4).logits
    assert len(right.unique(dim=0)) == len(right)
    torch.testing.assert_close(y.mean(0), right, rtol=1e-5, atol=1e-5)
    write_nir(network, tmp_path / "a.nir")
    with torch.no_grad():
        torch.testing.assert_close(read_nir(tmp_path / "a.nir")(frames(x, 4)), y)
    (found,) = run_file(tmp_path / "a.nir", {"image": frames(x, 4).numpy()}, DT).values()
    torch.testing.assert_close(torch.from_numpy(found).float(), y, rtol=1e-5, atol=1e-5)


def test_what_has_no_node_is_named_and_left_out():
    model = spike_driven(pools=(False, False, False, True))
    with pytest.raises(UnsupportedError, match="'stem_layers_3_pool', max-pool of currents: a max"):
        family_network(model, (8, 8))
    network, refused = family_network(model, (8, 8), partial=True)
    assert [part.name for part in refused] == ["stem_layers_3_pool"]
    assert network.inputs["stem_layers_3_pool"] == (16, 4, 4)
    config = QKFormerConfig(channels=16, depths=(1, 1), heads=(2, 2), num_labels=5)
    kinds = [part.kind for part in family_network(QKFormer(config), (8, 8), partial=True)[1]]
    assert kinds == ["max-pool of currents", "q k^T v"]
    config = MaxFormerConfig(channels=32, depths=(1, 1, 1), heads=(2, 2, 2), num_labels=5)
    kinds = [part.kind for part in family_network(MaxFormer(config), (8, 8), partial=True)[1]]
    assert kinds.count("q k^T v") == 1
    with pytest.raises(ShapeError, match=r"multiples of 2, got \(7, 8\)"):
        family_network(model, (7, 8))
    with pytest.raises(UnsupportedError, match="SpikeDrivenTransformer, got a Linear"):
        family_network(nn.Linear(2, 2), (8, 8))
    with pytest.raises(UnsupportedError, match="got a Spikformer"):
        family_network(Spikformer(SpikformerConfig(channels=8, heads=1, blocks=1)), (8, 8))


def compiled(folder, network, **options):
    """A program of a network."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    write_c(network, folder / "a.c", **options)
    subprocess.run(
        ["cc", "-std=c99", "-O1", "-ffp-contract=off", "-Wall", "-Werror", "-o", "a", "a.c"],
        cwd=folder, check=True,
    )  # fmt: skip
    return folder / "a"


def told(program, x):
    """What a program says of ``x [steps, *shape]``."""
    lines = "\n".join(" ".join(map(repr, row)) for row in x.flatten(1).tolist())
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return torch.tensor([[float(v) for v in line.split()] for line in done.stdout.splitlines()])


def test_a_family_in_c_gives_the_same_numbers(tmp_path):
    network = round_network(family_network(spike_driven(), (8, 8))[0])
    program = compiled(tmp_path, network)
    assert len((tmp_path / "a.c").read_text().splitlines()) <= 600
    for image in images(4, seed=3):
        x = frames(image[None], 6)
        with torch.no_grad():
            y = network(x)[:, 0]
        assert len(y.unique(dim=0)) > 1
        assert torch.equal(told(program, x[:, 0]), y)


@pytest.mark.parametrize("bits", [8, 16])
def test_layers_in_c_give_the_same_spikes(bits, tmp_path):
    reset = NeuronParams(0.5, gain=0.5, threshold=0.25, reset_to=-0.25)
    layers = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(1, 0), groups=2), LIF(reset), nn.Flatten(),
        nn.Linear(48, 20), LIF(reset._replace(decay=0.75)),
    )  # fmt: skip
    layers[0].weight.data *= 4
    layers[3].weight.data *= 4
    network = round_network(sequential_network(layers, (2, 6, 6))[0], bits)
    x = images(40, 6)[:, :2]
    with torch.no_grad():
        y = network(x[:, None])[:, 0]
    assert 0.05 < y.mean() < 0.95
    assert torch.equal(told(compiled(tmp_path, network, bits=bits), x), y)


def test_what_c_cannot_hold_is_refused(tmp_path):
    place = tmp_path / "a.c"
    network, _ = sequential_network(nn.Sequential(nn.Linear(2, 3), LIF(NeuronParams(0.5))), [2])
    with pytest.raises(RangeError, match="of 8 bits in '0', got others. Pass the network through"):
        write_c(network, place)
    with pytest.raises(UnsupportedError, match="neurons alike that reset to a value.*in '1'"):
        write_c(round_network(network), place)
    with pytest.raises(RangeError, match="write_c needs weights of 8 or 16 bits, got 4"):
        write_c(network, place, bits=4)
    odd, _ = sequential_network(nn.Sequential(Threshold(torch.ones(2))), [2])
    with pytest.raises(UnsupportedError, match="a layer that it knows in '0', got a Threshold"):
        write_c(odd, place)
    two = family_network(spike_driven((False, False, False, True)), (8, 8), partial=True)[0]
    with pytest.raises(UnsupportedError, match="one input, one output and no recurrences, got 2"):
        write_c(two, place)
    assert not place.exists()


def test_a_program_refuses_half_a_step(tmp_path):
    network, _ = sequential_network(nn.Sequential(nn.Linear(2, 1)), [2])
    program = compiled(tmp_path, round_network(network))
    done = subprocess.run([program], input="1 2 3", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1


def test_the_command_writes_a_trained_model(tmp_path):
    pytest.importorskip("nir")
    spike_driven().save_pretrained(tmp_path / "a")
    for to in ("nir", "c"):
        done = call("export", tmp_path / "a", "--to", to, "--size", 8)
        assert done.exit_code == 0, done.output
        assert (tmp_path / f"a.{to}").stat().st_size > 1000
    assert "export needs a port for onnx" in said(call("export", tmp_path / "a", "--to", "onnx"))
    line = said(call("export", tmp_path / "a", "--to", "nir", "--size", 7))
    assert "multiples of 2, got (7, 7)" in line
    spike_driven(pools=(False, False, False, True)).save_pretrained(tmp_path / "b")
    line = said(call("export", tmp_path / "b", "--to", "nir", "--size", 8))
    assert "'stem_layers_3_pool', max-pool of currents" in line
    done = call("export", tmp_path / "b", "--to", "nir", "--size", 8, "--partial")
    assert done.exit_code == 0, done.output
    assert "stem_layers_3_pool" in done.output
    (tmp_path / "a" / "model.safetensors").write_bytes(b"half")
    line = said(call("export", tmp_path / "a", "--to", "c", "--size", 8))
    assert "export needs a model that transformers can load" in line
