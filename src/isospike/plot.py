"""Pictures of spikes and membranes: in a notebook, as an SVG file, or on axes of matplotlib.

>>> from isospike.neurons import LIF
>>> raster(LIF()(torch.full((8, 3), 0.75))).figure.height
200
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isospike.errors import InputError, RangeError, ShapeError
from isospike.neurons import Neuron, NeuronState
from isospike.report.drawing import draw
from isospike.report.figures import ON, PALETTE, Axis, Figure, Series, Spikes, line
from isospike.tensors import check_tensor

__all__ = ["Picture", "membrane", "raster"]

COLOURS = {"ink": "#22303a", "muted": "#5b6770", "grid": "#e7ebee", "edge": "#b8c1c8",
           "band": "#f1f4f6"}  # fmt: skip
"""What a page's style sheet would say."""


@dataclass(frozen=True)
class Picture:
    """A figure that a notebook shows.

    Attributes:
        figure: What it shows; ``figure.table()`` has its numbers.
        width: In pixels.

    >>> raster(torch.eye(3)).svg()[:15]
    '<svg xmlns="htt'
    """

    figure: Figure
    width: int = 720

    def svg(self) -> str:
        """The picture as an SVG file's text."""
        text = str(draw(self.figure, self.width))
        for name, colour in COLOURS.items():
            text = text.replace(f"var(--{name})", colour)
        style = 'xmlns="http://www.w3.org/2000/svg" style="background:#fff;font-family:sans-serif"'
        return text.replace("<svg", f"<svg {style}", 1)

    def save(self, path: str | Path) -> None:
        """Write the picture.

        Args:
            path: A file that ends in ``.svg``.

        Raises:
            InputError: Another ending.
        """
        path = Path(path)
        if path.suffix != ".svg":
            raise InputError(
                f"save needs a file that ends in .svg, got {path.name}. Other formats: give ax of "
                "matplotlib."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.svg(), encoding="utf-8")

    def _repr_html_(self) -> str:
        return f'<div style="max-width:{self.width}px">{self.svg()}</div>'


def raster(spikes: Tensor, *, ax: Any = None) -> Any:
    """A short line for each spike: steps to the right, neurons upwards.

    Args:
        spikes: ``[steps, neurons]``; what is not 0 is a spike.
        ax: Axes of matplotlib to draw on.

    Returns:
        A :class:`Picture`; with ``ax``, those axes.

    Raises:
        InputError: ``spikes`` is not a tensor.
        ShapeError: It has other axes.

    >>> raster(torch.eye(3)).figure.table().rows
    (('spikes', 0, 0), ('spikes', 1, 1), ('spikes', 2, 2))
    """
    check_tensor("raster", "spikes", spikes)
    if spikes.dim() != 2:
        raise ShapeError(
            f"raster needs spikes [steps, neurons], got {tuple(spikes.shape)}. Choose one input, "
            "and flatten its neurons."
        )
    steps, neurons = spikes.shape
    points = [tuple(p) for p in spikes.detach().cpu().nonzero().tolist()]
    if ax is not None:
        at = [[t for t, n in points if n == neuron] for neuron in range(neurons)]
        ax.eventplot(at, colors=ON, linelengths=0.84)
        ax.set(xlabel="step", ylabel="neuron", xlim=(-0.5, steps - 0.5))
        return ax
    marks = Spikes({"spikes": points}, neurons, (ON,))
    height = min(720, max(200, 110 + 5 * neurons))
    axis = Axis("step", limits=(-0.5, steps - 0.5))
    return Picture(Figure("raster", "Spikes", height, marks, axis, Axis("neuron")))


@torch.no_grad()
def membrane(
    layer: Neuron,
    x: Tensor,
    state: NeuronState | None = None,
    *,
    neurons: Sequence[int] = (0,),
    ax: Any = None,
) -> Any:
    """Membranes of some neurons after each step, and where they fired.

    Args:
        layer: The neurons.
        x: Their input ``[steps, neurons]``.
        state: Membrane to start from; None is rest.
        neurons: Which of them are shown.
        ax: Axes of matplotlib to draw on.

    Returns:
        A :class:`Picture`; with ``ax``, those axes.

    Raises:
        InputError: ``x`` is not a tensor.
        ShapeError: It has other axes, or no steps.
        RangeError: There is no such neuron.

    >>> from isospike.neurons import LIF
    >>> shown = membrane(LIF(decay=0.5), torch.full((4, 1), 0.75))
    >>> [row[2] for row in shown.figure.table().rows][:4]
    [0.75, 0.125, 0.8125, 0.15625]
    """
    check_tensor("membrane", "x", x)
    if x.dim() != 2 or not len(x):
        raise ShapeError(
            f"membrane needs x [steps, neurons], got {tuple(x.shape)}. Choose one input, and "
            "flatten its neurons."
        )
    if not all(0 <= n < x.shape[1] for n in neurons):
        raise RangeError(
            f"membrane needs neurons from 0 to {x.shape[1] - 1}, got {list(neurons)}. Choose "
            "others."
        )
    fired, held = [], []
    for step in x:
        spikes, state = layer.run(step[None], state)
        fired.append(spikes[0])
        held.append(state.v)
    v, s = torch.stack(held).float().cpu(), torch.stack(fired).cpu()
    steps = range(len(x))
    if ax is not None:
        for n in neurons:
            (drawn,) = ax.plot(steps, v[:, n], label=f"neuron {n}")
            ax.plot(s[:, n].nonzero().flatten(), v[:, n][s[:, n] > 0], "|", color=drawn.get_color())
        ax.set(xlabel="step", ylabel="membrane after the step")
        return ax
    series = []
    for k, n in enumerate(neurons):
        colour, at = PALETTE[k % len(PALETTE)], s[:, n].nonzero().flatten().tolist()
        series.append(Series(f"neuron {n}", steps, v[:, n].tolist(), colour, symbol=""))
        if at:
            values = v[at, n].tolist()
            series.append(Series(f"spikes of {n}", at, values, colour, "", legend=False))
    return Picture(
        line("membrane", "Membranes", series, "step", "membrane after the step", height=300)
    )
