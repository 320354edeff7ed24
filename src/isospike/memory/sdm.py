"""Sparse distributed memory with N-of-M codes."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from isospike.errors import RangeError, ShapeError
from isospike.kernels import lines as kernels
from isospike.memory.decoder import AddressDecoder
from isospike.orders import check_alpha, check_order

RULES = {
    "or": kernels.OR,
    "max": kernels.MAX,
    "add": kernels.ADD,
    "decay": kernels.DECAY,
    "rank": kernels.RANK,
}


class SparseDistributedMemory:
    """One-shot memory from firing orders to firing orders.

    An address of i spikes makes w of W lines fire (:class:`AddressDecoder`), with significance
    ``sigma[k] = alpha^rank``; each line holds a cell for each of D data neurons. Writing the data
    order with significance y changes w * d cells:

    =======  =======================================  ===================================
    rule     cell m[k, j] becomes                     a read ranks data neurons by
    =======  =======================================  ===================================
    or       1                                        lines with the cell set
    max      max(m, sigma[k] y[j])                    sum_k sigma[k] m[k, j]
    add      m + sigma[k] y[j]                        the same
    decay    keep m + (1 - keep) sigma[k] y[j]        the same (all cells of the line decay)
    rank     1 + the spike's rank (the last one wins) lines with the cell set; the d first, then
                                                      ordered by the commonest rank in their cells
    =======  =======================================  ===================================

    ``or`` and ``rank`` keep a byte per cell, the others a float. ``rank``, the default, recalls the
    order of more pairs at 4,000 than ``max`` at 1,000 (docs/measurements.md): a cell that two pairs
    share is one wrong vote among w, not a sum that is wrong.

    Args:
        address: (i, A), spikes and neurons of an address.
        decoder: (a, w, W), connections of a line, lines that fire, lines.
        data: (d, D), spikes and neurons of the data.
        alpha: Ratio of significance of consecutive spikes, in (0, 1].
        rule: See the table.
        keep: Share that ``decay`` leaves.
        floor: N-max floor: a data neuron whose activity is lower stays silent.
        generator: Draws the decoder's connections.
        dtype: Of decoder strengths, activities and float cells.

    Reference: Kanerva (1988), Sparse distributed memory; Furber, Bainbridge, Cumpstey, Temple
    (2004), Sparse distributed memory using N-of-M codes; Furber et al. (2007).
    """

    def __init__(
        self,
        address: tuple[int, int] = (11, 256),
        decoder: tuple[int, int, int] = (20, 16, 4096),
        data: tuple[int, int] = (11, 256),
        alpha: float = 0.9,
        *,
        rule: str = "rank",
        keep: float = 0.7,
        floor: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        check_alpha(alpha, "SparseDistributedMemory")
        for name, (n, m) in {"address": address, "data": data}.items():
            if not 1 <= n <= m:
                raise RangeError(
                    f"SparseDistributedMemory needs 1 <= N <= M spikes in {name}, got {n}-of-{m}."
                )
        if rule not in RULES:
            raise RangeError(
                f"SparseDistributedMemory needs a rule of {', '.join(RULES)}, got {rule!r}."
            )
        if rule == "rank" and data[0] > 255:
            raise RangeError(f"rule 'rank' needs at most 255 data spikes, got {data[0]}.")
        if dtype not in (torch.float32, torch.float64):
            raise RangeError(f"SparseDistributedMemory needs float32 or float64, got {dtype}.")
        if not 0 <= keep <= 1:
            raise RangeError(f"SparseDistributedMemory needs keep in [0, 1], got {keep}.")
        self.address, self.data, self.alpha = address, data, alpha
        self.rule, self.keep, self.floor = rule, keep, floor
        connections, fire, lines = decoder
        self.decoder = AddressDecoder(address[1], connections, fire, lines, alpha, generator, dtype)
        floats = np.float64 if dtype == torch.float64 else np.float32
        self.cells = np.zeros((lines, data[1]), np.uint8 if rule in ("or", "rank") else floats)
        self._gain = {
            n: (alpha ** np.arange(n)).astype(floats) for n in (address[0], data[0], fire)
        }

    def write(self, address: Int[Tensor, "*batch i"], data: Int[Tensor, "*batch d"]) -> None:
        """Store pairs of orders, a batch in its order.

        Raises:
            ShapeError: Not ``[..., i]`` and ``[..., d]``, or batches that differ.
            RangeError: Not whole numbers, a neuron out of range, or one that fires twice.
        """
        addresses, values = self._orders(address, "address"), self._orders(data, "data")
        if address.shape[:-1] != data.shape[:-1]:
            raise ShapeError(
                f"write needs as many data as addresses, got shapes {tuple(address.shape)} and "
                f"{tuple(data.shape)}."
            )
        kernels.write_pairs(
            self.decoder.arrays, self.cells, RULES[self.rule], self.keep, self._sigma,
            addresses, values, self._gain[self.address[0]], self._gain[self.data[0]],
        )  # fmt: skip

    def read(self, address: Int[Tensor, "*batch i"]) -> Int[Tensor, "*batch d"]:
        """The recalled orders. Outputs without activity, or below the floor, are -1, at the end."""
        return self._recall(address)[0]

    def activity(self, address: Int[Tensor, "*batch i"]) -> Float[Tensor, "*batch D"]:
        """What :meth:`read` ranks: the activity of every data neuron."""
        return self._recall(address)[1]

    def lines(self, address: Int[Tensor, "*batch i"]) -> Int[Tensor, "*batch w"]:
        """The lines that fire, the most excited first."""
        addresses = self._orders(address, "address")
        out = np.empty((len(addresses), self.decoder.fire), np.int64)
        kernels.choose_all(self.decoder.arrays, addresses, self._gain[self.address[0]], out)
        return torch.from_numpy(out).view(*address.shape[:-1], self.decoder.fire)

    @property
    def occupancy(self) -> float:
        """Share of the cells that hold something."""
        return float((self.cells != 0).mean())

    @property
    def _sigma(self) -> Any:
        return self._gain[self.decoder.fire]

    def _recall(self, address: Tensor) -> tuple[Tensor, Tensor]:
        addresses = self._orders(address, "address")
        orders = np.empty((len(addresses), self.data[0]), np.int64)
        activity = np.empty((len(addresses), self.data[1]), self._sigma.dtype)
        kernels.read_addresses(
            self.decoder.arrays, self.cells, RULES[self.rule], self.floor, self._sigma,
            addresses, self._gain[self.address[0]], orders, activity,
        )  # fmt: skip
        batch = address.shape[:-1]
        return (
            torch.from_numpy(orders).view(*batch, self.data[0]),
            torch.from_numpy(activity).view(*batch, self.data[1]),
        )

    def _orders(self, order: Tensor, what: str) -> Any:
        n, m = self.address if what == "address" else self.data
        check_order(order, n, m, f"{what} of the memory")
        return order.reshape(-1, n).long().contiguous().numpy()


def occupancy(pairs: float, w: int, d: int, lines: int, size: int) -> float:
    """Share of cells set by random pairs: ``1 - (1 - w d / (W D))^Z``."""
    return float(-np.expm1(pairs * np.log1p(-w * d / (lines * size))))


def expected_recall(pairs: float, w: int, d: int, lines: int, size: int) -> float:
    """Chance that a set is recalled exactly: ``(1 - p^w)^(D - d)``, p the :func:`occupancy`.

    Assumes lines that are used evenly and independently; measured memories fail earlier.
    """
    p = occupancy(pairs, w, d, lines, size)
    return float((1 - p**w) ** (size - d))


def capacity(w: int, d: int, lines: int, size: int) -> float:
    """Pairs at which one spurious neuron is expected: ``ln(1 - p*) / ln(1 - w d / (W D))`` with
    ``p* = (D - d)^(-1/w)``."""
    return float(np.log1p(-((size - d) ** (-1 / w))) / np.log1p(-w * d / (lines * size)))
