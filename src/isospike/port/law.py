"""How the error of a port falls with the number of steps, fitted and inverted."""

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
FIT_AT = {"2^-T": (4, 6, 8), "T^-1": (8, 32, 128), "T^-1/2": (8, 24, 64)}
MOST_STEPS = {"2^-T": 16, "T^-1": 256, "T^-1/2": 256}


def shape(form: str, steps: int) -> float:
    """g(T) of the form: ``2^-T``, ``1/T`` or ``1/sqrt(T)``."""
    if form == "2^-T":
        return float(2.0**-steps)
    return 1 / steps if form == "T^-1" else float(steps**-0.5)


def predict(law: Law, steps: int) -> float:
    """``sqrt(floor^2 + (scale * g(steps))^2)``."""
    return float((law.floor**2 + (law.scale * shape(law.form, steps)) ** 2) ** 0.5)


def fit_law(form: str, errors: Mapping[int, float]) -> Law:
    """Least squares on the relative error of error^2, both terms non-negative.

    error^2 = floor^2 + scale^2 g^2 is a straight line in g^2, so the fit has a closed form.
    """
    points = [(shape(form, t) ** 2, e * e) for t, e in sorted(errors.items())]
    # Weights 1 / error^4 make each point count by its relative deviation.
    w = [1 / max(y * y, 1e-300) for _, y in points]
    s0 = sum(w)
    sx = sum(wi * x for wi, (x, _) in zip(w, points, strict=True))
    sy = sum(wi * y for wi, (_, y) in zip(w, points, strict=True))
    sxx = sum(wi * x * x for wi, (x, _) in zip(w, points, strict=True))
    sxy = sum(wi * x * y for wi, (x, y) in zip(w, points, strict=True))
    determinant = s0 * sxx - sx * sx
    floor2 = scale2 = 0.0
    if determinant > 0:
        scale2 = (s0 * sxy - sx * sy) / determinant
        floor2 = (sy * sxx - sx * sxy) / determinant
    if determinant <= 0 or floor2 < 0:
        floor2, scale2 = 0.0, sxy / sxx
    if scale2 < 0:
        floor2, scale2 = sy / s0, 0.0
    return Law(
        form=form,
        floor=floor2**0.5,
        scale=scale2**0.5,
        steps=tuple(sorted(errors)),
        errors=tuple(e for _, e in sorted(errors.items())),
    )


def smallest_steps(law: Law, target: float, least: int) -> int | None:
    """The fewest steps whose predicted error is at most ``target``; None if there are none."""
    for steps in range(least, MOST_STEPS[law.form] + 1):
        if predict(law, steps) <= target:
            return steps
    return None
