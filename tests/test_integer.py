"""Integer neurons: one step on integers and as many steps on spikes are the same run."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from published import generator, images
from transformers import AutoModelForImageClassification

from isospike.errors import RangeError, ShapeError
from isospike.models import IntegerNet, IntegerNetConfig
from isospike.models.integer import EXACT, IntegerNeurons, compare_runs, round_weights, whiten


def network(levels=4, **settings):
    """A network whose normalisations fit its input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = IntegerNet(
            IntegerNetConfig(channels=(16, 32), levels=levels, num_labels=5, **settings)
        )
    model.train()
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.momentum = None
    with torch.no_grad():
        model(images([16, 3, 16, 16]))
    return model.eval()


@given(x=st.lists(st.floats(-10, 20, width=32), min_size=1, max_size=20), levels=st.integers(1, 8))
def test_the_spikes_of_a_neuron_count_its_integer(x, levels):
    currents, neurons = torch.tensor(x), IntegerNeurons(levels)
    spikes = neurons.fire(currents)
    assert spikes.shape == (levels, len(x))
    assert set(spikes.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(spikes.sum(0), neurons(currents))
    assert torch.equal(
        neurons(currents), (currents.clamp(0, levels).double() + 0.5).floor().float()
    )


def test_a_half_is_rounded_up():
    assert IntegerNeurons(4)(torch.tensor([0.5, 1.5, 2.5])).tolist() == [1.0, 2.0, 3.0]


def test_the_gradient_is_one_inside_the_range():
    x = torch.tensor([-0.5, 0.2, 3.9, 4.5], requires_grad=True)
    IntegerNeurons(4)(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_without_rounding_neurons_in_training_clamp_alone():
    x = torch.tensor([-0.5, 0.2, 3.9, 4.5], requires_grad=True)
    neurons = IntegerNeurons(4)
    neurons.rounds = False
    y = neurons(x)
    assert y.tolist() == x.clamp(0, 4).tolist()
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert neurons.eval()(x).tolist() == [0.0, 0.0, 4.0, 4.0]


def test_the_head_reads_integers_over_the_divisor():
    x = images([2, 3, 16, 16])
    rates, halves = (network(4, divisor=divisor) for divisor in (None, 2))
    halves.load_state_dict(rates.state_dict())
    bias = rates.head.bias
    torch.testing.assert_close(halves(x).logits - bias, 2 * (rates(x).logits - bias))
    assert torch.equal(halves(x, steps=4).logits, halves(x).logits)
    with pytest.raises(RangeError, match="divisor above 0, got 0"):
        network(4, divisor=0)


@pytest.mark.parametrize("levels", [1, 3, 4])
def test_the_run_on_spikes_is_the_run_on_integers(levels):
    model = network(levels)
    round_weights(model)
    x = images([6, 3, 16, 16])
    found = compare_runs(model, x)
    assert found["differ"] == 0
    assert found["spikes"] > 0.05 * found["neurons"]
    with torch.no_grad():
        assert torch.equal(model(x, steps=levels).logits, model(x, steps=1).logits)


def test_rounded_weights_make_every_sum_exact():
    model = network()
    before = [layer.conv.weight.clone() for layer in model.layers]
    round_weights(model)
    for layer, old in zip(model.layers, before, strict=True):
        weight = layer.conv.weight.double()
        moved = (weight - old).abs().amax((1, 2, 3)) / old.abs().amax((1, 2, 3))
        assert moved.max() < 1e-3
        for row in weight:  # on a grid, on which all sums are whole and small enough
            scaled = row / 2.0**-40
            assert torch.equal(scaled, scaled.round())
            power = 0
            while (scaled / 2 ** (power + 1)).frac().abs().sum() == 0:
                power += 1
            assert (scaled / 2**power).abs().sum() * 4 <= EXACT
    again = [layer.conv.weight.clone() for layer in model.layers]
    round_weights(model)
    assert all(torch.equal(a, b.conv.weight) for a, b in zip(again, model.layers, strict=True))


def test_a_difference_would_be_counted():
    model = network()
    stem = model.stem.neurons
    stem.fire = lambda x: IntegerNeurons.fire(stem, x).roll(1, -1)
    assert compare_runs(model, images([1, 3, 16, 16]))["differ"] > 0


def test_rectifiers_have_the_same_shape_and_no_spikes():
    twin = network(0)
    assert {n: p.shape for n, p in twin.named_parameters()} == {
        n: p.shape for n, p in network().named_parameters()
    }
    with pytest.raises(RangeError, match="needs images, and 1 or 0 steps, got 4"):
        twin(images([1, 3, 16, 16]), steps=4)


def test_it_is_saved_and_loaded_by_transformers(tmp_path):
    model = network()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    x = torch.rand(2, 3, 16, 16, generator=generator("saved"))
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, model(x).logits)


def test_what_cannot_be_run_is_refused():
    model = network()
    with pytest.raises(RangeError, match="needs images, and 1 or 4 steps, got 3"):
        model(images([1, 3, 16, 16]), steps=3)
    with pytest.raises(RangeError, match="needs images, and 1 or 4 steps, got 2"):
        model(images([1, 2, 3, 16, 16]))
    with pytest.raises(RangeError, match="channels of at least 1 and levels from 0 to 255"):
        IntegerNet(IntegerNetConfig(channels=(), levels=4))
    model.layers[0].conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(RangeError, match="round_weights needs finite weights"):
        round_weights(model)


def test_whitened_patches_have_currents_of_one_size_that_do_not_depend_on_each_other():
    g = generator("whiten")
    mixing = torch.randn(3, 3, generator=g)
    x = torch.einsum("ij,bjhw->bihw", mixing, torch.randn(40, 3, 16, 16, generator=g))
    model = network()
    whiten(model, x)
    currents = model.stem.conv(x).transpose(0, 1).flatten(1)
    half = len(currents) // 2
    assert torch.equal(currents[:half], -currents[half:])
    torch.testing.assert_close(currents[:half].cov(), 4 * torch.eye(half), rtol=0.05, atol=0.2)


def test_the_first_layer_is_not_trained_also_after_it_was_loaded(tmp_path):
    network().save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path).train()
    before = model.stem.conv.weight.clone()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    x = images([8, 3, 16, 16]).requires_grad_()
    model(x, labels=torch.arange(8) % 5).loss.backward()
    optimiser.step()
    assert torch.equal(model.stem.conv.weight, before)
    assert x.grad.abs().sum() > 0, "images have a gradient"


def test_images_without_variance_are_whitened_to_finite_filters():
    model = network()
    whiten(model, torch.ones(2, 3, 8, 8))
    assert model.stem.conv.weight.isfinite().all()
    with pytest.raises(ShapeError, match="whiten needs images"):
        whiten(model, torch.ones(2, 1, 8, 8))


def test_images_of_any_size_above_the_stages_are_classified():
    model = network()
    assert model(torch.zeros(1, 3, 5, 9)).logits.shape == (1, 5)
    with pytest.raises(ShapeError, match="needs sides above 4 pixels for 2 stages"):
        model(torch.zeros(1, 3, 4, 9))
