"""How many values of a running port leave the ranges it was calibrated for."""

import warnings

from torch import nn

from isospike.porting.sites import Site

TIMES = 10  # as many as on the held-out inputs are a warning
LEAST_SHARE = {False: 1e-4, True: 1e-2}  # of values; of tokens, with ranges that follow the input
LEAST = {False: 50_000, True: 1000}  # of them seen before


def saturation_of(model: nn.Module) -> "Saturation":
    """The counter of a port."""
    counter: Saturation = vars(model)["saturation"]
    return counter


class Saturation:
    """Counts the values that a port's sites cut off, and warns once if they are many.

    A neuron makes the comparison anyway. With ranges that follow the input nothing is cut off: it
    is the tokens whose gain is above those of the calibration inputs that count.

    Args:
        model: The port.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.warned = True

    def __call__(self) -> dict[str, float]:
        """Share outside the range, by name of the site, since the port was made or :meth:`reset`.

        Returns:
            Shares in [0, 1]; a site that nothing has passed has 0.
        """
        return {site.name: site.share_outside for site in self._sites()}

    def reset(self) -> None:
        """Count from 0 again, and warn again."""
        self.warned = False
        for site in self._sites():
            site.forget_outside()

    def warn(self) -> None:
        """Warn, once, if many values are outside at a site."""
        if self.warned:
            return
        for site in self._sites():
            beyond, seen = site.outside.tolist()
            usual = max(site.usual_outside, LEAST_SHARE[site.dynamic])
            if seen >= LEAST[site.dynamic] and beyond > TIMES * usual * seen:
                self.warned = True
                share = beyond / seen
                warnings.warn(
                    f"{share:.2%} of what passed {site.name} is outside the range it was "
                    "calibrated for: the error may be larger than reported. Calibrate the port "
                    "on inputs like these; model.saturation() has every site's share.",
                    stacklevel=2,
                )
                return

    def _sites(self) -> list[Site]:
        found = {id(m): m for m in self.model.modules() if isinstance(m, Site)}
        return list(found.values())
