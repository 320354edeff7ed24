"""Error of a whole model against time steps, for several codes, on a few inputs."""

from collections.abc import Sequence

import torch

from isospike.codes import CODES
from isospike.porting.calibrate import calibrate
from isospike.porting.fidelity import same_draws
from isospike.porting.measure import SpikeMeter, compare
from isospike.porting.plan import Builder
from isospike.porting.records import CurvePoint
from isospike.porting.run import Targets
from isospike.progress import update

SWEEP_ROWS = 32  # calibration rows of each point; a quarter as many of the first evaluation batch


def sweep(builder: Builder, codes: Sequence[str]) -> tuple[CurvePoint, ...]:
    """Error and spikes of every code at a few numbers of steps.

    Args:
        builder: Makes the ports.
        codes: Names of the codes.
    """
    discovery, inputs = builder.discovery, builder.inputs
    calibration = inputs.few(inputs.merged, SWEEP_ROWS)
    few = [inputs.few(inputs.evaluation[0], SWEEP_ROWS // 4)]
    cells = [CODES[code](steps) for code in codes for steps in CODES[code].sweep_steps]
    points, targets = [], Targets()
    expected = []
    for batch in few:
        with torch.no_grad(), same_draws():
            expected.append(discovery.model(**batch))
    for done, code in enumerate(cells):
        update("compare codes", done, len(cells))
        ported = discovery.instrument()
        ported.seed(builder.generator)
        ported.assign(dict.fromkeys(discovery.names, code))
        calibrate(ported, calibration, targets)
        meter = SpikeMeter(ported.run)
        comparison = compare(discovery.model, ported, few, meter, expected)
        spikes = meter.spikes / comparison.tokens
        points.append(CurvePoint(code.name, code.steps, comparison.error, spikes))
    if cells:
        update("compare codes", len(cells), len(cells))
    return tuple(points)
