"""How the error of a port falls with the number of steps, fitted and inverted."""

import math
from collections.abc import Mapping

from isospike.port.result import Law

# Per code: the form of its law, the steps it is fitted at, and the most steps the search may take.
FORMS = {
    "signed-digit": "2^-T",
    "phase": "2^-T",
    "rate": "T^-1",
    "latency": "T^-1",
    "bernoulli": "T^-1/2",
}
FIT_AT = {"2^-T": (5, 7, 9), "T^-1": (8, 32, 128), "T^-1/2": (8, 24, 64)}
MOST_STEPS = {"2^-T": 16, "T^-1": 256, "T^-1/2": 256}


def shape(form: str, steps: int) -> float:
    """g(T) of the form: ``2^-T``, ``1/T`` or ``1/sqrt(T)``."""
    if form == "2^-T":
        return float(2.0**-steps)
    return 1 / steps if form == "T^-1" else float(steps**-0.5)


def predict(law: Law, steps: int) -> float:
    """``scale * g(steps)^exponent``."""
    return float(law.scale * shape(law.form, steps) ** law.exponent)


def fit_law(form: str, errors: Mapping[int, float]) -> Law:
    """Least squares on log error against log g, a straight line; the exponent is not negative."""
    steps = sorted(errors)
    x = [math.log(shape(form, t)) for t in steps]
    y = [math.log(max(errors[t], 1e-300)) for t in steps]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = sum((a - mean_x) ** 2 for a in x)
    exponent = max(0.0, covariance / spread) if spread > 0 else 1.0
    return Law(
        form=form,
        exponent=exponent,
        scale=math.exp(mean_y - exponent * mean_x),
        steps=tuple(steps),
        errors=tuple(errors[t] for t in steps),
    )


def smallest_steps(law: Law, target: float, least: int) -> int | None:
    """The fewest steps whose predicted error is at most ``target``; None if there are none."""
    for steps in range(least, MOST_STEPS[law.form] + 1):
        if predict(law, steps) <= target:
            return steps
    return None
