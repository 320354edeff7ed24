"""Spiking transformers of integer neurons: one step and D steps of spikes are the same run."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from published import draw, images

from isospike.deploy.families import family_network
from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.models import (
    MaxFormer,
    MaxFormerConfig,
    MSQKFormer,
    MSQKFormerConfig,
    QKFormer,
    QKFormerConfig,
    SpikingResformer,
    SpikingResformerConfig,
    fold,
)
from isospike.models.levels import Gate, LevelNeurons, compare_levels, round_synapses

SIZES = {
    "channels": 32, "depths": (2, 1), "heads": (2, 4), "expansion": 2, "num_labels": 5, "steps": 1,
}  # fmt: skip
TWO = {**SIZES, "channels": (16, 32), "patches": (2, 1), "group": 16}
MODELS = {
    "qkformer": lambda **more: QKFormer(QKFormerConfig(form="imagenet", **SIZES, **more)),
    "qkformer, cifar": lambda **more: QKFormer(QKFormerConfig(**SIZES, **more)),
    "max-former": lambda **more: MaxFormer(
        MaxFormerConfig(form="imagenet", kernels=(3,), **SIZES, **more)
    ),
    "ms-qkformer": lambda **more: MSQKFormer(MSQKFormerConfig(**SIZES, **more)),
    "resformer": lambda **more: SpikingResformer(
        SpikingResformerConfig(form="imagenet", **TWO, **more)
    ),
}


def drawn(name, **more):
    """A network whose neurons use all their levels."""
    model = MODELS[name](**more).eval()
    state = {key: draw(key, t.shape) for key, t in model.state_dict().items() if "rate" not in key}
    rates = {key: torch.full_like(t, 0.3) for key, t in model.state_dict().items() if "rate" in key}
    model.load_state_dict({**state, **rates})
    round_synapses(model)
    return model


@pytest.mark.parametrize("levels", [1, 4, 8])
@pytest.mark.parametrize("name", MODELS)
def test_every_spike_of_the_run_in_steps_belongs_to_an_integer(name, levels):
    model = drawn(name, levels=levels)
    found = compare_levels(model, images([3, 3, 16, 16]))
    assert found["differ"] == 0
    assert 0 < found["spikes"] < found["neurons"] * levels
    assert torch.equal(found["one"], found["unrolled"])


@pytest.mark.parametrize("name", MODELS)
def test_an_image_does_not_depend_on_its_batch(name):
    model, x = drawn(name, levels=4), images([3, 3, 16, 16])
    with torch.no_grad():
        together, alone = model(x).logits, model(x[1:2]).logits
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_gradient_reaches_the_image(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name](levels=4).train()
    x = images([4, 3, 16, 16]).requires_grad_()
    model(x, labels=torch.arange(4)).loss.backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_levels_are_saved_and_old_files_have_none(tmp_path):
    model = drawn("max-former", levels=4)
    model.save_pretrained(tmp_path)
    again = MaxFormer.from_pretrained(tmp_path).eval()
    x = images([2, 3, 16, 16])
    with torch.no_grad():
        assert torch.equal(again(x).logits, model(x).logits)
    file = tmp_path / "config.json"
    old = {key: value for key, value in json.loads(file.read_text()).items() if key != "levels"}
    file.write_text(json.dumps(old))
    assert MaxFormer.from_pretrained(tmp_path)(x, steps=3).logits.shape == (2, 5)


@given(
    x=st.lists(st.floats(-3, 6, width=32), min_size=1, max_size=9),
    levels=st.sampled_from([1, 2, 4, 16]),
    full=st.sampled_from([1.0, 2.0]),
)
def test_spikes_of_a_neuron_have_the_mean_of_one_step(x, levels, full):
    neurons, currents = LevelNeurons(levels, full), torch.tensor(x)[None]
    one, spikes = neurons(currents), neurons(currents.expand(levels, -1))
    if levels > 1:
        assert ((spikes == 0) | (spikes == 1)).all()
    assert torch.equal(spikes.mean(0), one[0])
    true = (currents.double() / full).clamp(0, 1)
    assert ((one - true).abs() <= 0.5 / levels + 1e-6).all()


def test_a_gate_is_open_or_closed_in_all_steps():
    gate = Gate(1.0)
    assert gate(torch.tensor([[0.25, 0.5, 3.0]]).expand(4, 3)).tolist() == [[0.0, 1.0, 1.0]] * 4


def test_levels_that_no_network_has_are_refused():
    for levels in (3, -1, 128):
        with pytest.raises(RangeError, match="needs levels of 0 or a power of two up to 64"):
            MODELS["qkformer"](levels=levels)
    model = MODELS["max-former"](levels=4).eval()
    with pytest.raises(RangeError, match="MaxFormer needs images, and 1 or 4 steps, got 2"):
        model(images([1, 3, 16, 16]), steps=2)
    with pytest.raises(RangeError, match="MaxFormer needs images, and 1 or 4 steps, got 4"):
        model(images([1, 4, 3, 16, 16]))
    with pytest.raises(RangeError, match="MaxFormer needs 1 step in training, got 4"):
        model.train()(images([2, 3, 16, 16]), steps=4)
    with pytest.raises(InputError, match="got levels=4 and learned_leak=True"):
        MODELS["resformer"](levels=4, learned_leak=True)
    with pytest.raises(InputError, match="got levels=4 and published_leak=True"):
        MODELS["qkformer"](levels=4, published_leak=True)
    with pytest.raises(UnsupportedError, match="fold needs neurons with a leak, got levels=4"):
        fold(model)
    with pytest.raises(UnsupportedError, match="family_network needs neurons with a leak"):
        family_network(model, (16, 16))
    with torch.no_grad():
        model.head.weight.zero_()
        model.stages[0].blocks[0].up.conv.weight.fill_(float("nan"))
    with pytest.raises(RangeError, match="needs finite weights"):
        round_synapses(model)
