"""Recordings in tonic's form: frames that count events, and data to train on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isospike.errors import InputError, RangeError, ShapeError
from isospike.neurons import LIF, NeuronParams, integrate, run
from isospike.train import Recipe, build, event_frames, tonic_data
from isospike.train.fit import batches

KINDS = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", bool)])
SIZE = (3, 4)


def recording(count, seed=0):
    g = np.random.default_rng(seed)
    events = np.zeros(count, KINDS)
    for name, most in (("x", 4), ("y", 3), ("t", 1000), ("p", 2)):
        events[name] = g.integers(0, most, count)
    return events


class Recordings(list):
    """What a data set of tonic has beside its pairs."""

    sensor_size = (34, 34, 2)
    classes = ("zero", "one", "two")


@given(count=st.integers(0, 60), steps=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_every_event_is_counted_once_and_frames_have_as_many(count, steps, seed):
    events = recording(count, seed)
    frames = event_frames(events, steps, SIZE)
    assert frames.shape == (steps, 2, *SIZE)
    each = frames.sum((1, 2, 3))
    assert each.sum() == count
    assert each.max() - each.min() <= 1
    for p in range(2):
        for y in range(3):
            wanted = [((events["x"] == x) & (events["y"] == y) & (events["p"] == p)).sum()
                      for x in range(4)]  # fmt: skip
            assert frames[:, p, y].sum(0).tolist() == wanted


def test_frames_by_hand():
    events = np.array([(3, 2, 30, 1), (0, 0, 10, 0), (0, 0, 20, 0), (1, 1, 40, 1)], KINDS)
    frames = event_frames(events, 2, SIZE)  # by time: twice (0, 0), then the others
    assert frames[0].nonzero().tolist() == [[0, 0, 0]]
    assert frames[0, 0, 0, 0] == 2
    assert frames[1].nonzero().tolist() == [[1, 1, 1], [1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_neurons_read_counts_of_events(dtype):
    counts = event_frames(recording(200), 4, SIZE).to(dtype)
    params = NeuronParams(decay=0.5, threshold=3.0)
    spikes, state = run(counts, params=params)
    wanted, last = run(counts.float(), params=params)
    assert spikes.dtype == torch.float32
    assert torch.equal(spikes, wanted)
    assert torch.equal(state.v, last.v)
    assert 0 < spikes.mean() < 1
    assert torch.equal(LIF()(counts), LIF()(counts.float()))
    assert torch.equal(integrate(counts)[0], integrate(counts.float())[0])


def test_recordings_become_data_that_a_model_reads():
    pairs = [(recording(50, i), i % 3) for i in range(6)]
    data = tonic_data(Recordings(pairs), pairs[:3], steps=3)
    assert data.classes == ("zero", "one", "two")
    assert data.train.images.shape == (6, 3, 2, 36, 36), "sides are multiples of 4"
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.sum() == 300
    assert data.test.labels.tolist() == [0, 1, 2]
    config = {"channels": 8, "blocks": 1, "expansion": 1}
    recipe = Recipe("isospike-spike-driven", config, steps=3, shift=None)
    batch = batches(recipe, data)[0].__getitems__([0, 1])
    logits = build(recipe, data).eval()(batch["pixel_values"]).logits
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


def test_frames_that_a_transform_of_tonic_made_are_taken_as_they_are():
    frames = [np.full((2, 2, 4, 4), n, np.int16) for n in (3, 300)]
    data = tonic_data([(frames[0], 0), (frames[1], 1)], [(frames[0], 1)])
    assert data.train.images.dtype == torch.int32
    assert data.train.images[1].unique().tolist() == [300]
    assert data.test.images.dtype == torch.uint8
    assert data.classes == ("0", "1")


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (np.zeros((3, 4)), "fields x, y, t and p, got ndarray"),
        (np.zeros(3, [("x", int), ("y", int)]), "got fields x, y"),
        ([(0, 0, 0, 0)], "got list"),
        (np.zeros((2, 2), KINDS), "an array of events"),
    ],
)
def test_what_is_no_recording_is_refused(events, message):
    with pytest.raises(InputError, match=message):
        event_frames(events, 2, SIZE)


def test_events_outside_the_image_are_refused():
    events = np.array([(4, 0, 0, 0), (1, 0, 0, 0)], KINDS)
    with pytest.raises(RangeError, match="needs x from 0 to 3, got 4 in 1 of 2 events"):
        event_frames(events, 2, SIZE)
    signs = np.array([(0, 0, 0, -1)], [(n, int) for n in "xytp"])
    with pytest.raises(RangeError, match="needs p from 0 to 1, got -1"):
        event_frames(signs, 2, SIZE)
    with pytest.raises(RangeError, match="needs steps >= 1, got 0"):
        event_frames(events, 0, SIZE)
    with pytest.raises(ShapeError, match=r"a height and a width, got \(4,\)"):
        event_frames(events, 2, (4,))


def test_pairs_that_make_no_data_are_refused():
    pair, frames = (recording(5), 0), np.zeros((2, 2, 4, 4))
    for train, message in (
        ([recording(5)], "pairs of a recording and a class, got ndarray"),
        ([], "recordings in both parts, got none"),
        ([pair], "the sensor's height and width, got none"),
    ):
        with pytest.raises(InputError, match=message):
            tonic_data(train, [pair])
    with pytest.raises(ShapeError, match="frames of one size"):
        tonic_data([(frames, 0), (frames[1:], 0)], [(frames, 0)])
    with pytest.raises(ShapeError, match="parts of one size"):
        tonic_data([(frames, 0)], [(frames[1:], 0)])
    with pytest.raises(RangeError, match="labels from 0 to 0, got 1"):
        tonic_data([(frames, 1)], [(frames, 0)], classes=["one"])


def test_a_sensor_that_is_not_square_has_its_width_first():
    wide = Recordings([(recording(9), 0)])
    wide.sensor_size = (8, 4, 2)
    assert tonic_data(wide, wide, steps=1).train.images.shape[-2:] == (4, 8)
    plain = SimpleNamespace(dtype=None)
    with pytest.raises(InputError, match="got SimpleNamespace"):
        event_frames(plain, 1, SIZE)


def test_frames_that_are_no_counts_keep_their_values():
    """Time surfaces and voxel grids of tonic have fractions, and values below zero."""
    surface = np.array([[[[0.5, 0.99], [-1.0, -0.5]]]], np.float32)
    read = tonic_data([(surface, 0), (surface, 1)], [(surface, 0)])
    assert read.train.images.dtype == torch.float32
    assert np.array_equal(read.train.images[1].numpy(), surface)
    signed = tonic_data([(np.array([[[[-3, 300]]]]), 0)], [(np.array([[[[1, 2]]]]), 0)])
    assert signed.train.images.tolist() == [[[[[-3, 300]]]]]
