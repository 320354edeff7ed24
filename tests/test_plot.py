"""Pictures of spikes and membranes."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch

from isospike.errors import InputError, RangeError, ShapeError
from isospike.neurons import IF, LIF
from isospike.plot import membrane, raster


def test_a_raster_has_one_line_for_each_spike(tmp_path):
    spikes = (torch.rand(12, 7, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    picture = raster(spikes)
    (path,) = re.findall(r'<path d="(M.*?)" stroke', picture.svg())
    assert path.count("M") == int(spikes.sum())
    picture.save(tmp_path / "deep" / "spikes.svg")
    text = (tmp_path / "deep" / "spikes.svg").read_text()
    assert "var(" not in text
    assert ET.fromstring(text).tag.endswith("svg")
    assert picture._repr_html_().startswith("<div")


# Hand trace.
def test_a_membrane_is_shown_after_each_step_with_its_spikes():
    x = torch.tensor([[0.75], [0.75], [0.75], [0.75]])
    rows = membrane(LIF(decay=0.5), x).figure.table().rows
    assert [row[1:] for row in rows if row[0] == "neuron 0"] == [
        (0, 0.75), (1, 0.125), (2, 0.8125), (3, 0.15625),
    ]  # fmt: skip
    assert [row[1:] for row in rows if row[0] == "spikes of 0"] == [(1, 0.125), (3, 0.15625)]


def test_a_membrane_goes_on_from_a_state_and_shows_the_neurons_asked_for():
    x = torch.rand(6, 3)
    _, state = IF().run(x[:2])
    rows = membrane(IF(), x[2:], state, neurons=(2,)).figure.table().rows
    spikes, last = IF().run(x)
    assert rows[3][2] == pytest.approx(float(last.v[2]))
    assert {row[0] for row in rows} <= {"neuron 2", "spikes of 2"}


class Axes:
    """Records what is drawn."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*values, **_):
            self.calls.append((name, values))
            return [self]

        return call


def test_axes_of_matplotlib_are_drawn_on():
    axes = Axes()
    assert raster(torch.eye(3), ax=axes) is axes
    assert axes.calls[0] == ("eventplot", ([[0], [1], [2]],))
    axes = Axes()
    assert membrane(LIF(), torch.full((4, 1), 0.75), ax=axes) is axes
    assert [name for name, _ in axes.calls] == ["plot", "get_color", "plot", "set"]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: raster(torch.ones(2, 3, 4)), ShapeError, r"\[steps, neurons\], got \(2, 3, 4\)"),
        (lambda: membrane(LIF(), torch.ones(0, 3)), ShapeError, r"got \(0, 3\)"),
        (lambda: membrane(LIF(), torch.ones(2, 3), neurons=(3,)), RangeError, "from 0 to 2"),
        (lambda: raster(torch.eye(2)).save("x.png"), InputError, "ends in .svg, got x.png"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(call, error, match):
    with pytest.raises(error, match=match):
        call()
