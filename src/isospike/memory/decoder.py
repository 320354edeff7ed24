"""The fixed, random address decoder of a sparse distributed memory."""

import numpy as np
import torch
from torch import Tensor

from isospike.errors import RangeError


class AddressDecoder:
    """W lines, each connected to ``a`` of A address neurons; the ``w`` most excited ones fire.

    (1)  h[k] = sum_r alpha^r * strength[k, address[r]],  the strengths of a line being
         alpha^0 .. alpha^(a-1) on its ``a`` connections, in random order

    Kept as an inverted index: for each address neuron, the lines it reaches. Choosing lines for an
    address of i spikes costs i * W * a / A additions.

    Attributes:
        size: A.
        connections: a.
        fire: w.
        lines: W.
        start, line, strength: Lines ``line[start[n]:start[n + 1]]`` hear neuron n.
    """

    def __init__(
        self,
        size: int,
        connections: int,
        fire: int,
        lines: int,
        alpha: float,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if not 1 <= connections <= size:
            raise RangeError(
                f"AddressDecoder needs 1 <= connections <= address neurons, got {connections} of "
                f"{size}."
            )
        if not 1 <= fire <= lines:
            raise RangeError(
                f"AddressDecoder needs 1 <= firing lines <= lines, got {fire} of {lines}."
            )
        self.size, self.connections, self.fire, self.lines = size, connections, fire, lines
        reached = torch.empty(lines, connections, dtype=torch.int64)
        for first in range(0, lines, 4096):  # in parts: a draw has a number per line and neuron
            rows = reached[first : first + 4096]
            draws = torch.rand(len(rows), size, generator=generator)
            torch.topk(draws, connections, dim=1, out=(torch.empty(0), rows))
        flat = reached.flatten()
        by_neuron = flat.argsort(stable=True)
        # Unsigned: compiled code need not look for indices from the end.
        self.line = (by_neuron // connections).numpy().astype(np.uint32)
        rank = torch.arange(connections, dtype=torch.float64)
        strength = (alpha**rank).to(dtype).repeat(lines)
        self.strength = strength[by_neuron].numpy()
        counts = torch.bincount(flat, minlength=size).cumsum(0)
        self.start = torch.cat([torch.zeros(1, dtype=torch.int64), counts]).numpy()

    @property
    def arrays(self) -> tuple[object, ...]:
        """What the kernels of :mod:`isospike.kernels.lines` take."""
        return self.start, self.line, self.strength, self.lines, self.fire

    def matrix(self) -> Tensor:
        """The strengths, dense, ``[lines, size]``."""
        dense = torch.zeros(self.lines, self.size, dtype=torch.from_numpy(self.strength).dtype)
        counts = torch.from_numpy(self.start).diff()
        neuron = torch.arange(self.size).repeat_interleave(counts)
        dense[torch.from_numpy(self.line.astype(np.int64)), neuron] = torch.from_numpy(
            self.strength
        )
        return dense
