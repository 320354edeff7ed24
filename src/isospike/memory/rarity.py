"""How unusual a surprise is among all before it."""

from typing import Any

import numpy as np

from isospike.kernels.machine import rarity as kernels
from isospike.memory.files import Shapes

MOST_BITS = 30.0
_REPEATS = 3.0  # weight of how often a mean has been exceeded


class Rarity:
    """Turns surprises into evidence of an anomaly, one after another.

    After n surprises let m_s be the mean of the last s, among them the new one, and u_s the number
    of times m_s has been at least as large before, to a tenth of a bit. With spans s_1 < s_2 < ..

    (1)  e = (m_{s_1} + log2(1 + n) - 3 mean_s log2(1 + u_s)) / 2

    A surprise that lasts is rare in every span, one that comes often in none, however large it is.

    Args:
        spans: Values of a mean, the fewest first.

    Reference: Ahmad, Lavin, Purdy, Agha (2017), Unsupervised real-time anomaly detection for
    streaming data, compare a short mean of errors with their distribution, as (1) does; from them
    (1) deviates by ranks in place of a Gaussian tail, by several spans, and by the surprise itself.
    """

    def __init__(self, spans: tuple[int, ...]) -> None:
        self._spans = np.array(spans)
        made = {name: np.zeros(shape, kind) for name, (shape, kind) in self.shapes(spans).items()}
        self._counts, self._last = made["counts"], made["last"]

    @staticmethod
    def shapes(spans: tuple[int, ...]) -> Shapes:
        """Shapes and types of :meth:`tensors`.

        Args:
            spans: As of the class.
        """
        return {
            "counts": ((len(spans), kernels.BINS), "int64"),
            "last": ((spans[-1],), "float64"),
        }

    def judge(self, bits: Any, before: int) -> Any:
        """Evidence (1) of surprises, which then are counted.

        Args:
            bits: Surprises, in [0, 30], ``[length]``.
            before: Surprises so far.

        Returns:
            Evidence, in bits, ``[length]``; below 0 for what is common.
        """
        out = np.zeros(len(bits))
        arrays = self._counts, self._last, self._spans
        kernels.judge(*arrays, before, _REPEATS, np.asarray(bits, np.float64), out)
        return out

    def tensors(self) -> dict[str, Any]:
        """Its arrays by name."""
        return {"counts": self._counts, "last": self._last}

    def restore(self, tensors: dict[str, Any], before: int) -> None:
        """Go on from :meth:`tensors`.

        Args:
            tensors: Of the shapes of :meth:`shapes`.
            before: Surprises so far.

        Raises:
            ValueError: They are not those of so many surprises.
        """
        counts, last = tensors["counts"], tensors["last"]
        if counts.min() < 0 or (counts.sum(1) != before).any():
            raise ValueError("its surprises are not as many as its values")
        if not ((last >= 0) & (last <= MOST_BITS)).all():
            raise ValueError("its last surprises are none")
        self._counts[...], self._last[...] = counts, last
