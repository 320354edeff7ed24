"""The fixed, random address decoder of a sparse distributed memory."""

import numpy as np
import torch
from torch import Tensor

from isospike.errors import RangeError
from isospike.kernels.machine.locations import BLOCK


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
        start, line, rank: Of block b of lines, those that hear neuron n are ``line[start[b, n]:
            start[b, n + 1]]``, counted within the block, by connections of these ranks.
        power: alpha^rank.
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
        # By block of lines, in it by neuron, then by line.
        flat, k = reached.flatten(), torch.arange(lines).repeat_interleave(connections)
        place = k // BLOCK * size + flat
        order = place.argsort(stable=True)
        self.line = (k[order] % BLOCK).numpy().astype(np.uint16)
        narrow = torch.uint8 if connections <= 256 else torch.int32
        self.rank = torch.arange(connections).to(narrow).repeat(lines)[order].numpy()
        rank = torch.arange(connections, dtype=torch.float64)
        self.power = (alpha**rank).to(dtype).numpy()
        blocks = -(-lines // BLOCK)
        counts = torch.bincount(place, minlength=blocks * size).view(blocks, size)
        ends = counts.flatten().cumsum(0).view(blocks, size)
        self.start = torch.cat([ends[:, :1] - counts[:, :1], ends], 1).contiguous().numpy()

    @property
    def table(self) -> tuple[object, ...]:
        """The connections."""
        return self.start, self.line, self.rank, self.power

    @property
    def arrays(self) -> tuple[object, ...]:
        """What the kernels of :mod:`isospike.kernels.machine.locations` take."""
        return self.table, self.lines, self.fire

    def matrix(self) -> Tensor:
        """The strengths, dense, ``[lines, size]``."""
        power = torch.from_numpy(self.power)
        dense = torch.zeros(self.lines, self.size, dtype=power.dtype)
        counts = torch.from_numpy(self.start).diff(dim=1)
        block = torch.arange(len(counts)).repeat_interleave(counts.sum(1))
        neuron = torch.arange(self.size).repeat(len(counts)).repeat_interleave(counts.flatten())
        line = block * BLOCK + torch.from_numpy(self.line.astype(np.int64))
        dense[line, neuron] = power[torch.from_numpy(self.rank).long()]
        return dense
