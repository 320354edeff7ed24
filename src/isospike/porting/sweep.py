"""Error of a whole model against time steps, for several codes, on a few inputs."""

from collections.abc import Sequence

import torch

from isospike.codes import CODES
from isospike.porting.fidelity import same_draws
from isospike.porting.measure import SpikeMeter, compare
from isospike.porting.plan import Builder, Plan
from isospike.porting.records import CurvePoint
from isospike.progress import update

SWEEP_ROWS = 8  # of the first evaluation batch, that a point is measured on


def sweep(builder: Builder, codes: Sequence[str]) -> tuple[CurvePoint, ...]:
    """Error and spikes of every code at a few numbers of steps.

    Args:
        builder: Makes the ports.
        codes: Names of the codes.
    """
    discovery, inputs = builder.discovery, builder.inputs
    few = [inputs.few(inputs.evaluation[0], SWEEP_ROWS)]
    cells = [CODES[code](steps) for code in codes for steps in CODES[code].sweep_steps]
    points, expected = [], []
    for batch in few:
        with torch.no_grad(), same_draws():
            expected.append(discovery.model(**batch))
    for done, code in enumerate(cells):
        update("compare codes", done, len(cells))
        ported = builder.build(Plan(builder.uniform(type(code), code.steps))).ported
        meter = SpikeMeter(ported.run)
        comparison = compare(discovery.model, ported, few, meter, expected)
        spikes = meter.spikes / comparison.tokens
        points.append(CurvePoint(code.name, code.steps, comparison.error, spikes))
    if cells:
        update("compare codes", len(cells), len(cells))
    return tuple(points)
