"""The fixed, random address decoder of a sparse distributed memory."""

import numpy as np
import torch
from torch import Tensor

from isospike.errors import RangeError
from isospike.kernels.machine.locations import BLOCK


class AddressDecoder:
    """W hard locations, each connected to ``a`` of A address neurons; the ``w`` most excited fire.

    (1)  h[k] = sum_r alpha^r * strength[k, address[r]],  the strengths of a location being
         alpha^0 .. alpha^(a-1) on its ``a`` connections, in random order

    Kept as an inverted index: for each address neuron, the locations it reaches. To activate
    locations for an address of i spikes costs i * W * a / A additions.

    Attributes:
        start, location, rank: Neuron n reaches, in block b of locations, ``location[start[b, n]:
            start[b, n + 1]]``, counted within the block, by connections of these ranks.
        power: alpha^rank.
        reached: The neurons to which each location is connected, by rank, ``[W, a]``.

    Args:
        neurons: A, address neurons.
        connections: a, of each location.
        active: w, locations that fire for an address.
        locations: W.
        alpha: Ratio of strength of consecutive connections, in (0, 1].
        generator: Draws the connections.
        dtype: Of strengths.

    Raises:
        RangeError: More connections than neurons, or more active locations than there are.

    Example:
        >>> from isospike.memory import AddressDecoder
        >>> AddressDecoder(64, connections=4, active=2, locations=100, alpha=0.9).matrix().shape
        torch.Size([100, 64])
    """

    def __init__(
        self,
        neurons: int,
        connections: int,
        active: int,
        locations: int,
        alpha: float,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if not 1 <= connections <= neurons:
            raise RangeError(
                f"AddressDecoder needs 1 <= connections <= address neurons, got {connections} of "
                f"{neurons}. Give fewer connections or more neurons."
            )
        if not 1 <= active <= locations:
            raise RangeError(
                f"AddressDecoder needs 1 <= active <= locations, got {active} of {locations}. Give "
                "more locations."
            )
        self.neurons, self.active, self.locations = neurons, active, locations
        reached = torch.empty(locations, connections, dtype=torch.int64)
        for first in range(0, locations, 4096):  # in parts: each draws [4096, neurons]
            rows = reached[first : first + 4096]
            draws = torch.rand(len(rows), neurons, generator=generator)
            torch.topk(draws, connections, dim=1, out=(torch.empty(0), rows))
        few = np.uint16 if neurons <= 2**16 else np.int32
        self.reached = reached.numpy().astype(few)
        # By block of locations, in it by neuron, then by location.
        flat, k = reached.flatten(), torch.arange(locations).repeat_interleave(connections)
        place = k // BLOCK * neurons + flat
        order = place.argsort(stable=True)
        self.location = (k[order] % BLOCK).numpy().astype(np.uint16)
        narrow = torch.uint8 if connections <= 256 else torch.int32
        self.rank = torch.arange(connections).to(narrow).repeat(locations)[order].numpy()
        rank = torch.arange(connections, dtype=torch.float64)
        self.power = (alpha**rank).to(dtype).numpy()
        blocks = -(-locations // BLOCK)
        counts = torch.bincount(place, minlength=blocks * neurons).view(blocks, neurons)
        ends = counts.flatten().cumsum(0).view(blocks, neurons)
        self.start = torch.cat([ends[:, :1] - counts[:, :1], ends], 1).contiguous().numpy()

    @property
    def table(self) -> tuple[object, ...]:
        """The connections."""
        return self.start, self.location, self.rank, self.power, self.reached

    @property
    def arrays(self) -> tuple[object, ...]:
        """What the loops in :mod:`isospike.kernels.machine.locations` take."""
        return self.table, self.locations, self.active

    def matrix(self) -> Tensor:
        """The strengths.

        Returns:
            A dense matrix, ``[locations, neurons]``.
        """
        power = torch.from_numpy(self.power)
        dense = torch.zeros(self.locations, self.neurons, dtype=power.dtype)
        counts = torch.from_numpy(self.start).diff(dim=1)
        block = torch.arange(len(counts)).repeat_interleave(counts.sum(1))
        neuron = torch.arange(self.neurons).repeat(len(counts)).repeat_interleave(counts.flatten())
        location = block * BLOCK + torch.from_numpy(self.location.astype(np.int64))
        dense[location, neuron] = power[torch.from_numpy(self.rank).long()]
        return dense
