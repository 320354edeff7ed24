"""A sequence read by leaky neurons through delays."""

import pytest
import torch
from published import generator
from torch.nn.functional import one_hot
from transformers import AutoModelForImageClassification

from isospike.errors import RangeError, ShapeError
from isospike.models import SequenceNet, SequenceNetConfig
from isospike.models.sequence import SequenceLayer


def network(**settings):
    """Rows of 8 pixels, in ``eval`` mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SequenceNet(
            SequenceNetConfig(inputs=8, channels=(16, 32), num_labels=5, steps=8, **settings)
        ).eval()


def drawn(*shape):
    return torch.rand(*shape, generator=generator(str(shape)))


def test_a_layer_does_what_its_equations_say():
    layer = SequenceLayer(3, 4, taps=2, apart=2, longest=9.0).eval()
    x = drawn(7, 2, 3) * 20
    decay = torch.exp(-1 / 9.0 ** torch.linspace(0, 1, 4))
    now, before = layer.linear.weight.split(3, 1)
    v = torch.zeros(2, 4)
    with torch.no_grad():
        spikes = layer(x)
        for t in range(7):
            late = x[t - 2] if t >= 2 else torch.zeros(2, 3)
            current = (x[t] @ now.T + late @ before.T) / (1 + layer.norm.eps) ** 0.5
            h = decay * v + (1 - decay**2).sqrt() * current
            expected = (h >= 1).float()
            v = h - expected
            assert torch.equal(spikes[t], expected)
    assert 0 < spikes.mean() < 1


def test_an_image_is_the_sequence_of_its_rows():
    model, x = network(), drawn(3, 1, 8, 8)
    frames = x[:, 0][:, :, None, None, :]  # [batch, steps, channels, height, width]
    with torch.no_grad():
        assert torch.equal(model(x).logits, model(frames).logits)
        finer = SequenceNet(SequenceNetConfig(inputs=4, channels=(16,), num_labels=5)).eval()
        assert finer(x, steps=16).logits.shape == (3, 5)


def test_what_comes_later_does_not_change_earlier_spikes():
    layer = SequenceLayer(5, 6, taps=3, apart=1, longest=5.0).eval()
    x = drawn(9, 2, 5) * 10
    other = x.clone()
    other[6:] = 0
    with torch.no_grad():
        assert torch.equal(layer(x)[:6], layer(other)[:6])
        assert not torch.equal(layer(x)[6:], layer(other)[6:])


def test_a_spike_is_remembered_as_long_as_the_delays_say():
    taps, steps = 3, 40
    model = network(taps=taps, longest=1.0)
    for layer in model.layers:
        layer.linear.weight.data.fill_(10)
        layer.neurons.decay.zero_()
    x = one_hot(torch.tensor(0), steps).float()[:, None, None] * torch.ones(1, 1, 8)
    with torch.no_grad():
        spikes = model.layers(x)
    reach = (taps - 1) * (1 + taps)
    assert spikes[: reach + 1].sum() > 0
    assert spikes[reach + 1 :].sum() == 0


def test_images_of_a_batch_do_not_know_of_each_other():
    model, x = network(), drawn(4, 1, 8, 8)
    with torch.no_grad():
        alone = torch.cat([model(image[None]).logits for image in x])
        torch.testing.assert_close(model(x).logits, alone)


def test_it_is_saved_and_loaded_by_transformers(tmp_path):
    model, x = network(), drawn(2, 1, 8, 8)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(x).logits, model(x).logits)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="needs 8 values a step, got 64 values and 4 steps"):
        network()(drawn(1, 1, 8, 8), steps=4)
    with pytest.raises(RangeError, match="longest from 1 on, got"):
        SequenceNet(SequenceNetConfig(longest=0.5))
    with pytest.raises(RangeError, match="needs taps >= 1, got 0"):
        SequenceNet(SequenceNetConfig(taps=0))
